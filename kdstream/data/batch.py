"""A batch of utterances, as the loaders make it and training takes it.

Shapes: N batch, T feature frames of 10 ms, 80 mel bins, S samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdstream.models.streaming import LOG_EPS
from kdstream.units import FRAMES_PER_SECOND


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


class Utterance(NamedTuple):
    """One cut, read: `features` (T, 80), and `audio` (S,) where it is asked for."""

    cut_id: str
    text: str
    features: Tensor
    audio: Tensor | None = None


def make_batch(utterances: Sequence[Utterance]) -> Batch:
    """Pads utterances to the longest of them."""
    batch = Batch(
        pad_sequence([u.features for u in utterances], batch_first=True, padding_value=LOG_EPS),
        torch.tensor([len(u.features) for u in utterances], dtype=torch.int64),
        [u.text for u in utterances],
        [u.cut_id for u in utterances],
    )
    audio = [u.audio for u in utterances if u.audio is not None]
    if audio:
        batch.audio = pad_sequence(audio, batch_first=True)
        batch.audio_lens = torch.tensor([len(samples) for samples in audio], dtype=torch.int64)
    return batch
