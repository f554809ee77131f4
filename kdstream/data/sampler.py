"""Which cuts make a batch, and in which order batches come.

Cuts are read window by window.  A window is divided into batches of like lengths.  The batches come in random order,
but in groups of HELD that cost about the same: processes that take consecutive batches wait little for each other.
The order depends on (seed, epoch, number of the window) alone, and not on the number of processes.  So a resumed epoch
may begin with any window.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut

from kdstream.config.sections import DataConfig
from kdstream.data.augment import Epoch
from kdstream.data.batch import filled
from kdstream.data.cuts import iterate

WINDOW = 20_000  # cuts
HELD = 8  # batches in a row that cost about the same: as many processes, or half or a quarter, have equal work
FEWEST_GROUPS = 8  # an epoch with fewer of them has its batches in wholly random order
BATCHES_OF_BUCKET = 4  # at least: with fewer, the same cuts would meet in a batch in every epoch
QUADRATIC_SECONDS = 60.0  # at this length, all that grows with its square costs as much as all the rest (small preset)

# (whence to draw an order, number of the first one) to the windows of an epoch, each with its number.  They must be
# read in turn, and their numbers rise.
Windows = Callable[[Epoch, int], Iterator[tuple[int, Iterator[Cut]]]]


def windows_of(cuts: Iterable[Cut], rng: random.Random, size: int = WINDOW) -> Iterator[Iterator[Cut]]:
    """Windows of `size` cuts.  The first is smaller, so that not the same cuts share a window in every epoch."""
    iterator = iter(cuts)
    count = rng.randint(size // 2, size)
    for cut in iterator:
        yield chain([cut], islice(iterator, count - 1))
        count = size


class Batches:
    """The batches of an epoch, read from the window `first` on.

    Padded to its longest cut, a batch of several cuts has at most `max_duration` seconds.

    Args:
      windows: the cuts of the epoch.
      config: tells max_duration; num_buckets, into which a window is divided by length where it has enough cuts; and
        shuffle, without which every epoch is the same, and the cuts of a bucket stay in the order of the manifest.
      epoch: of whose seed and number the order is drawn.
      first: the number of a window, and the number of its first batch.
    """

    def __init__(self, windows: Windows, config: DataConfig, epoch: Epoch, first: tuple[int, int] = (0, 0)) -> None:
        self.windows, self.epoch, self.first, self.shuffle = windows, epoch, first, config.shuffle
        self.order = epoch if config.shuffle else epoch._replace(epoch=0)
        self.max_duration, self.num_buckets = config.max_duration, config.num_buckets
        self.begins, self.padding = [first], Padding()  # of what has been reached so far

    def window_of(self, batch: int) -> tuple[int, int]:
        """The window to begin with (see `first`) in order to go on at a batch that was reached before."""
        return max((begin for begin in self.begins if begin[1] <= batch), default=(0, 0))

    def __iter__(self) -> Iterator[CutSet]:
        following: int | None
        following, batch_number = self.first
        self.begins, self.padding = [self.first], Padding()
        windows = self.windows(self.order, following)
        window = list(next(windows, (following, ()))[1])
        while following is not None:
            rng = random.Random(self.order.seed_of("batches", str(following)))
            following, cuts = next(windows, (None, iter(())))
            batches = self._batches(window, rng, is_last=following is None)
            batch_number += len(batches)
            if following is not None:
                self.begins.append((following, batch_number))
            window = []
            for batch in batches:
                self.padding.add(batch)
                yield CutSet.from_cuts(batch)
                window += islice(cuts, len(batch))  # little by little: training waits for none of it
            window += cuts

    def __str__(self) -> str:
        return f"Epoch {self.epoch.epoch}: {self.padding}"

    def _batches(self, cuts: list[Cut], rng: random.Random, is_last: bool) -> list[list[Cut]]:
        if not cuts:
            return []
        batches = sorted(filled(self._by_length(cuts, rng), self.max_duration, seconds_of), key=cost_of)
        is_small = is_last and len(batches) < FEWEST_GROUPS * HELD
        if not is_last:  # the next window must begin with a whole group
            batches = sorted(halved(batches, -(-len(batches) // HELD) * HELD), key=cost_of)
        left_over = len(batches) if is_small else len(batches) % HELD
        begin = rng.randrange(0, len(batches) - left_over + 1, HELD)
        rest = batches[:begin] + batches[begin + left_over :]
        groups = [rest[index : index + HELD] for index in range(0, len(rest), HELD)]
        rng.shuffle(groups)
        groups.append(batches[begin : begin + left_over])
        for group in groups:
            rng.shuffle(group)
        return list(chain.from_iterable(groups))

    def _by_length(self, cuts: list[Cut], rng: random.Random) -> list[Cut]:
        """From short to long, but in random order within each of the buckets, which have about equal seconds."""
        seconds = np.array([cut.duration for cut in cuts])
        order = np.argsort(seconds, kind="stable")
        ends = np.cumsum(seconds[order])
        count = max(1, min(self.num_buckets, int(ends[-1] / self.max_duration / BATCHES_OF_BUCKET)))
        ordered: list[Cut] = []
        for bucket in np.split(order, np.searchsorted(ends, ends[-1] * np.arange(1, count) / count)):
            indexes = sorted(bucket.tolist())
            if self.shuffle:
                rng.shuffle(indexes)
            ordered += [cuts[index] for index in indexes]
        return ordered


def seconds_of(cut: Cut) -> float:
    return cut.duration


def halved(batches: Sequence[list[Cut]], count: int) -> list[list[Cut]]:
    """The batches, the one with most cuts halved until there are `count` of them, or until each has one cut."""
    batches = list(batches)
    while len(batches) < count:
        most = max(range(len(batches)), key=lambda index: len(batches[index]))
        halves = batches[most][::2], batches[most][1::2]
        if not halves[1]:
            break
        batches[most : most + 1] = halves
    return batches


def cost_of(batch: list[Cut]) -> float:
    """What a step on the batch costs, as seconds of short cuts: attention makes the seconds of long ones dearer."""
    longest = max(cut.duration for cut in batch)
    return len(batch) * longest * (1 + longest / QUADRATIC_SECONDS)


class Padding:
    """How much of the batches is padding."""

    def __init__(self) -> None:
        self.batches, self.seconds, self.padded = 0, 0.0, 0.0

    def add(self, batch: list[Cut]) -> None:
        self.batches += 1
        self.seconds += sum(cut.duration for cut in batch)
        self.padded += len(batch) * max(cut.duration for cut in batch)

    @property
    def share(self) -> float:
        """Of the padded seconds, in [0, 1)."""
        return 1 - self.seconds / self.padded if self.padded else 0.0

    def __str__(self) -> str:
        return f"{self.batches} batches, {self.seconds / 3600:.2f} h; {self.share:.1%} of what is computed is padding"


class Share:
    """Every world_size-th batch, from the rank-th on, after the `skipped` first ones of all processes.

    All processes get equally many: what is left over in the end is halved until each has a batch, and is
    dropped if there are fewer cuts than processes.
    """

    def __init__(self, batches: Iterable[CutSet], world_size: int, rank: int, skipped: int = 0) -> None:
        self.batches, self.world_size, self.rank, self.skipped = batches, world_size, rank, skipped

    def __iter__(self) -> Iterator[CutSet]:
        stream = islice(self.batches, self.skipped, None)
        while group := list(islice(stream, self.world_size)):
            if len(group) < self.world_size:
                parts = halved([list(iterate(batch)) for batch in group], self.world_size)
                group = [CutSet.from_cuts(part) for part in parts]
            if len(group) == self.world_size:
                yield group[self.rank]
