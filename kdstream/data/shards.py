"""Training cuts in shards (see shar.py), which nobody looks through before training: they are judged as they are read.

Each epoch takes the shards in another order.  A window (see sampler.py) is made of whole shards, so a resumed epoch
opens none that came before its window.  The process that makes batches reads the cuts alone.  The audio or features of
a batch are read from the tar files in data loading processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from lhotse.cut import Cut

from kdstream.data.augment import Epoch
from kdstream.data.checks import SHORTER, check_data, check_length
from kdstream.data.cuts import CheckedManifest
from kdstream.data.sampler import WINDOW
from kdstream.data.selection import Rules, Selection
from kdstream.data.shar import Shard, read_shard
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError


class _ShardReader(CheckedManifest):
    """Iterates over the cuts of a shard."""

    def __init__(self, shard: Shard, needs_text: bool = False) -> None:
        super().__init__(shard.path, needs_text, trusted=False)
        self.shard = shard

    def _read(self) -> Iterator[Any]:
        return read_shard(self.shard)


class ShardedCuts:
    """The training cuts of some shards.

    seconds: of an epoch, as the first shard lets one guess.
    """

    def __init__(self, shards: Sequence[Shard], tokenizer: Tokenizer, rules: Rules, max_duration: float) -> None:
        self.shards, self.tokenizer, self.rules, self.max_duration = shards, tokenizer, rules, max_duration
        usable, looked_at = Selection(tokenizer, rules), 0
        for _ in self._judged(shards[:1], usable):
            looked_at += 1
        usable.log(f"training (the first of {len(shards)} shards)")
        if not usable.kept:
            raise UserError(f"{shards[0].path}: no training cut is left", fix="look at its texts and lengths")
        self.seconds = usable.seconds * len(shards)
        self.shards_of_window = max(1, round(WINDOW / looked_at))

    def windows(self, epoch: int, order: Epoch, first: int) -> Iterator[Iterator[Cut]]:
        """See `sampler.Windows`.  No shard of a window before the first is opened."""
        usable = Selection(self.tokenizer, self.rules)
        ordered = np.random.default_rng(order.seed_of("shards", "")).permutation(len(self.shards)).tolist()
        for begin in range(first * self.shards_of_window, len(ordered), self.shards_of_window):
            some = [self.shards[index] for index in ordered[begin : begin + self.shards_of_window]]
            yield (cut for cut, is_taken in self._judged(some, usable) if is_taken)
        logging.info(f"Epoch {epoch}: {usable.summary('training')}")

    def _judged(self, shards: Sequence[Shard], usable: Selection) -> Iterator[tuple[Cut, bool]]:
        for cut, is_taken in usable.judge(chain.from_iterable(map(self._read, shards))):
            if is_taken:
                check_length(f"cut {cut.id}", cut.duration, self.max_duration, SHORTER)
            yield cut, is_taken

    def _read(self, shard: Shard) -> Iterator[Cut]:
        for cut in _ShardReader(shard, bool(self.rules.needs_text)):
            check_data(cut, self.rules.from_audio, shard.path)
            yield cut

    def with_both(self) -> Iterator[Cut]:
        """The cuts of the first shard that have audio and features."""
        return (cut for cut in _ShardReader(self.shards[0]) if cut.has_recording and cut.has_features)
