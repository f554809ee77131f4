"""A batch of utterances, as data.py makes it and training takes it.

Shapes: N batch, T feature frames of 10 ms, 80 mel bins, S samples at 16 kHz.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

FRAMES_PER_SECOND = 100


@dataclass
class Batch:
    """
    features: (N, T, 80), padded with LOG_EPS.
    feature_lens: (N,) int64.
    texts, cut_ids: N each.
    audio: (N, S) in [-1, 1], padded with zeros; audio_lens (N,) int64.  None where no teacher listens to it.
    """

    features: Tensor
    feature_lens: Tensor
    texts: list[str]
    cut_ids: list[str]
    audio: Tensor | None = None
    audio_lens: Tensor | None = None

    def to(self, device: str | torch.device) -> Batch:
        moved = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    @property
    def duration(self) -> float:
        """Seconds of speech, padding not counted."""
        return float(self.feature_lens.sum()) / FRAMES_PER_SECOND
