"""Batches of cuts to batches of tensors, in worker processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdstream.data.augment import Augmentation
from kdstream.data.batch import Batch, Utterance, make_batch, mean_of
from kdstream.data.reading import check_noise, read_audio, read_utterance
from kdstream.data.sampler import Batches
from kdstream.data.shar import with_data
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError, option

# How workers start: at once, and with all that this process has, functions without a name among it.  Unless it is said,
# the processes that --world-size starts would start theirs as they were started themselves, with what can be pickled.
START = "fork"


@dataclass(frozen=True)
class Unread:
    """The error that reading a batch met, and the id of the cut at which it came; "" where it is of no cut alone.

    It travels as a value because a DataLoader would wrap an exception raised in its worker in a traceback.
    """

    error: UserError
    cut_id: str


class AsrDataset(Dataset):
    """Maps the cuts of one batch to a `Batch`, or to what `BatchLoader` raises in its place."""

    def __init__(
        self,
        from_audio: bool,
        extractor: str,
        augmentation: Augmentation | None = None,
        with_audio: bool = False,
        tokenizer: Tokenizer | None = None,
        with_clean: bool = False,
        read_stored: Callable[[Batch], Tensor] | None = None,
        two_views: bool = False,
    ) -> None:
        self.from_audio = from_audio
        self.extractor = extractor
        self.augmentation = augmentation
        self.with_audio, self.with_clean, self.read_stored = with_audio, with_clean, read_stored
        self.tokenizer, self.two_views = tokenizer, two_views

    def __getitem__(self, cuts: Iterable[Cut]) -> Batch | Unread:
        cut_id, utterances = "", []
        try:
            for cut in cuts:
                cut_id = cut.id
                utterances.append(self._read(cut))
            cut_id = ""
            tokens = self.tokenizer and self.tokenizer.encode([utterance.text for utterance in utterances])
            batch = make_batch(utterances, tokens)
            if self.read_stored is not None:
                batch.means = [utterance.mean for utterance in utterances]
                batch.stored = self.read_stored(batch)
            return batch
        except UserError as error:
            return Unread(error, cut_id)

    def _read(self, cut: Cut) -> Utterance:
        clean = cut = with_data(cut)
        if self.augmentation is None:
            utterance = read_utterance(cut, self.from_audio, self.extractor)
        else:
            cut = self.augmentation.change_cut(clean, self.from_audio)
            try:
                utterance = read_utterance(cut, self.from_audio, self.extractor)
            except UserError:
                self._blame_noise(cut, clean)
                raise
            if self.with_clean:
                unmixed = utterance if cut is clean else read_utterance(clean, self.from_audio, self.extractor)
                utterance = utterance._replace(clean=unmixed.features)
            if self.read_stored is not None and cut is clean:
                utterance = utterance._replace(mean=mean_of(utterance.features))
            if self.two_views:
                utterance = utterance._replace(second=utterance.features)
            utterance = self.augmentation.change_utterance(utterance)
        return utterance._replace(audio=read_audio(clean if self.with_clean else cut)) if self.with_audio else utterance

    def _blame_noise(self, noisy: Cut, clean: Cut) -> None:
        """Raises UserError if it is the noise that cannot be read."""
        try:
            check_noise(noisy, clean, self.from_audio)
        except UserError as error:
            problem = f"noise for cut {clean.id}: {error.problem}"
            raise UserError(problem, flag=option("enable_musan", 1), fix=error.fix) from error


class BatchLoader:
    """Iterates over the `Batch`es of one epoch.

    num_batches: how many they are (about, in training).
    explain: says more of an error that reading a cut met.
    order: of a training epoch, in which `cut_batches` come; the log tells of it when the last one has been read.
    """

    def __init__(
        self,
        dataset: AsrDataset,
        cut_batches: Iterable[CutSet],
        num_batches: int,
        num_workers: int,
        pin_memory: bool = False,
        explain: Callable[[UserError, str], UserError] | None = None,
        order: Batches | None = None,
    ) -> None:
        self.dataset = dataset
        self.cut_batches = cut_batches
        self.num_batches = num_batches
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.explain, self.order = explain, order

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            self.dataset,
            sampler=Once(iter(self.cut_batches)),
            batch_size=None,
            num_workers=self.num_workers,
            multiprocessing_context=START if self.num_workers else None,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else starting to iterate would draw from the model's generator
        )
        yield from map(self._checked, loader)
        if self.order is not None:
            logging.info(self.order)

    def window_of(self, batch: int) -> tuple[int, int]:
        """The window to begin with, see `Batches`, to go on after so many batches of all processes."""
        return self.order.window_of(batch) if self.order is not None else (0, 0)

    def read(self, cuts: CutSet) -> Batch:
        """One batch, of these cuts.  Raises UserError where it cannot be read."""
        return self._checked(self.dataset[cuts])

    def _checked(self, batch: Batch | Unread) -> Batch:
        if isinstance(batch, Unread):
            raise self.explain(batch.error, batch.cut_id) if self.explain and batch.cut_id else batch.error
        return batch


class Once:
    """An iterator dressed as what DataLoader takes for a sampler."""

    def __init__(self, iterator: Iterator[CutSet]) -> None:
        self.iterator = iterator

    def __iter__(self) -> Iterator[CutSet]:
        return self.iterator
