"""Cuts in shards: Shar directories, and JSON-lines manifests with Lhotse's index.

A shard is a list of cuts.  Cuts of a Shar directory know where in which tar file their data are; so do copies and parts
of them, which have other ids.  The data are read from there when they are needed.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut import Cut, MonoCut
from lhotse.serialization import decode_json_line, deserialize_item
from lhotse.shar.utils import fill_shar_placeholder

from kdstream.errors import UserError

LINES = 1000  # of an indexed manifest in a shard, as Lhotse puts cuts in a shard of Shar
OFFSET = np.dtype("<u8")  # in an index: where each line begins, and the size of the file
INDEX_SUFFIX = ".idx"
OPEN_TARS = 64  # whose tables of contents a process keeps


@dataclass(frozen=True)
class CutShard:
    """path: of its cuts, which begin at a byte of the file.  count: how many they are; all if None.  tars: by field."""

    path: Path
    begin: int = 0
    count: int | None = None
    tars: dict[str, Path] = field(default_factory=dict)


def find_shards(path: Path) -> list[CutShard]:
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
    return [CutShard(path, int(offsets[first]), min(LINES, count - first)) for first in range(0, count, LINES)]


def write_index(path: Path) -> None:
    """Writes the index of a .jsonl manifest beside it, as `lhotse.indexing.create_jsonl_index` of lhotse 2 does."""
    with open(path, "rb") as lines:
        ends = np.cumsum([0, *map(len, lines)])
    ends.astype(OFFSET).tofile(path.with_name(path.name + INDEX_SUFFIX))


def _shar(cuts: Path) -> CutShard:
    number = cuts.name.split(".")[1]
    tars = {name: cuts.with_name(f"{name}.{number}.tar") for name in ("recording", "features")}
    tars = {name: tar for name, tar in tars.items() if tar.is_file()}
    if not tars:
        raise UserError(f"{cuts}: neither recording.{number}.tar nor features.{number}.tar is there", fix="add one")
    return CutShard(cuts, tars=tars)


def read_shard(shard: CutShard) -> Iterator[Any]:
    """The cuts of a shard, or what else stands in its file; cuts know where in which tar file their data are."""
    with gzip.open(shard.path) if shard.path.suffix == ".gz" else open(shard.path, "rb") as lines:
        lines.seek(shard.begin)
        for line in islice(lines, shard.count):
            cut = deserialize_item(decode_json_line(line))
            yield _with_tars(cut, shard) if isinstance(cut, MonoCut) else cut


def _with_tars(cut: MonoCut, shard: CutShard) -> MonoCut:
    if cut.features is not None and cut.features.storage_type == "shar":
        tar = shard.tars.get("features")
        cut.features = replace(cut.features, storage_path=str(tar), storage_key=cut.id) if tar else None
    if cut.recording is not None and any(source.type == "shar" for source in cut.recording.sources):
        tar = shard.tars.get("recording")
        source = replace(cut.recording.sources[0], source=f"{tar}/{cut.id}")
        cut.recording = replace(cut.recording, sources=[source]) if tar else None
    return cut


def tar_of(source: str) -> tuple[str, str]:
    """The tar file of a source "NAME.tar/ID", as Lhotse spells members of tar files too, and the id; "" without one."""
    tar, _, cut_id = source.rpartition(".tar/")
    return (f"{tar}.tar", cut_id) if tar else (source, "")


def with_data(cut: Cut) -> Cut:
    """The cut with its data, where it is of a Shar directory; it can then be read as any other.

    Raises:
      UserError: naming the tar file that lacks them.
    """
    if not isinstance(cut, MonoCut):
        return cut
    changed: dict[str, Any] = {}
    if cut.features is not None and cut.features.storage_type == "shar":
        stored = cut.features
        changed["features"] = _filled(replace(stored), stored.storage_path, str(stored.storage_key) or cut.id)
    if cut.recording is not None and any(source.type == "shar" for source in cut.recording.sources):
        source = cut.recording.sources[0]
        tar, cut_id = tar_of(str(source.source))
        changed["recording"] = _filled(replace(cut.recording, sources=[replace(source)]), tar, cut_id or cut.id)
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
