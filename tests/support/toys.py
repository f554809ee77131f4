"""A loss, an encoder, a teacher, a search and a transform as another project adds them: one table entry each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.checkpoints.store import load_weights
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import flag
from kdstream.config.sections import DataConfig, ModelConfig
from kdstream.data.augment import TRANSFORMS, Epoch, TransformSpec
from kdstream.data.batch import Batch, Utterance
from kdstream.decoding.search import Result, Search, joiner_log_probs, predict
from kdstream.decoding.settings import add_search
from kdstream.kd.loss_table import LOSSES, ComparedLayers, LayerLoss
from kdstream.kd.taps import Tap, TapShape
from kdstream.kd.teacher import Heard, Teacher
from kdstream.kd.teachers import TEACHERS, TeacherSpec
from kdstream.models.encoders import ENCODERS, TINY_ENDS, EncoderSpec
from kdstream.models.streaming import (
    OUTPUT_DOWNSAMPLING,
    SUBSAMPLING_LOSS,
    Cache,
    ChunkConfig,
    StreamingEncoder,
    TapRecorder,
)

STRIDE = 2  # encoder frames per frame of the toy teacher


def toy_loss(pair: ComparedLayers) -> Tensor:
    """sum_t w_t mean |h_t - p_t|^power, on the streaming features themselves."""
    distance = (pair.teacher.features - pair.branch.p).abs().pow(pair.config.kd_toy_power).mean(dim=2)
    return (pair.frame_weights() * distance).sum()


def add_loss() -> None:
    LOSSES.add(
        "toy",
        LayerLoss(toy_loss),
        kd_toy_scale=flag(0.0, "Weight of the toy loss.", minimum=0),
        kd_toy_power=flag(1.0, "Power of the distance in the toy loss.", above=0),
    )


class ToyEncoder(StreamingEncoder):
    """Layers of causal convolutions at 40 ms; what a stream caches is the past of each."""

    def __init__(self, config: ModelConfig) -> None:
        (dim,) = config.encoder_dim
        super().__init__(config, dim, OUTPUT_DOWNSAMPLING)
        count = config.num_encoder_layers[0]
        self.layers = nn.ModuleList(nn.Conv1d(dim, dim, config.toy_kernel) for _ in range(count))

    @staticmethod
    def input_dim(config: ModelConfig) -> int:
        return config.encoder_dim[0] // OUTPUT_DOWNSAMPLING

    @staticmethod
    def streaming_parameters(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(state_dict)

    def cache_shapes(self, chunk: ChunkConfig) -> list[tuple[int, int]]:
        return [(self.config.toy_kernel - 1, self.output_dim)] * len(self.layers)

    def forward(
        self,
        x: Tensor,
        x_lens: Tensor,
        chunk: ChunkConfig | None = None,
        caches: list[Tensor] | None = None,
        processed: Tensor | None = None,
        taps: TapRecorder | None = None,
    ) -> tuple[Tensor, Tensor, list[Cache]]:
        if chunk is not None:
            self.check_chunk(chunk)
        x = F.pad(x, (0, 0, 0, int(x.size(1)) % OUTPUT_DOWNSAMPLING)).unflatten(1, (-1, OUTPUT_DOWNSAMPLING)).flatten(2)
        lens = torch.div(x_lens + 1, OUTPUT_DOWNSAMPLING, rounding_mode="floor")
        new_caches: list[Cache] = []
        for i, layer in enumerate(self.layers):
            history = self.config.toy_kernel - 1
            past = F.pad(x, (0, 0, history, 0)) if caches is None else torch.cat([caches[i], x], dim=1)
            new_caches.append(None if caches is None else past[:, -history:])
            x = x + layer(past.transpose(1, 2)).transpose(1, 2).tanh()
            if taps is not None and taps.wants(f"0.{i}"):
                taps.record(f"0.{i}", features=x, query=x, key=x, value=x, lens=lens, stride=OUTPUT_DOWNSAMPLING)
        return x, lens, new_caches


def add_encoder() -> None:
    presets = {"tiny": dict(TINY_ENDS, num_encoder_layers=(2,), encoder_dim=(32,))}
    ENCODERS.add(
        "toy",
        EncoderSpec(ToyEncoder, presets, per_stack=("encoder_dim",)),
        toy_kernel=flag(3, "Frames (40 ms) that a toy layer sees.", minimum=2),
    )


class ToyTeacher(Teacher):
    """A matrix (80, D) that the features pass, two by two."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.shapes = {"0.0": TapShape(*[weight.size(1)] * 4, stride=STRIDE)}

    @torch.no_grad()
    def listen(self, batch: Batch, layers: Iterable[str]) -> Heard:
        lens = torch.div(batch.feature_lens - SUBSAMPLING_LOSS, 2 * STRIDE, rounding_mode="floor")
        features = batch.features[:, :: 2 * STRIDE] @ self.weight
        return Heard({name: Tap(*[features] * 4, lens=lens, stride=STRIDE) for name in layers})


