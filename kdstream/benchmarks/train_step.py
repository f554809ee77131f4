"""What distillation costs while training: a distilled step against a baseline step, and its parts.

Model, data and distillation settings are those of training.  The teacher has random weights.  Losses and branches are
measured forward and backward; the optimiser's work on the branches is in no part.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from tqdm import tqdm

from kdstream.config.flags import from_args
from kdstream.config.sections import DataConfig, DistillConfig, ModelConfig, TrainConfig
from kdstream.data.batch import Batch
from kdstream.data.module import AsrDataModule
from kdstream.devices import find_device
from kdstream.kd.branches import BranchOutput
from kdstream.kd.distiller import Distiller, output_frames_of
from kdstream.kd.layer_map import LayerPair
from kdstream.kd.losses import apc_loss, feature_loss, frame_weights, relation_loss
from kdstream.kd.taps import Lattice, Tap
from kdstream.kd.teacher import Heard, TransducerTeacher
from kdstream.kd.teacher_cache import CachedTeacher, CacheWriter, fingerprint
from kdstream.models.presets import resolve
from kdstream.models.scaling import set_batch_count
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import build_model
from kdstream.training.optim import ScaledAdam
from kdstream.training.precision import Precision
from kdstream.training.step import StudentWithBranches, seed_step

SYNTHETIC_VOCABULARY = 500
TOKENS_PER_SECOND = 4
BATCH_COUNT = 10000.0  # schedules as they stand in the long middle of a training
LEARNING_RATE = 1e-4  # small, so that a random model stays in range
STEPS = ("baseline step", "distilled step", "distilled step, cached teacher")

Tokens = list[list[int]]


def synthetic_batch(data: DataConfig, seconds: float) -> tuple[Batch, Tokens]:
    """--max-duration seconds of noise in utterances of `seconds`, the shortest a fifth shorter."""
    count = max(1, int(data.max_duration / seconds))
    generator = torch.Generator().manual_seed(0)
    lens = torch.linspace(100 * seconds, 80 * seconds, count).long()
    features = torch.randn(count, int(lens.max()), 80, generator=generator) * 3 - 6
    symbols = (count, int(TOKENS_PER_SECOND * seconds))
    tokens = torch.randint(3, SYNTHETIC_VOCABULARY, symbols, generator=generator).tolist()
    return Batch(features, lens, [""] * count, [str(index) for index in range(count)]), tokens


def real_batch(data: DataConfig) -> tuple[Batch, Tokens, int]:
    """The first training batch of --train-cuts, its tokens, and the size of the vocabulary."""
    module = AsrDataModule(replace(data, num_workers=0), seed=0)
    batch = next(iter(module.train_dataloader(1)))
    return batch, module.tokenizer.encode(batch.texts), module.tokenizer.vocab_size


class Bench:
    """Models, optimisers and one batch; `rows` are the things to be measured, by name."""

    def __init__(self, args: argparse.Namespace, batch: Batch, tokens: Tokens, vocab_size: int) -> None:
        model = replace(from_args(ModelConfig, args), vocab_size=vocab_size)
        teacher = replace(model, causal=False)
        if args.teacher_preset:  # and none of the student's sizes
            teacher = ModelConfig(encoder=model.encoder, preset=args.teacher_preset, vocab_size=vocab_size)
        train = from_args(TrainConfig, args)
        device = find_device(args.device)
        torch.manual_seed(0)
        self.batch, self.tokens = batch.to(device), tokens
        self.chunk = ChunkConfig(model.chunk_size[0], model.left_context_frames[0]) if model.causal else None
        self.student = build_model(resolve(model)).to(device).train()
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
        self.rows[STEPS[2]] = self.step(
            Distiller(self.distill_config, self.student, self.cached(teacher, distiller.pairs)).to(device)
        )
        self.rows["teacher forward"] = teacher_forward
        heard, student_taps = teacher_forward(), distiller.student_taps()
        with torch.no_grad(), self.precision.autocast():
            features, lens = self.batch.features, self.batch.feature_lens
            self.student(features, lens, self.tokens, self.chunk, self.train_config, taps=student_taps)
            taps = [pair.align(student_taps[pair.student], heard.layers[pair.teacher]) for pair in self.pairs]
            outputs = [branch(tap) for branch, (tap, _) in zip(distiller.branches, taps, strict=True)]
        students, teachers = [ours for ours, _ in taps], [theirs for _, theirs in taps]
        self.add_parts(distiller, heard, student_taps.lattice, students, teachers, outputs)

    def cached(self, teacher: TransducerTeacher, pairs: list[LayerPair]) -> CachedTeacher:
        """The same teacher with the batch in a cache on disk."""
        self.folder = tempfile.TemporaryDirectory()
        directory, identity = Path(self.folder.name), fingerprint(teacher.model, {})
        layers = sorted({pair.teacher for pair in pairs})
        CacheWriter(directory, teacher, layers, "float16", identity).add(self.batch)
        return CachedTeacher(teacher.model, directory, identity)

    def step(self, distiller: Distiller | None) -> Callable[[], None]:
        """A whole training step: forward, backward, optimiser."""
        module = StudentWithBranches(self.student, distiller, self.train_config).train()
        optimizer = ScaledAdam(list(module.named_parameters()), lr=LEARNING_RATE, clipping_scale=2.0)

        def run() -> None:
            with self.precision.autocast():
                loss, _ = module(self.batch, self.tokens, self.chunk, int(BATCH_COUNT))
            self.precision.backward(loss)
            self.precision.step(optimizer)
            optimizer.zero_grad(set_to_none=True)

        return run

    def add_parts(
        self,
        distiller: Distiller,
        heard: Heard,
        lattice: Lattice,
        students: list[Tap],
        teachers: list[Tap],
        outputs: list[BranchOutput],
    ) -> None:
        """Rows for the branches, for each loss summed over the tapped layers, and for the loss on the lattice.

        Each is forward and backward; what the distiller does without has no row.
        """
        config, frames = self.distill_config, output_frames_of(self.batch.feature_lens)

        def branches() -> list[Tensor]:
            made = [branch(tap.map(leaf)) for branch, tap in zip(distiller.branches, students, strict=True)]
            return [x.float().sum() for out in made for x in out if x is not None]

        def features() -> list[Tensor]:
            return [
                feature_loss(t.features, leaf(out.z), self.frame_weights(t), config.kd_distance)
                for t, out in zip(teachers, outputs, strict=True)
            ]

        def relations() -> list[Tensor]:
            return [
                relation_loss(
                    (t.query, t.key, t.value),
                    [leaf(x) for x in (out.query, out.key, out.value)],
                    self.frame_weights(t),
                    config.kd_relation_heads,
                )
                for t, out in zip(teachers, outputs, strict=True)
            ]

        def apc() -> list[Tensor]:
            return [
                apc_loss(t.features, leaf(out.r), t.lens, frames, config.kd_apc_shift, config.kd_distance)
                for t, out in zip(teachers, outputs, strict=True)
            ]

        def tokens() -> list[Tensor]:
            return [distiller.token_loss(heard, replace(lattice, logits=leaf(lattice.logits)))]

        parts = {
            "branches": (branches, self.pairs),
            "feature loss": (features, "feature_loss" in distiller.scales),
            "relation loss": (relations, "relation_loss" in distiller.scales),
            "apc loss": (apc, "apc_loss" in distiller.scales),
            "token loss": (tokens, "token_loss" in distiller.scales),
        }
        for name, (part, wanted) in parts.items():
            if wanted:
                self.rows[name] = self.forward_backward(part, distiller)

    def forward_backward(self, part: Callable[[], list[Tensor]], distiller: Distiller) -> Callable[[], None]:
        def run() -> None:
            with self.precision.autocast():
                losses = part()
            torch.stack(losses).sum().backward()
            distiller.zero_grad(set_to_none=True)

        return run

    def frame_weights(self, tap: Tap) -> Tensor:
        return frame_weights(tap.lens, tap.features.size(1), output_frames_of(self.batch.feature_lens))

    def run(self, name: str, repetition: int) -> None:
        seed_step(0, repetition, 0)  # the same dropout, layer skipping and balancing in every row
        self.rows[name]()
        if self.batch.features.is_cuda:
            torch.cuda.synchronize()


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


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
