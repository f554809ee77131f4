"""What a training will take: steps, days, memory and disk, before anything is rented.

What is known of each figure stands beside it.  "stated": by others, or by the user.  "computed": from the model that
the flags describe, which is built and run once on the CPU.  "measured": by the user or in this repository.  A training
step moves memory more than it multiplies, so a speed that is stated for one GPU and model becomes that of another by
the bandwidths of the two and by what autograd keeps of a second of speech.  It may be wrong by a factor of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil, floor
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdstream.benchmarks.gpus import GPUS, LARGEST_BATCH, STATED, STATED_GPU, STATED_PRESET, STATED_SPEED
from kdstream.benchmarks.names import STEPS, SYNTHETIC_VOCABULARY
from kdstream.benchmarks.train_step import synthetic_batch
from kdstream.config.distillation import CACHE_STORAGES
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig
from kdstream.data.batch import Batch
from kdstream.kd.layer_map import default_layers
from kdstream.kd.taps import TENSORS
from kdstream.kd.teacher import TransducerTeacher
from kdstream.kd.teacher_cache import bytes_per_hour, columns_to_store
from kdstream.models.presets import resolve
from kdstream.models.rnnt_loss import LossSettings
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer, build_model
from kdstream.training.step import chunk_choices, seed_step, tokens_of

SECONDS = 12.0  # of the utterance of which is counted what autograd keeps
# Of a step in which a teacher is heard, and one in which its cache is read: times a baseline's step.  From
# egs/librispeech/results/training-cost.md, as is the memory of a distilled step.
STEP_COSTS, MEASURED_COSTS = (1.51, 1.20), "measured: training-cost.md, on a CPU"
DISTILLED_MEMORY = 1.3
FORWARD = 1 / 3  # of a step; backward takes twice as long as forward
FEATURES_PER_HOUR = 33e6  # bytes, as Lhotse compresses 80 log energies of 10 ms; measured on the embedded corpus
# Bytes for each parameter.  Training, on the GPU: parameter, gradient, two of ScaledAdam, DDP's bucket.
IN_TRAINING, IN_CHECKPOINT, FROZEN = 4 + 4 + 8 + 4, 16, 4
BEST = 2  # checkpoints that train.py keeps beside those of epochs and steps
USABLE = 0.85  # of a GPU's memory: what is left is the libraries', and lost between blocks


class Model(NamedTuple):
    """parameters: how many.  kept, most: bytes that autograd keeps of a second of speech, in half precision.

    kept: the mean over the chunks that training draws.  most: with the one that keeps most.
    """

    parameters: int
    kept: float
    most: float


class Run(NamedTuple):
    """What the user asks.  hours: of an epoch, all speeds together.  speed: seconds of speech a second and GPU."""

    hours: float
    utterance_seconds: float
    gpu: str
    gpus: int
    num_epochs: int
    teacher_epochs: int
    max_duration: float  # 0: what fits
    speed: float  # 0: not measured
    step_costs: tuple[float, float] | None  # of a distilled step, live and cached


def look_at(config: ModelConfig) -> Model:
    """Builds a model and runs it forward with its losses, once with each chunk that training may draw."""
    model = build_model(resolve(replace(config, vocab_size=SYNTHETIC_VOCABULARY))).train()
    batch = synthetic_batch(DataConfig(max_duration=SECONDS), SECONDS)
    kept = [
        [kept_by_autograd(model, batch, chunk) / SECONDS for chunk in of_size]
        for of_size in chunk_choices(config, model)
    ]
    count = sum(parameter.numel() for parameter in model.parameters())
    return Model(count, fmean(map(fmean, kept)), max(map(max, kept)))


def kept_by_autograd(model: Transducer, batch: Batch, chunk: ChunkConfig | None) -> int:
    """Bytes that autograd keeps for the backward pass; the same in every run."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # with the tensor itself, lest another takes its place in memory

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    seed_step(0, 0, 0)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        losses = model(batch.features, batch.feature_lens, tokens_of(batch), chunk, LossSettings())
    del losses
    return sum(size for size, _ in kept.values())


def cache_rows(teacher: ModelConfig, hours: float, epoch_seconds: float) -> Iterator[dict[str, Any]]:
    """What a cache of all layers that training taps by default takes, and of less; all of it is read in each epoch."""
    live = TransducerTeacher(build_model(resolve(replace(teacher, vocab_size=SYNTHETIC_VOCABULARY))))
    layers = default_layers(live.shapes)
    for what, names, tensors in (
        ("tokens alone (--layers none)", [], TENSORS),
        ("without attention (--attention 0)", layers, TENSORS[:1]),
        (f"layers {', '.join(layers)}", layers, TENSORS),
    ):
        columns = columns_to_store(live, names, tensors)
        sizes = {storage: bytes_per_hour(columns, storage) * hours for storage in CACHE_STORAGES}
        shown = [f"{name} {_gb(size)}, {_gb(size / epoch_seconds)} a second" for name, size in sizes.items()]
        yield row(f"disk: cache, {what}", "; ".join(shown), "computed")