def load_toy_teacher(config: ExperimentConfig, device: torch.device) -> Teacher:
    weights = load_weights(config.distill.teacher_checkpoint)
    return ToyTeacher(config.distill.teacher_toy_gain * weights["weight"].to(device))


def add_teacher() -> None:
    TEACHERS.add(
        "toy",
        TeacherSpec(load_toy_teacher, ToyTeacher),
        teacher_toy_gain=flag(1.0, "What the toy teacher multiplies its output by."),
    )


@dataclass
class SpokenState:
    """The results of N streams so far."""

    spoken: list[Result]
    frames: list[int]

    @classmethod
    def stack(cls, states: Sequence[SpokenState]) -> SpokenState:
        return cls(
            [result for state in states for result in state.spoken], [n for state in states for n in state.frames]
        )

    def row(self, n: int) -> SpokenState:
        return SpokenState(self.spoken[n : n + 1], self.frames[n : n + 1])

    def results(self) -> list[Result]:
        return self.spoken


@dataclass(frozen=True)
class SparseSearch(Search[SpokenState]):
    """Looks at every n-th frame only, and never at what was said before."""

    method = "sparse_search"
    sparse_step: int = flag(2, "Frames from one at which sparse_search looks to the next.")

    def start(self, model, num_streams):
        return SpokenState([Result([], [], 0.0)] * num_streams, [0] * num_streams)

    @torch.no_grad()
    def advance(self, model, encoder_out, encoder_out_lens, state):
        context = torch.tensor([[-1] * (model.config.context_size - 1) + [model.config.blank_id]])
        best, tokens = joiner_log_probs(model, model.joiner.encoder_proj(encoder_out), predict(model, context)).max(
            dim=2
        )
        after = []
        for n, result in enumerate(state.spoken):
            for t in range(int(encoder_out_lens[n])):
                time, token = state.frames[n] + t, int(tokens[n, t])
                if time % self.sparse_step == 0 and token != model.config.blank_id:
                    result = replace(result, tokens=[*result.tokens, token], timestamps=[*result.timestamps, time])
            after.append(result)
        frames = [done + more for done, more in zip(state.frames, encoder_out_lens.tolist(), strict=True)]
        return SpokenState(after, frames)


def add_sparse_search() -> None:
    add_search(SparseSearch)


def louder(config: DataConfig, epoch: Epoch) -> Callable[[Utterance], Utterance]:
    """Adds --toy-gain to every feature, and more in every epoch."""

    def change(utterance: Utterance) -> Utterance:
        return utterance._replace(features=utterance.features + config.toy_gain * epoch.epoch)

    return change


def add_transform() -> None:
    TRANSFORMS.add("louder", TransformSpec("toy_gain", "utterance", louder), toy_gain=flag(0.0, "Added to features."))
