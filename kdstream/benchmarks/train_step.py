"""What distillation costs while training: a distilled step against a baseline step, and its parts.

Model, data and distillation settings are those of training.  The teacher has random weights.  Losses and branches are
measured forward and backward; the optimiser's work on the branches is in no part.  A cache is read by the processes
that load data, so reading it is in no step and has a row of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from tqdm import tqdm

from kdstream.benchmarks.names import BOTH_MODES, STEPS, SYNTHETIC_VOCABULARY
from kdstream.config.distillation import DistillConfig
from kdstream.config.flags import from_args
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig
from kdstream.data.batch import Batch
from kdstream.data.module import AsrDataModule
from kdstream.devices import find_device, synchronize
from kdstream.kd.branches import BranchOutput
from kdstream.kd.consistency import BothModes, both_modes
from kdstream.kd.distiller import Distiller, output_frames_of
from kdstream.kd.layer_map import LayerPair
from kdstream.kd.loss_table import ComparedLayers, LatticeLoss, LayerLoss
from kdstream.kd.taps import Taps
from kdstream.kd.teacher import Heard, TransducerTeacher
from kdstream.kd.teacher_cache import CachedTeacher, CacheWriter, fingerprint
from kdstream.models.presets import check_preset, resolve
from kdstream.models.rnnt_loss import LossSettings
from kdstream.models.scaling import set_batch_count
from kdstream.models.transducer import build_model
from kdstream.training.optim import ScaledAdam
from kdstream.training.precision import Precision
from kdstream.training.step import StudentWithBranches, chunk_choices, seed_step, tokens_of, validation_chunk

TOKENS_PER_SECOND = 4
BATCH_COUNT = 10000.0  # schedules as they stand in the long middle of a training
LEARNING_RATE = 1e-4  # small, so that a random model stays in range


def synthetic_batch(data: DataConfig, seconds: float, vocab_size: int = SYNTHETIC_VOCABULARY) -> Batch:
    """--max-duration seconds of noise in utterances of `seconds`, the shortest a fifth shorter."""
    count = max(1, int(data.max_duration / seconds))
    generator = torch.Generator().manual_seed(0)
    lens = torch.linspace(100 * seconds, 80 * seconds, count).long()
    features = torch.randn(count, int(lens.max()), 80, generator=generator) * 3 - 6
    symbols = (count, int(TOKENS_PER_SECOND * seconds))
    tokens = torch.randint(3, vocab_size, symbols, generator=generator)
    names = [str(index) for index in range(count)]
    return Batch(features, lens, [""] * count, names, tokens, torch.full((count,), symbols[1]))


def real_batch(data: DataConfig) -> tuple[Batch, int]:
    """The first training batch of --train-cuts, and the size of the vocabulary."""
    module = AsrDataModule(replace(data, num_workers=0), seed=0)
    return next(iter(module.train_dataloader(1))), module.tokenizer.vocab_size


def teacher_of(student: ModelConfig, preset: str) -> ModelConfig:
    """The full-context teacher of --teacher-preset, with none of the student's sizes; "" is one of these sizes.

    Raises UserError for a preset that the student's encoder lacks.
    """
    if not preset:
        return replace(student, causal=False)
    check_preset(student.encoder, preset, "teacher_preset")
    return ModelConfig(encoder=student.encoder, preset=preset, vocab_size=student.vocab_size)


class Bench:
    """Models, optimisers and one batch; `rows` are the things to be measured, by name."""

    def __init__(self, args: argparse.Namespace, batch: Batch, vocab_size: int) -> None:
        model = replace(from_args(ModelConfig, args), vocab_size=vocab_size)
        teacher = teacher_of(model, args.teacher_preset)
        train = from_args(TrainConfig, args)
        device = find_device(args.device)
        torch.manual_seed(0)
        self.batch = batch.to(device)
        self.student = build_model(resolve(model)).to(device).train()
        self.chunk = validation_chunk(chunk_choices(model, self.student))
        set_batch_count(self.student, BATCH_COUNT)
        self.precision = Precision(train, device)
        self.train_config, self.distill_config = train, from_args(DistillConfig, args)
        self.teacher_config = resolve(teacher)
        self.rows: dict[str, Callable[[], object]] = {STEPS[0]: self.step(None)}

    def add_distillation(self) -> None:
        """Builds teacher and branches, and the inputs of the parts: taps and branch outputs without a graph."""
        device = self.batch.features.device
        teacher = TransducerTeacher(build_model(self.teacher_config).to(device))
        distiller = Distiller(self.distill_config, self.student, teacher).to(device)
        self.pairs = distiller.pairs

        def teacher_forward() -> Heard:
            with self.precision.autocast():
                return teacher.listen(self.batch, [pair.teacher for pair in self.pairs])

        self.rows[STEPS[1]] = self.step(distiller)
        cached = Distiller(self.distill_config, self.student, self.cached(teacher, distiller.pairs)).to(device)
        self.rows[STEPS[2]] = self.step(cached)
        self.rows["reading the cache"] = partial(stored_of, self.batch, cached)
        if self.distill_config.runs_both_modes:
            self.rows[BOTH_MODES] = self.step(None, both_modes(self.distill_config, self.student))
        self.rows["teacher forward"] = teacher_forward
        heard, student_taps = teacher_forward(), distiller.student_taps()
        features, lens = self.batch.features, self.batch.feature_lens
        with torch.no_grad(), self.precision.autocast():
            self.student(features, lens, tokens_of(self.batch), self.chunk, LossSettings(), taps=student_taps)
            pairs = list(distiller.compare_layers(heard, student_taps, output_frames_of(lens)))
        self.add_parts(distiller, pairs, heard, student_taps)

    def cached(self, teacher: TransducerTeacher, pairs: list[LayerPair]) -> CachedTeacher:
        """The same teacher with the batch in a cache on disk."""
        self.folder = tempfile.TemporaryDirectory()
        directory, identity = Path(self.folder.name), fingerprint(teacher, {})
        layers = sorted({pair.teacher for pair in pairs})
        CacheWriter(directory, teacher, layers, "float16", identity).add(self.batch)
        return CachedTeacher(teacher, directory, identity)

    def step(self, distiller: Distiller | None, modes: BothModes | None = None) -> Callable[[], None]:
        """A whole training step: forward, backward, optimiser."""
        module = StudentWithBranches(self.student, distiller, self.train_config, modes=modes).train()
        batch = self.batch if distiller is None else stored_of(self.batch, distiller)
        optimizer = ScaledAdam(list(module.named_parameters()), lr=LEARNING_RATE, clipping_scale=2.0)

        def run() -> None:
            with self.precision.autocast():
                loss, _ = module(batch, self.chunk, int(BATCH_COUNT))
            self.precision.backward(loss)
            self.precision.step(optimizer)
            optimizer.zero_grad(set_to_none=True)

        return run

    def add_parts(self, distiller: Distiller, pairs: list[ComparedLayers], heard: Heard, student_taps: Taps) -> None:
        """Rows for the branches and for each loss, those between layers summed over the tapped layers.

        Each is forward and backward; what the distiller does without has no row.
        """

        def branches() -> list[Tensor]:
            made = [branch(pair.student.map(leaf)) for branch, pair in zip(distiller.branches, pairs, strict=True)]
            return [x.float().sum() for out in made for x in out if x is not None]

        def of_layers(loss: LayerLoss) -> list[Tensor]:
            return [loss.compute(pair._replace(branch=leaves_of(pair.branch))) for pair in pairs]

        def of_lattice(loss: LatticeLoss) -> list[Tensor]:
            lattices = distiller.compare_lattices(loss.compares, heard, student_taps)
            student = replace(lattices.student, logits=leaf(lattices.student.logits))
            return [loss.compute(replace(lattices, student=student))]

        parts: dict[str, Callable[[], list[Tensor]]] = {"branches": branches} if pairs else {}
        parts.update({f"{name} loss": partial(of_layers, loss) for name, loss in distiller.losses.of_layers.items()})
        parts.update({f"{name} loss": partial(of_lattice, loss) for name, loss in distiller.losses.of_lattice.items()})
        for name, part in parts.items():
            self.rows[name] = self.forward_backward(part, distiller)

    def forward_backward(self, part: Callable[[], list[Tensor]], distiller: Distiller) -> Callable[[], None]:
        def run() -> None:
            with self.precision.autocast():
                losses = part()
            torch.stack(losses).sum().backward()
            distiller.zero_grad(set_to_none=True)

        return run

    def run(self, name: str, repetition: int) -> None:
        seed_step(0, repetition, 0)  # the same dropout, layer skipping and balancing in every row
        self.rows[name]()
        synchronize(self.batch.features.device)


def stored_of(batch: Batch, distiller: Distiller) -> Batch:
    """The batch with what the processes that load data read of a cache, if the teacher is a cached one."""
    read = distiller.read_stored
    return batch if read is None else replace(batch, stored=read(batch).to(batch.features.device))


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def leaves_of(branch: BranchOutput) -> BranchOutput:
    return branch._replace(**{name: leaf(x) for name, x in branch._asdict().items() if x is not None})


def measure_times(bench: Bench, repetitions: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of each row."""
    times: dict[str, list[float]] = {name: [] for name in bench.rows}
    for repetition in tqdm(range(repetitions + 1), desc="repetitions", disable=None):
        for name in bench.rows:
            started = clock()
            bench.run(name, repetition)
            if repetition > 0:
                times[name].append(1000 * (clock() - started))
    return {name: median(values) for name, values in times.items()}


def table(times: dict[str, float], memory: dict[str, float]) -> list[dict[str, object]]:
    """Rows of the table, with everything over the baseline step."""
    rows: list[dict[str, object]] = []
    for name, ms in times.items():
        row = {"part": name, "ms": round(ms), "of the baseline step": ms / times[STEPS[0]]}
        if memory:
            row.update({"peak MB": round(memory[name]), "of the baseline step's": memory[name] / memory[STEPS[0]]})
        rows.append(row)
    return rows
