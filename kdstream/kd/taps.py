"""Taps: what distillation reads inside an encoder.

An encoder that is given `taps` asks it, layer by layer, `wants(name)` and then calls `record`.  The
encoder knows nothing else of distillation, and one that is given no taps does nothing extra.

Shapes: N batch, T tap frames (of `stride` encoder frames, i.e. 20 ms each), D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional

from torch import Tensor


@dataclass(frozen=True)
class Tap:
    """What one layer did with a batch.

    features: (N, T, D), the layer's output at its stack's own rate.
    query, key: (N, T, H * d), as its self-attention projects them, without positions.
    value: (N, T, H * d_v), its first value projection.
    lens: (N,) int64, valid frames.
    stride: encoder frames (20 ms) per tap frame.
    """

    features: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    lens: Tensor
    stride: int


class Taps:
    """Collects the named layers of one forward pass; None collects every layer.

    Names are "stack.layer", counted from 0.
    """

    def __init__(self, layers: Optional[Iterable[str]] = None) -> None:
        self._wanted = None if layers is None else frozenset(layers)
        self._taps: Dict[str, Tap] = {}

    def wants(self, name: str) -> bool:
        return self._wanted is None or name in self._wanted

    def record(
        self, name: str, *, features: Tensor, query: Tensor, key: Tensor, value: Tensor, lens: Tensor, stride: int
    ) -> None:
        """Keeps a layer's tensors, in the autograd graph if there is one.  See `Tap` for the shapes."""
        self._taps[name] = Tap(features, query, key, value, lens, stride)

    def __getitem__(self, name: str) -> Tap:
        return self._taps[name]

    def __contains__(self, name: str) -> bool:
        return name in self._taps

    def names(self) -> List[str]:
        """Recorded layers, in the order in which the encoder ran them."""
        return list(self._taps)
