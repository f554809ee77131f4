"""Training cuts in shards (see shar.py), which nobody looks through before training: they are judged as they are read.

Each epoch takes the shards in another order.  A window (see sampler.py) is made of whole shards: of as many as it takes
to have WINDOW cuts.  Its number is the place of its first shard in that order, so a resumed epoch opens none that came
before its window.  The process that makes batches reads the cuts alone.  The audio or features of
a batch are read from the tar files in data loading processes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from lhotse.cut import Cut

from kdstream.data.augment import Epoch
from kdstream.data.checks import SHORTER, check_data, check_length
from kdstream.data.cuts import CheckedManifest
from kdstream.data.reading import check_filter_bank
from kdstream.data.sampler import WINDOW
from kdstream.data.selection import Rules, Selection
from kdstream.data.shar import CutShard, read_shard
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError

LOOKED_AT = 8  # shards, before training


class _ShardReader(CheckedManifest):
    """Iterates over the cuts of a shard."""

    def __init__(self, shard: CutShard, needs_text: bool = False) -> None:
        super().__init__(shard.path, needs_text, trusted=False)
        self.shard = shard

    def _read(self) -> Iterator[Any]:
        return read_shard(self.shard)


class ShardedCuts:
    """The training cuts of some shards.

    looked_at: some of the shards, spread over all.
    seconds: of an epoch, as these let one guess.
    """

    def __init__(self, shards: Sequence[CutShard], tokenizer: Tokenizer, rules: Rules, max_duration: float) -> None:
        self.shards, self.tokenizer, self.rules, self.max_duration = shards, tokenizer, rules, max_duration
        spread = np.linspace(0, len(shards) - 1, min(LOOKED_AT, len(shards))).round().astype(int)
        self.looked_at = [shards[index] for index in spread]
        usable, some = Selection(tokenizer, rules), f"{len(spread)} of {len(shards)} shards"
        for shard in self.looked_at:
            deque(self._taken(shard, usable), maxlen=0)
        usable.log(f"training ({some})")
        if not usable.kept:
            raise UserError(
                f"{shards[0].path}: no training cut is left in {some}, spread over all", fix="look at texts and lengths"
            )
        self.seconds = usable.seconds / len(spread) * len(shards)

    def windows(self, epoch: int, order: Epoch, first: int) -> Iterator[tuple[int, Iterator[Cut]]]:
        """See `sampler.Windows`.  No shard of a window before the first is opened."""
        usable = Selection(self.tokenizer, self.rules)
        ordered = np.random.default_rng(order.seed_of("shards", "")).permutation(len(self.shards)).tolist()
        places = iter(range(first, len(ordered)))  # each window takes as many as it needs
        for place in places:
            yield place, self._window((self.shards[ordered[each]] for each in chain([place], places)), usable)
        logging.info(f"Epoch {epoch}: {usable.summary('training')}")

    def _window(self, shards: Iterator[CutShard], usable: Selection) -> Iterator[Cut]:
        enough = usable.kept + WINDOW
        for shard in shards:
            yield from self._taken(shard, usable)
            if usable.kept >= enough:
                return

    def _taken(self, shard: CutShard, usable: Selection) -> Iterator[Cut]:
        for cut, is_taken in usable.judge(self._read(shard)):
            if is_taken:
                check_length(f"cut {cut.id}", cut.duration, self.max_duration, SHORTER)
                yield cut

    def _read(self, shard: CutShard) -> Iterator[Cut]:
        for cut in _ShardReader(shard, bool(self.rules.needs_text)):
            check_data(cut, self.rules.from_audio, shard.path)
            yield cut

    def check_filter_bank(self) -> None:
        """See `reading.check_filter_bank`: of each shard that was looked at."""
        for shard in self.looked_at:
            check_filter_bank(_ShardReader(shard), shard.path)
