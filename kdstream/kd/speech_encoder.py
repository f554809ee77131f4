"""Teachers that were trained without our text: encoders of other projects that listen to samples.

They write no tokens; feature, relation and prediction losses need none.  Layers are "0.0", "0.1", ... from the bottom
up.  What is special to a project stands in torchaudio_teacher.py and transformers_teacher.py.

Their frames are fitted to ours by the middles, which follow from kernels and strides (`FrameGrid`).  The middle of our
encoder frame t lies 45 + 20 t ms into the utterance.

  - Frames of 40, 60, ... ms stand for 2, 3, ... of ours: the layer has that stride.  Other frames are fitted to the
    nearest such length.
  - Where a frame of that length holds a whole number of theirs, it gets their mean: of those whose common middle is
    nearest to its own.
  - Otherwise it gets the linear interpolation between the two of theirs whose middles lie around its own.
  - Before their first frame and behind their last one, these are taken.

Shapes: N batch, T frames of ours and T' of theirs, S samples at 16 kHz, D width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kdstream.data.batch import Batch
from kdstream.kd.taps import TENSORS, Tap, TapShape
from kdstream.kd.teacher import Heard, Teacher
from kdstream.units import ENCODER_FRAME_MS, SAMPLE_RATE, SUBSAMPLING_LOSS

FIRST_MIDDLE_MS = 45  # of our encoder frames; three convolutions of the front end read 9 feature frames


class FrameGrid(NamedTuple):
    """Where the frames of a model lie: their distance, and the middle of the first one, both in ms."""

    frame_ms: float
    first_ms: float

    def through(self, conv: nn.Conv1d) -> FrameGrid:
        """The grid of what a convolution makes of such frames."""
        reach = conv.dilation[0] * (conv.kernel_size[0] - 1)
        padding = (
            conv.padding[0] if not isinstance(conv.padding, str) else {"valid": 0, "same": reach / 2}[conv.padding]
        )
        return FrameGrid(self.frame_ms * conv.stride[0], self.first_ms + self.frame_ms * (reach / 2 - float(padding)))

    @property
    def stride(self) -> int:
        """Encoder frames (20 ms) for which one of these frames stands."""
        return max(1, round(self.frame_ms / ENCODER_FRAME_MS))

    def fit(self, x: Tensor, frames: int) -> Tensor:
        """(T', D) on this grid to (`frames`, D) at `stride`; the module's docstring says how."""
        ours_ms = self.stride * ENCODER_FRAME_MS
        middle_ms = FIRST_MIDDLE_MS + (self.stride - 1) * ENCODER_FRAME_MS / 2
        per_frame = round(ours_ms / self.frame_ms)
        first = (middle_ms - self.first_ms) / self.frame_ms  # of ours, counted in theirs
        t = torch.arange(frames, device=x.device)
        if math.isclose(per_frame * self.frame_ms, ours_ms):
            begin = round(first - (per_frame - 1) / 2)
            places = begin + per_frame * t.unsqueeze(1) + torch.arange(per_frame, device=x.device)  # (T, per_frame)
            return x[places.clamp(0, len(x) - 1)].mean(dim=1)
        place = (first + t * (ours_ms / self.frame_ms)).clamp(0, len(x) - 1)
        before = place.floor().long()
        return torch.lerp(x[before], x[(before + 1).clamp(max=len(x) - 1)], (place - before).to(x).unsqueeze(1))


class TappedLayer(NamedTuple):
    """A layer of an encoder, and what makes its queries, keys and values of the input of its self-attention.

    parts: modules that run as the layer does.  None where nothing but `project` computes them.
    """

    layer: nn.Module
    attention: nn.Module
    parts: tuple[nn.Module, ...] | None
    project: Callable[[Tensor], Sequence[Tensor]] | None = None


class SpeechEncoderTeacher(Teacher):
    """An encoder that hears samples.

    Args:
      encoder: on its device, frozen.
      layers: of it, from the bottom up.
      grid: of their frames.
      settings: what its output depends on besides its parameters.

    hears_together: whether a batch is heard at once; otherwise utterances run one by one, and none hears padding.
    """

    needs_audio = True
    can_be_stored = True
    hears_together = False

    def __init__(
        self, encoder: nn.Module, layers: Sequence[TappedLayer], grid: FrameGrid, settings: Mapping[str, Any]
    ) -> None:
        self.model: Any = encoder
        self.grid, self.settings = grid, settings
        self.device = next(encoder.parameters()).device
        self.layers = {f"0.{i}": layer for i, layer in enumerate(layers)}
        taps = self.taps_of([torch.zeros(SAMPLE_RATE)], list(self.layers))
        self.shapes: dict[str, TapShape] = {
            name: TapShape(*(x.size(-1) for x in tensors), stride=grid.stride) for name, tensors in taps.items()
        }

    @abstractmethod
    def run(self, utterances: Sequence[Tensor]) -> None:
        """Encodes the samples (S,), on the host, of some utterances: of one unless it `hears_together`."""

    def listen(self, batch: Batch, layers: Iterable[str]) -> Heard:
        names, host = list(layers), batch.host
        if host.audio is None or host.audio_lens is None:
            raise ValueError("the batch was read without audio; see Teacher.needs_audio")
        samples = host.audio_lens.tolist()
        self.check_lengths(batch.cut_ids, samples)
        audio = [whole[:n] for whole, n in zip(host.audio, samples, strict=True)]
        groups = [audio] if self.hears_together else [[samples] for samples in audio]
        heard = [self.taps_of(group, names) for group in groups]
        lens = torch.div(self.encoder_frames(host.feature_lens), self.grid.stride, rounding_mode="floor")
        there = batch.feature_lens.device
        taps = {}
        for name in names:
            tensors = []
            for i in range(len(TENSORS)):
                rows = [row for taps_of_group in heard for row in taps_of_group[name][i]]
                fitted = [self.grid.fit(row.float(), frames) for row, frames in zip(rows, lens.tolist(), strict=True)]
                tensors.append(pad_sequence(fitted, batch_first=True).to(there))
            taps[name] = Tap(*tensors, lens=lens.to(there), stride=self.grid.stride)
        return Heard(taps)

    def check_lengths(self, cut_ids: Sequence[str], samples: Sequence[int]) -> None:
        """Raises UserError where a cut of so many samples is too long for the encoder."""
        return

    @torch.no_grad()
    def taps_of(self, utterances: Sequence[Tensor], names: Sequence[str]) -> dict[str, list[Tensor]]:
        """Features, query, key and value (N, T', D) of the named layers for some utterances (S,)."""
        seen: dict[str, list[Tensor]] = {}
        with ExitStack() as hooks, torch.autocast(self.device.type, enabled=False):
            for name in names:
                record_outputs(self.layers[name], seen.setdefault(name, []), hooks)
            self.run(utterances)
        return {name: [seen[name][-1], *seen[name][:-1]] for name in names}

    def encoder_frames(self, feature_lens: Tensor) -> Tensor:
        """As many as the student has, rounded up to whole frames of the layers."""
        frames = torch.div(feature_lens - SUBSAMPLING_LOSS, 2, rounding_mode="floor")
        return frames + (-frames) % self.grid.stride

    def state_dict(self) -> dict[str, Tensor]:
        """In float16, which is the same wherever it runs."""
        weights = self.model.state_dict()
        return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def record_outputs(tapped: TappedLayer, seen: list[Tensor], hooks: ExitStack) -> None:
    """Lets a layer append query, key, value and its output, each (N, T', D), to `seen` as it runs."""

    def keep(_: nn.Module, __: tuple, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    def project(_: nn.Module, arguments: tuple) -> None:
        assert tapped.project is not None
        seen.extend(tapped.project(arguments[0]))

    if tapped.parts is None:
        hooks.callback(tapped.attention.register_forward_pre_hook(project).remove)
    for module in (*(tapped.parts or ()), tapped.layer):
        hooks.callback(module.register_forward_hook(keep).remove)
