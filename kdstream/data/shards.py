"""Training cuts in shards, which nobody looks through before training: they are judged while they are read.

A Shar directory is a list of shards.  So is a JSON-lines manifest beside which Lhotse's index of it lies (NAME.idx, of
lhotse >= 2 or `write_index`).  Each epoch takes the shards in another order.  A window (see sampler.py) is made of
whole shards, so a resumed epoch opens none that came before its window.  The process that makes batches reads the cuts
alone.  The audio or features of a batch are read from the tar files in data loading processes.
"""

from __future__ import annotations

import gzip
import logging
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut import Cut, MonoCut
from lhotse.serialization import decode_json_line, deserialize_item
from lhotse.shar.utils import fill_shar_placeholder

from kdstream.data.augment import Epoch
from kdstream.data.checks import check_data, check_whole
from kdstream.data.cuts import CheckedManifest
from kdstream.data.sampler import WINDOW
from kdstream.data.selection import Rules, Selection
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError

LINES = 1000  # of an indexed manifest in a shard, as Lhotse puts cuts in a shard of Shar
OFFSET = np.dtype("<u8")  # in an index: where each line begins, and the size of the file
INDEX_SUFFIX = ".idx"
OPEN_TARS = 64  # whose tables of contents a process keeps


@dataclass(frozen=True)
class Shard:
    """path: of its cuts, which begin at a byte of the file.  count: how many they are; all if None.  tars: by field."""

    path: Path
    begin: int = 0
    count: int | None = None
    tars: dict[str, Path] = field(default_factory=dict)


def find_shards(path: Path) -> list[Shard]:
    """The shards of a Shar directory or of an indexed manifest; none of other manifests.

    Raises:
      UserError: an index of another file, or a Shar directory without data.
    """
    if path.is_dir():
        return [_shar(cuts) for cuts in sorted(path.glob("cuts.*.jsonl*")) if cuts.suffix != INDEX_SUFFIX]
    index = path.with_name(path.name + INDEX_SUFFIX)
    if path.suffix != ".jsonl" or not index.is_file():
        return []
    offsets = np.fromfile(index, OFFSET)
    if len(offsets) < 2 or offsets[-1] != path.stat().st_size:
        raise UserError(f"{index}: is not the index of {path.name} as it is", fix="make it again, or delete it")
    count = len(offsets) - 1
    return [Shard(path, int(offsets[first]), min(LINES, count - first)) for first in range(0, count, LINES)]


def write_index(path: Path) -> None:
    """Writes the index of a .jsonl manifest beside it, as `lhotse.indexing.create_jsonl_index` of lhotse 2 does."""
    with open(path, "rb") as lines:
        ends = np.cumsum([0, *map(len, lines)])
    ends.astype(OFFSET).tofile(path.with_name(path.name + INDEX_SUFFIX))


def _shar(cuts: Path) -> Shard:
    number = cuts.name.split(".")[1]
    tars = {name: cuts.with_name(f"{name}.{number}.tar") for name in ("recording", "features")}
    tars = {name: tar for name, tar in tars.items() if tar.is_file()}
    if not tars:
        raise UserError(f"{cuts}: neither recording.{number}.tar nor features.{number}.tar is there", fix="add one")
    return Shard(cuts, tars=tars)


class _ShardReader(CheckedManifest):
    """Iterates over the cuts of a shard, which know in which tar file their data are."""

    def __init__(self, shard: Shard, needs_text: bool = False) -> None:
        super().__init__(shard.path, needs_text, trusted=False)
        self.shard = shard

    def _read(self) -> Iterator[Any]:
        with gzip.open(self.path) if self.path.suffix == ".gz" else open(self.path, "rb") as lines:
            lines.seek(self.shard.begin)
            for line in islice(lines, self.shard.count):
                cut = deserialize_item(decode_json_line(line))
                yield self._with_tars(cut) if isinstance(cut, MonoCut) else cut

    def _with_tars(self, cut: MonoCut) -> MonoCut:
        if cut.features is not None and cut.features.storage_type == "shar":
            tar = self.shard.tars.get("features")
            cut.features = replace(cut.features, storage_path=str(tar)) if tar else None
        if cut.recording is not None and any(source.type == "shar" for source in cut.recording.sources):
            tar = self.shard.tars.get("recording")
            source = replace(cut.recording.sources[0], source=str(tar))
            cut.recording = replace(cut.recording, sources=[source]) if tar else None
        return cut


def with_data(cut: Cut) -> Cut:
    """The cut with its data, where it is of a Shar directory; it can then be read as any other.

    Raises:
      UserError: naming the tar file that lacks them.
    """
    if not isinstance(cut, MonoCut):
        return cut
    changed: dict[str, Any] = {}
    if cut.features is not None and cut.features.storage_type == "shar":
        changed["features"] = _filled(replace(cut.features), cut.features.storage_path, cut.id)
    if cut.recording is not None and any(source.type == "shar" for source in cut.recording.sources):
        source = cut.recording.sources[0]
        changed["recording"] = _filled(replace(cut.recording, sources=[replace(source)]), str(source.source), cut.id)
    return replace(cut, **changed) if changed else cut


def _filled(manifest: Any, tar: str, cut_id: str) -> Any:
    try:
        name, begin, size = _contents(tar)[cut_id]
        with open(tar, "rb") as file:
            file.seek(begin)
            fill_shar_placeholder(manifest, file.read(size), name)
    except (OSError, KeyError, RuntimeError, tarfile.TarError) as error:
        reason = "it is not there" if isinstance(error, KeyError) else " ".join(str(error).split())
        fix = "restore the file, or take the cut out"
        raise UserError(f"{tar}: cannot read the data of cut {cut_id} ({reason})", fix=fix) from error
    return manifest


@lru_cache(maxsize=OPEN_TARS)
def _contents(tar: str) -> dict[str, tuple[str, int, int]]:
    """By cut: the member of a tar file with its data, and where in the file they begin and how many bytes they are."""
    with tarfile.open(tar, "r:") as members:
        return {
            member.name.rpartition(".")[0]: (member.name, member.offset_data, member.size)
            for member in members
            if not member.name.endswith((".json", ".nodata", ".nometa"))
        }


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
                check_whole(cut.id, cut.duration, self.max_duration)
            yield cut, is_taken

    def _read(self, shard: Shard) -> Iterator[Cut]:
        for cut in _ShardReader(shard, self.rules.needs_text):
            check_data(cut, self.rules.from_audio, shard.path)
            yield cut

    def with_both(self) -> Iterator[Cut]:
        """The cuts of the first shard that have audio and features, with these."""
        return (with_data(cut) for cut in _ShardReader(self.shards[0]) if cut.has_recording and cut.has_features)
