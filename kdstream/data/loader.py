"""Batches of cuts to batches of tensors, in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdstream.data.augment import Augmentation
from kdstream.data.batch import Batch, Utterance, make_batch
from kdstream.data.cuts import iterate
from kdstream.data.reading import read_audio, read_utterance
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError


class AsrDataset(Dataset):
    """Maps the cuts of one batch to a `Batch`, or to the UserError that reading them met.

    The error travels as a value because a DataLoader would wrap an exception raised in its worker
    in a traceback; `BatchLoader` raises it.
    """

    def __init__(
        self,
        from_audio: bool,
        extractor: str,
        augmentation: Augmentation | None = None,
        with_audio: bool = False,
        tokenizer: Tokenizer | None = None,
        with_clean: bool = False,
        read_stored: Callable[[Batch], Tensor] | None = None,
    ) -> None:
        self.from_audio = from_audio
        self.extractor = extractor
        self.augmentation = augmentation
        self.with_audio, self.with_clean, self.read_stored = with_audio, with_clean, read_stored
        self.tokenizer = tokenizer

    def __getitem__(self, cuts: Iterable[Cut]) -> Batch | UserError:
        try:
            utterances = [self._read(cut) for cut in cuts]
            tokens = self.tokenizer and self.tokenizer.encode([utterance.text for utterance in utterances])
            batch = make_batch(utterances, tokens)
            return batch if self.read_stored is None else replace(batch, stored=self.read_stored(batch))
        except UserError as error:
            return error

    def _read(self, cut: Cut) -> Utterance:
        clean = cut
        if self.augmentation is None:
            utterance = read_utterance(cut, self.from_audio, self.extractor)
        else:
            cut = self.augmentation.change_cut(clean, self.from_audio)
            utterance = read_utterance(cut, self.from_audio, self.extractor)
            if self.with_clean:
                unmixed = utterance if cut is clean else read_utterance(clean, self.from_audio, self.extractor)
                utterance = utterance._replace(clean=unmixed.features)
            utterance = self.augmentation.change_utterance(utterance)
        return utterance._replace(audio=read_audio(clean if self.with_clean else cut)) if self.with_audio else utterance


class BatchLoader:
    """Iterates over the `Batch`es of one epoch.  `num_batches` is how many (about, in training)."""

    def __init__(
        self,
        dataset: AsrDataset,
        cut_batches: Iterable[CutSet],
        num_batches: int,
        num_workers: int,
        start_batch: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.cut_batches = cut_batches
        self.num_batches = num_batches
        self.num_workers = num_workers
        self.start_batch = start_batch
        self.pin_memory = pin_memory

    def __iter__(self) -> Iterator[Batch]:
        remaining = islice(self.cut_batches, self.start_batch, None)
        loader = DataLoader(
            self.dataset,
            sampler=Once(remaining),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else starting to iterate would draw from the model's generator
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class Once:
    """An iterator dressed as what DataLoader takes for a sampler."""

    def __init__(self, iterator: Iterator[CutSet]) -> None:
        self.iterator = iterator

    def __iter__(self) -> Iterator[CutSet]:
        return self.iterator


class Bounded:
    """Batches, but in place of one that padding would make much larger than `max_duration`, several that it does not.

    A batch is as large as its longest cut, times the number of its cuts.  Lhotse's samplers stop adding cuts when that
    reaches `max_duration`.  So a long cut that comes last, after many short ones, can make it many times as large.
    """

    MUCH = 1.5  # buckets of like lengths stay below it, and their batches as the sampler makes them

    def __init__(self, batches: Iterable[CutSet], max_duration: float) -> None:
        self.batches, self.max_duration = batches, max_duration

    def __iter__(self) -> Iterator[CutSet]:
        for batch in self.batches:
            cuts = list(iterate(batch))
            if len(cuts) * max(cut.duration for cut in cuts) <= self.MUCH * self.max_duration:
                yield batch
                continue
            cuts.sort(key=lambda cut: -cut.duration)
            while cuts:
                count = max(1, int(self.max_duration / cuts[0].duration))
                yield CutSet.from_cuts(cuts[:count])
                cuts = cuts[count:]


class Share:
    """Every world_size-th batch, from the rank-th on.

    All processes get equally many: what is left over in the end is divided among them cut by cut (and
    is dropped if there are fewer cuts than processes).
    """

    def __init__(self, batches: Iterable[CutSet], world_size: int, rank: int) -> None:
        self.batches, self.world_size, self.rank = batches, world_size, rank

    def __iter__(self) -> Iterator[CutSet]:
        stream = (batch for batch in self.batches)  # islice would restart one of Lhotse's samplers at each call
        while group := list(islice(stream, self.world_size)):
            if len(group) == self.world_size:
                yield group[self.rank]
                continue
            cuts = [cut for batch in group for cut in iterate(batch)]
            if len(cuts) >= self.world_size:
                yield CutSet.from_cuts(cuts[self.rank :: self.world_size])
