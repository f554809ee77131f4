"""Taps: what distillation reads inside a transducer.

`Taps` is the models' `TapRecorder` (models/streaming.py).  An encoder that is given `taps` asks it, layer by layer,
`wants(name)` and then calls `record`; the transducer calls `record_lattice` if `wants_lattice`.  Neither knows
anything else of distillation, and a model that is given no taps does nothing extra.

Shapes: N batch, T tap frames (of `stride` encoder frames, i.e. 20 ms each), D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstream.models.streaming import LOG_EPS, pad_to_whole_chunks
from kdstream.models.transducer import Transducer

TENSORS = ("features", "query", "key", "value")  # of a tap


@dataclass(frozen=True)
class Tap:
    """What one layer did with a batch.

    features: (N, T, D), the layer's output at its stack's own rate.
    query, key: (N, T, H * d), as its self-attention projects them, without positions.
    value: (N, T, H * d_v), its first value projection.
    lens: (N,) int64, valid frames.
    stride: encoder frames (20 ms) per tap frame.
    inputs: (N, T, D), what the layer was given; None where nobody kept it.
    """

    features: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    lens: Tensor
    stride: int
    inputs: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor], **changes: Any) -> Tap:
        """The same tap with `function` applied to its tensors."""
        inputs = None if self.inputs is None else function(self.inputs)
        return replace(self, inputs=inputs, **{name: function(getattr(self, name)) for name in TENSORS}, **changes)

    def first(self, frames: int) -> Tap:
        """Its first frames."""
        return self.map(lambda x: x[:, :frames], lens=self.lens.clamp(max=frames))

    def at_stride(self, stride: int) -> Tap:
        """Every `stride` encoder frames, a multiple of its own: means over the valid frames of each group."""
        ratio = stride // self.stride
        if ratio == 1:
            return self
        valid = (~padding_mask(self.lens, self.features.size(1))).unsqueeze(2)  # (N, T, 1)
        counts = _group_sums(valid.to(self.features.dtype), ratio).clamp(min=1.0)
        lens = torch.div(self.lens + ratio - 1, ratio, rounding_mode="floor")
        return self.map(lambda x: _group_sums(x * valid, ratio) / counts, lens=lens, stride=stride)


def _group_sums(x: Tensor, ratio: int) -> Tensor:
    """(N, T, D) to (N, ceil(T / ratio), D)."""
    return F.pad(x, (0, 0, 0, -x.size(1) % ratio)).unflatten(1, (-1, ratio)).sum(dim=2)


def padding_mask(lens: Tensor, frames: int) -> Tensor:
    """(N, T) bool, True at and after lens (N,)."""
    return torch.arange(frames, device=lens.device) >= lens.unsqueeze(1)


@dataclass(frozen=True)
class TapShape:
    """Widths of a tap, and encoder frames (20 ms) per tap frame."""

    features: int
    query: int
    key: int
    value: int
    stride: int


@dataclass(frozen=True)
class Lattice:
    """What the transducer made of a batch: the part of its lattice that the pruned loss keeps.

    encoder_lens, token_lens: (N,) int64, valid output frames (40 ms) and symbols.
    tokens: (N, S) int64, padded with blank.
    decoder_out: (N, S + 1, D), the predictor's.
    ranges: (N, T, R) int64, the symbols kept at each of T output frames.
    logits: (N, T, R, V), the joiner's.
    """

    encoder_lens: Tensor
    tokens: Tensor
    token_lens: Tensor
    decoder_out: Tensor
    ranges: Tensor
    logits: Tensor


class Taps:
    """Collects layers of one forward pass, and its lattice and CTC posteriors where these are asked for.

    Args:
      layers: names "stack.layer", counted from 0; None collects every layer.
      lattice: a CPU takes longer over a loss whose logits are kept.
      ctc: of a model with a CTC head.

    ctc: the posteriors of the CTC head, as a lattice without symbols: one cell a frame.
    wants_full_context: whether the batch is to be encoded in full context too.
    full_context: (N, T, D), then, in output frames.
    """

    lattice: Lattice | None = None
    ctc: Lattice | None = None
    wants_full_context = False
    full_context: Tensor | None = None

    def __init__(self, layers: Iterable[str] | None = None, lattice: bool = False, ctc: bool = False) -> None:
        self.wants_lattice, self.wants_ctc = lattice, ctc
        self._wanted = None if layers is None else frozenset(layers)
        self._taps: dict[str, Tap] = {}

    def wants(self, name: str) -> bool:
        return self._wanted is None or name in self._wanted

    def record(self, name: str, **tensors: Any) -> None:
        """Keeps a layer's tensors, in the autograd graph if there is one.  See `Tap` for the names and shapes."""
        self._taps[name] = Tap(**tensors)

    def record_lattice(self, **tensors: Tensor) -> None:
        """Keeps the transducer's lattice.  See `Lattice` for the names and shapes."""
        self.lattice = Lattice(**tensors)

    def record_ctc(self, encoder_lens: Tensor, log_probs: Tensor) -> None:
        """Keeps the posteriors of the CTC head, (N, T, V), of utterances of encoder_lens (N,) output frames."""
        N, T, _ = log_probs.shape
        self.ctc = Lattice(
            encoder_lens=encoder_lens,
            tokens=encoder_lens.new_zeros(N, 0),
            token_lens=torch.zeros_like(encoder_lens),
            decoder_out=log_probs.new_zeros(N, 1, 0),
            ranges=encoder_lens.new_zeros(N, T, 1),
            logits=log_probs.unsqueeze(2),
        )

    def record_full_context(self, encoder_out: Tensor) -> None:
        """Keeps what the encoder makes of the batch in full context."""
        self.full_context = encoder_out

    def __getitem__(self, name: str) -> Tap:
        return self._taps[name]

    def __contains__(self, name: str) -> bool:
        return name in self._taps

    def names(self) -> list[str]:
        """Recorded layers, in the order in which the encoder ran them."""
        return list(self._taps)


@torch.no_grad()
def tap_shapes(model: Transducer) -> dict[str, TapShape]:
    """Shapes of every layer's tap, by name in running order, from encoding half a second of silence.

    They are seen, not read from an architecture's settings: any encoder that records taps will do.
    """
    parameter = next(model.parameters())
    silence = parameter.new_full((1, 50, model.config.feature_dim), LOG_EPS)
    features, lens = pad_to_whole_chunks(silence, torch.tensor([50], device=parameter.device), model.max_downsampling)
    taps, was_training = Taps(), model.training
    model.eval()  # no dropout and no random layer skipping: the look takes nothing from the random state
    model.encode(features, lens, taps=taps)
    model.train(was_training)
    return {name: _shape(taps[name]) for name in taps.names()}


def _shape(tap: Tap) -> TapShape:
    tensors = (tap.features, tap.query, tap.key, tap.value)
    return TapShape(*(tensor.size(-1) for tensor in tensors), stride=tap.stride)
