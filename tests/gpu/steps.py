"""Models, batches and training steps on tensors alone: no corpus, no tokenizer."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdstream.config.distillation import DistillConfig
from kdstream.config.sections import ModelConfig, TrainConfig
from kdstream.data.batch import Batch
from kdstream.kd.distiller import Distiller
from kdstream.kd.teacher import Teacher, TransducerTeacher
from kdstream.models.presets import resolve
from kdstream.models.scaling import set_batch_count
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer, build_model
from kdstream.training.optim import ScaledAdam
from kdstream.training.precision import Precision
from kdstream.training.step import StudentWithBranches, seed_step

VOCABULARY = 500
CHUNK = ChunkConfig(8, 32)
BATCH_COUNT = 20000.0  # schedules as they stand late in a training
ALL_LOSSES = DistillConfig(kd_relation_scale=0.1, kd_token_scale=0.1, kd_warmup_batches=1)
TINY: dict[str, Any] = dict(
    num_encoder_layers=(1, 1),
    downsampling_factor=(1, 2),
    encoder_dim=(32, 48),
    encoder_unmasked_dim=(24, 32),
    feedforward_dim=(48, 64),
    num_heads=(4,),
    query_head_dim=(8,),
    value_head_dim=(6,),
    pos_head_dim=(4,),
    cnn_module_kernel=(15,),
    frontend_channels=(4, 8, 32),
    frontend_hidden_dim=32,
    decoder_dim=64,
    joiner_dim=64,
)


@dataclass(frozen=True)
class Sizes:
    """How large the checks are.

    presets: to measure; steps: of a training in half precision; repetitions: of what is timed.
    """

    presets: tuple[str, ...] = ("small", "medium", "large")
    seconds: float = 600.0
    utterance_seconds: float = 12.0
    steps: int = 200
    repetitions: int = 5
    tiny: bool = False

    def config(self, preset: str, causal: bool = True) -> ModelConfig:
        config = ModelConfig(preset=preset, causal=causal, vocab_size=VOCABULARY, use_ctc=True)
        return resolve(replace(config, **TINY) if self.tiny else config)


DRY = Sizes(presets=("small",), seconds=4.0, utterance_seconds=2.0, steps=3, repetitions=1, tiny=True)


def build(sizes: Sizes, device: torch.device, preset: str = "small", causal: bool = True, seed: int = 0) -> Transducer:
    torch.manual_seed(seed)
    model = build_model(sizes.config(preset, causal)).to(device)
    set_batch_count(model, BATCH_COUNT)
    return model


def make_batch(device: torch.device, seconds: float, utterance_seconds: float) -> Batch:
    """Noise in utterances of up to `utterance_seconds`, with four tokens a second."""
    count = max(2, int(seconds / utterance_seconds))
    generator = torch.Generator().manual_seed(0)
    lens = torch.linspace(100 * utterance_seconds, 80 * utterance_seconds, count).long()
    features = torch.randn(count, int(lens.max()), 80, generator=generator) * 3 - 6
    tokens = torch.randint(3, VOCABULARY, (count, int(4 * utterance_seconds)), generator=generator)
    names, token_lens = [f"cut-{n}" for n in range(count)], torch.full((count,), tokens.size(1))
    return Batch(features, lens, [""] * count, names, tokens, token_lens).to(device)


class Training:
    """A student with its optimiser, and steps on one batch.

    teacher: None for a baseline.
    """

    def __init__(
        self, sizes: Sizes, device: torch.device, teacher: Teacher | None, train: TrainConfig, preset: str = "small"
    ) -> None:
        self.model = build(sizes, device, preset).train()
        distiller = Distiller(ALL_LOSSES, self.model, teacher).to(device) if teacher is not None else None
        self.module = StudentWithBranches(self.model, distiller, train).train()
        self.optimizer = ScaledAdam(list(self.module.named_parameters()), lr=0.01, clipping_scale=2.0)
        self.precision = Precision(train, device)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with self.precision.autocast():
            return self.module(batch, CHUNK, int(BATCH_COUNT))

    def step(self, number: int, batch: Batch) -> float:
        seed_step(0, number, 0)
        loss, _ = self.loss(batch)
        self.precision.backward(loss)
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()) / len(batch.cut_ids)

    def gradients(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Of a step without anything random: the losses by name, and all gradients as one vector; on the CPU."""
        self.module.eval()
        random.seed(0)
        loss, losses = self.loss(batch)
        loss.backward()
        found = [p.grad.flatten().float().cpu() for p in self.module.parameters() if p.grad is not None]
        self.optimizer.zero_grad(set_to_none=True)
        self.module.train()
        return {name: value.float().cpu() for name, value in losses.items()}, torch.cat(found)


def live_teacher(sizes: Sizes, device: torch.device, preset: str = "small") -> TransducerTeacher:
    return TransducerTeacher(build(sizes, device, preset, causal=False, seed=1))


def cached_teacher(teacher: TransducerTeacher, layers: list[str], batch: Batch, folder: Path) -> Teacher:
    """The same teacher, with what it makes of the batch in files."""
    from kdstream.kd.teacher_cache import CachedTeacher, CacheWriter, fingerprint

    identity = fingerprint(teacher, {})
    CacheWriter(folder, teacher, layers, "float16", identity).add(batch)
    return CachedTeacher(teacher, folder, identity)


def seconds_of(run: Any, device: torch.device, repetitions: int) -> float:
    """The fastest of a few runs, after one that does not count."""
    from kdstream.devices import synchronize

    times = []
    for _ in range(repetitions + 1):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