def plan(run: Run, student: ModelConfig, teacher: ModelConfig) -> list[dict[str, Any]]:
    """Rows of the plan: what, value, how it is known."""
    ours, theirs, reference = look_at(student), look_at(teacher), look_at(ModelConfig(preset=STATED_PRESET))
    gpu, seconds = GPUS[run.gpu], run.hours * 3600
    fixed = IN_TRAINING * ours.parameters + FROZEN * theirs.parameters
    fitting = [(USABLE * gpu.memory - fixed) / (times * ours.most) for times in (1.0, DISTILLED_MEMORY)]
    suggested = max(0.0, min(fitting[1], LARGEST_BATCH / run.gpus))
    max_duration = run.max_duration or (suggested // 50 * 50 if suggested > 50 else floor(suggested))
    rows = [
        row("speech in an epoch", f"{run.hours:,.0f} h, {seconds / run.utterance_seconds:,.0f} utterances", "stated"),
        row("model", f"{ours.parameters / 1e6:.1f} M parameters; teacher {theirs.parameters / 1e6:.1f} M", "computed"),
        row(
            "memory of a second of speech", f"{ours.most / 1e6:.1f} MB, distilled {DISTILLED_MEMORY} times", "computed"
        ),
        row("memory beside", f"{fixed / 1e9:.1f} of {gpu.memory / 1e9:.0f} GB", "computed, stated"),
        row("--max-duration that fits", f"baseline {fitting[0]:.0f}, distilled {fitting[1]:.0f}", "computed"),
        row("--max-duration of this plan", f"{max_duration:.0f}", "stated" if run.max_duration else "computed"),
    ]
    if fitting[1] < 1:
        return [*rows, row("steps", "the model does not fit", "computed")]
    steps = ceil(seconds / (max_duration * run.gpus))
    rows.append(row("steps", f"{steps:,} an epoch, {steps * run.num_epochs:,} in all", "computed"))
    speed, how = speed_of(run, ours, reference)
    epoch = run.hours / (speed * run.gpus)
    rows.append(row("speech a second on a GPU", f"{speed:,.0f} s", how))
    rows += time_rows(run, epoch, epoch * theirs.kept / ours.kept, how)
    rows.append(row("disk: features", _gb(FEATURES_PER_HOUR * run.hours), "measured: 33 MB an hour"))
    rows += cache_rows(teacher, run.hours, 3600 * epoch * (run.step_costs or STEP_COSTS)[1])
    rows.append(checkpoint_row("teacher", theirs, run.teacher_epochs, steps))
    rows.append(checkpoint_row("baseline, and distilled without its branches", ours, run.num_epochs, steps))
    return rows


def checkpoint_row(what: str, model: Model, epochs: int, steps: int) -> dict[str, str]:
    """What a training of so many steps an epoch leaves with train.py's defaults."""
    default, size = TrainConfig(), IN_CHECKPOINT * model.parameters
    of_steps = min(default.keep_last_k, epochs * steps // default.save_every_n)
    counted = f"{epochs} of epochs, {BEST} best ones, {of_steps} of steps, {_gb(size)} each"
    return row(f"disk: checkpoints, {what}", f"{_gb(size * (epochs + BEST + of_steps))}: {counted}", "computed")


def speed_of(run: Run, ours: Model, reference: Model) -> tuple[float, str]:
    """Seconds of speech a second that a baseline trains on one GPU, and how that is known."""
    if run.speed:
        return run.speed, "measured"
    scale = GPUS[run.gpu].bandwidth / GPUS[STATED_GPU].bandwidth * reference.kept / ours.kept
    return STATED_SPEED * scale, f"computed: {STATED_SPEED:.0f} on a {STATED_GPU}, {STATED}"


def time_rows(run: Run, hours: float, teacher: float, how: str) -> Iterator[dict[str, Any]]:
    """How long each training takes on all GPUs; hours, teacher: an epoch of the baseline and of the teacher."""
    epochs = run.num_epochs
    yield row("teacher", f"{run.teacher_epochs} epochs, {_time(teacher * run.teacher_epochs)}", how)
    yield row("baseline", f"{epochs} epochs, {_time(hours * epochs)}", how)
    known = "measured: --bench" if run.step_costs else MEASURED_COSTS
    for name, cost in zip(STEPS[1:], run.step_costs or STEP_COSTS, strict=True):
        yield row(f"{name}: {cost:.2f} of a baseline's", f"{epochs} epochs, {_time(cost * hours * epochs)}", known)
    yield row("writing the cache", _time(FORWARD * teacher), "computed: a third of a teacher's epoch")


def row(what: str, value: str, how: str) -> dict[str, str]:
    return {"what": what, "value": value, "known": how}


def _gb(size: float) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 1e10 else f"{size / 1e9:.2g} GB"


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} h"
