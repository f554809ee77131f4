"""A batch of utterances, as the loaders make it and training takes it.

Shapes: N batch, T feature frames of 10 ms, 80 mel bins, U tokens, S samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdstream.data.tokenizer import BLANK_ID
from kdstream.models.streaming import LOG_EPS
from kdstream.units import FRAMES_PER_SECOND

Item = TypeVar("Item")


@dataclass
class Batch:
    """
    features: (N, T, 80), padded with LOG_EPS.
    second_view: (N, T, 80), the same with other masks; None without --cr-ctc-scale.
    feature_lens: (N,) int64.
    texts, cut_ids: N each.
    tokens: (N, U) int64 of the texts, padded with blank; token_lens (N,) int64.  None where nobody learns them.
    audio: (N, S) in [-1, 1], padded with zeros; audio_lens (N,) int64.  None where no teacher listens to it.
    stored: (N, F), what a teacher's cache holds of the utterances; None where no cache is read.
    means: N, see `Utterance`; None where no cache is read.
    clean_features: (N, T, 80), without masks and noise; None where no teacher listens to them, or there are none.
    origin: what this batch is a copy of, on another device.
    """

    features: Tensor
    feature_lens: Tensor
    texts: list[str]
    cut_ids: list[str]
    tokens: Tensor | None = None
    token_lens: Tensor | None = None
    audio: Tensor | None = None
    audio_lens: Tensor | None = None
    clean_features: Tensor | None = None
    second_view: Tensor | None = None
    stored: Tensor | None = None
    means: list[float | None] | None = None
    origin: Batch | None = None

    def to(self, device: str | torch.device) -> Batch:
        """A copy on `device`.  If this batch is pinned, its copy is on the way when this returns."""
        return self._map(lambda x: x.to(device, non_blocking=True), origin=self.host)

    def pin_memory(self) -> Batch:
        """A copy in memory from which a GPU copies while the CPU goes on; a DataLoader calls it."""
        return self._map(Tensor.pin_memory)

    @property
    def host(self) -> Batch:
        """The batch as it was loaded: its lengths can be read without waiting for a GPU."""
        return self.origin or self

    def _map(self, function: Callable[[Tensor], Tensor], **changes: Batch) -> Batch:
        changed = {name: function(x) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **changed, **changes)

    def views(self) -> list[Batch]:
        """The batch once for each view of its utterances."""
        if self.second_view is None:
            return [self]
        return [replace(self, features=features, second_view=None) for features in (self.features, self.second_view)]

    def for_teacher(self, of_samples: bool = False) -> list[Batch]:
        """What a teacher hears: the clean features, where the batch has them, or else what the student hears.

        Both views, then, unless the teacher reads a cache or is one `of_samples`: in these there are no masks.
        """
        if self.clean_features is not None:
            return [replace(self, features=self.clean_features)]
        return self.views() if self.stored is None and not of_samples else [self]

    @property
    def duration(self) -> float:
        """Seconds of speech, padding not counted."""
        return float(self.host.feature_lens.sum()) / FRAMES_PER_SECOND


class Utterance(NamedTuple):
    """One cut, read: `features` (T, 80), and where they are asked for `audio` (S,), `clean` features (T, 80) and the
    `second` view of the features (T, 80).

    mean: `mean_of` the features before masks; None where noise was mixed in, and where it is not asked for.
    """

    cut_id: str
    text: str
    features: Tensor
    audio: Tensor | None = None
    clean: Tensor | None = None
    second: Tensor | None = None
    mean: float | None = None


def mean_of(features: Tensor) -> float:
    """Of (T, 80) log mel energies: what tells other speech of the same length."""
    return features.double().mean().item()


def padded(tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens of N utterances as (N, U) int64, padded with blank, and their numbers (N,)."""
    sequences = [torch.tensor(ids, dtype=torch.int64) for ids in tokens]
    lens = torch.tensor([len(ids) for ids in tokens], dtype=torch.int64)
    return pad_sequence(sequences, batch_first=True, padding_value=BLANK_ID), lens


def make_batch(utterances: Sequence[Utterance], tokens: Sequence[Sequence[int]] | None = None) -> Batch:
    """Pads utterances to the longest of them; `tokens` are those of their texts."""
    batch = Batch(
        padded_features([u.features for u in utterances]),
        torch.tensor([len(u.features) for u in utterances], dtype=torch.int64),
        [u.text for u in utterances],
        [u.cut_id for u in utterances],
    )
    if tokens is not None:
        batch.tokens, batch.token_lens = padded(tokens)
    audio = [u.audio for u in utterances if u.audio is not None]
    if audio:
        batch.audio = pad_sequence(audio, batch_first=True)
        batch.audio_lens = torch.tensor([len(samples) for samples in audio], dtype=torch.int64)
    clean = [u.clean for u in utterances if u.clean is not None]
    if clean:
        batch.clean_features = padded_features(clean)
    second = [u.second for u in utterances if u.second is not None]
    if second:
        batch.second_view = padded_features(second)
    return batch


def filled(items: Iterable[Item], most: float, length: Callable[[Item], float]) -> Iterator[list[Item]]:
    """Batches of consecutive items, each of at most the length `most`, padding included, or of one item."""
    batch: list[Item] = []
    longest = 0.0
    for item in items:
        longest = max(longest, length(item))
        if batch and longest * (len(batch) + 1) > most:
            yield batch
            batch, longest = [], length(item)
        batch.append(item)
    if batch:
        yield batch


def padded_features(features: list[Tensor]) -> Tensor:
    """(N, T, 80) of N utterances' features."""
    return pad_sequence(features, batch_first=True, padding_value=LOG_EPS)
