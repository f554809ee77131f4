"""The files of a teacher's cache: shards, to which several processes append cuts at once.

A cache is a directory of shards, 00000.shard, 00001.shard and so on.  Each is one file; its numbers are little-endian:

    bytes 0 to HEADER_BYTES  JSON, padded with blanks: the version of this format, the fingerprint of teacher and
                             features, the storage of the numbers, the columns (layer, tensor, width, stride)
    SLOTS entries            one of ENTRY for each cut, in the order of writing; zero where there is no cut yet
    the rest                 of each cut its blocks, one for each column: (frames // stride, width) numbers

A block of the storage "float16" holds these numbers.  One of "int8" begins with a scale in float16 for each of its
`width` columns, by which its bytes are to be multiplied; a zero follows where their number is odd.

Nothing is written a second time.  The data of a batch of cuts reach the disk before their entries do, so that a
process that is killed loses the batch in work and nothing else.  A process appends to a shard that it has locked, and
begins another where it finds none.  Readers map the files: the entries are not loaded, only their keys are sorted.

Shapes: N batch, T frames, D width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdstream.config.distillation import CACHE_STORAGES
from kdstream.data.cuts import id_number
from kdstream.data.mixture import ids_in_manifest
from kdstream.errors import UserError
from kdstream.files import try_lock, writing

VERSION = 3
SUFFIX = ".shard"
OLD_HEADER = "cache.json"  # of versions 1 and 2, which had a file for each cut
HEADER_BYTES = 2**14
SLOTS = 2**14
SHARD_BYTES = 2**32  # a shard that has as many is full
# key: id_number of the cut's id.  offset: of its data in the file.  feature_frames, frames: of 10 ms and of 20 ms.
# mean: of its features.  An entry of 32 bytes lies within one page, so that it is written whole or not at all.
ENTRY = np.dtype(
    [("key", "<u8"), ("offset", "<u8"), ("feature_frames", "<u4"), ("frames", "<u4"), ("mean", "<f4"), ("free", "<u4")]
)
DATA = HEADER_BYTES + SLOTS * ENTRY.itemsize  # where the data begin
FLOAT16, INT8 = CACHE_STORAGES
WRITE_ANEW = "delete the cache and write it anew with kdstream cache-teacher"


class Column(NamedTuple):
    """A tensor of a cut: of which layer, which of its tensors, how wide, and its encoder frames (20 ms) per frame."""

    layer: str
    tensor: str
    width: int
    stride: int

    def bytes_of(self, frames: int, storage: str) -> int:
        """Of the block of a cut of so many encoder frames."""
        numbers = frames // self.stride * self.width
        return 2 * numbers if storage == FLOAT16 else 2 * self.width + numbers + numbers % 2


def encode(x: Tensor, lens: Sequence[int], storage: str) -> list[bytes]:
    """The blocks of N cuts from x (N, T, D) of lengths (N,)."""
    x = x.float()
    if storage == FLOAT16:
        limit = torch.finfo(torch.float16).max
        values = x.clamp(-limit, limit).half().cpu().numpy()
        return [values[n, :length].tobytes() for n, length in enumerate(lens)]
    valid = torch.arange(x.size(1), device=x.device) < torch.as_tensor(lens, device=x.device).unsqueeze(1)
    largest = (x * valid.unsqueeze(2)).abs().amax(dim=1, keepdim=True)
    scales = (largest / 127).clamp(2**-20, 2**9).half()  # (N, 1, D), as are their products, numbers of float16
    values = (x / scales.float()).round().clamp(-127, 127).to(torch.int8).cpu().numpy()
    heads = scales.cpu().numpy()
    odd = [b"\0" * (length * x.size(2) % 2) for length in lens]
    return [heads[n].tobytes() + values[n, :length].tobytes() + odd[n] for n, length in enumerate(lens)]


def decode(block: Tensor, frames: int, width: int, storage: str) -> Tensor:
    """(frames, width) in float16 from the bytes of a block."""
    if storage == FLOAT16:
        return block.view(torch.float16).view(frames, width)
    scales = block[: 2 * width].view(torch.float16).float()
    values = block[2 * width :][: frames * width].view(torch.int8).view(frames, width)
    return (values * scales).half()


def make_header(fingerprint: str, storage: str, columns: Sequence[Column]) -> dict[str, Any]:
    return {"version": VERSION, "fingerprint": fingerprint, "storage": storage, "columns": [list(c) for c in columns]}


def columns_of(header: Mapping[str, Any]) -> list[Column]:
    return [Column(*column) for column in header["columns"]]


class CacheShard(NamedTuple):
    """A mapped shard: its bytes (those that it had when it was opened), and the entries of its cuts."""

    path: Path
    header: dict[str, Any]
    data: Tensor
    entries: np.ndarray


def map_shard(path: Path) -> CacheShard | None:
    """None for a shard that is just being made.  Raises UserError if it is damaged."""
    size = path.stat().st_size
    if size < DATA:
        return None
    try:
        return _map(path, size)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        if path.stat().st_size != size:  # meanwhile a writer has appended, or cut off what a killed one had left
            return map_shard(path)
        if isinstance(error, RuntimeError):  # no memory
            raise
        raise UserError(f"{path}: damaged, or no shard of a teacher's cache ({error})", fix=WRITE_ANEW) from error


def _map(path: Path, size: int) -> CacheShard:
    """Maps so many bytes.  Raises RuntimeError where that cannot be done, and another error if they are damaged."""
    # numpy's memmap would keep a file descriptor open for each of perhaps hundreds of shards
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    header = json.loads(bytes(data[:HEADER_BYTES].numpy()))
    if header["version"] != VERSION:
        raise ValueError(f"of version {header['version']}, not {VERSION}")
    columns_of(header)
    slots = data[HEADER_BYTES:DATA].numpy().view(ENTRY)
    entries = slots[: np.count_nonzero(slots["feature_frames"])]
    if len(entries) and (entries["feature_frames"].min() == 0 or end_of(entries[-1], header) > size):
        raise ValueError("cut short")
    return CacheShard(path, header, data, entries)


def end_of(entry: np.void, header: Mapping[str, Any]) -> int:
    """The byte behind a cut's data."""
    frames = int(entry["frames"])
    return int(entry["offset"]) + sum(c.bytes_of(frames, header["storage"]) for c in columns_of(header))


class Shards:
    """What a cache holds, by the ids of its cuts.

    Args:
      directory: where nothing is, there are no cuts.
    Raises:
      UserError: a damaged shard, shards of several caches, or a cache of an older format.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if (directory / OLD_HEADER).exists():
            raise UserError(
                f"{directory}: a cache of an older format, with files for each cut, which is no longer read",
                fix=WRITE_ANEW,
            )
        mapped = map(map_shard, sorted(directory.glob(f"*{SUFFIX}")))
        self.shards = [shard for shard in mapped if shard is not None]
        self.header = self.shards[0].header if self.shards else None
        for shard in self.shards:
            if shard.header != self.header:
                raise UserError(f"{shard.path}: of another cache than {self.shards[0].path}", fix=WRITE_ANEW)
        lengths = [len(shard.entries) for shard in self.shards]
        keys = np.concatenate([shard.entries["key"] for shard in self.shards] or [np.empty(0, np.uint64)])
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._shard = np.repeat(np.arange(len(lengths), dtype=np.uint16), lengths)[order]
        self._slot = np.concatenate([np.arange(n, dtype=np.uint16) for n in lengths] or [self._shard])[order]

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.directory,)  # to be mapped anew by a process that loads data

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def bytes(self) -> int:
        """Of all data."""
        return sum(len(shard.data) - DATA for shard in self.shards)

    def find(self, cut_ids: Iterable[str]) -> list[int]:
        """Where each cut is, under its own id or, for a repetition, under that of the cut; -1 where it is not."""
        return [self._find(cut_id) for cut_id in cut_ids]

    def _find(self, cut_id: str) -> int:
        for name in ids_in_manifest(cut_id):
            key = np.uint64(id_number(name))
            place = int(np.searchsorted(self._keys, key))
            if place < len(self._keys) and self._keys[place] == key:
                return place
        return -1

    def entry(self, place: int) -> tuple[CacheShard, np.void]:
        shard = self.shards[self._shard[place]]
        return shard, shard.entries[self._slot[place]]


class ShardWriter:
    """Appends cuts to a cache, beside other processes that do.

    Args:
      directory: made if it is not there.
      header: of the cache; see `make_header`.
    Raises:
      UserError: what cannot be written.
    """

    def __init__(self, directory: Path, header: Mapping[str, Any]) -> None:
        self.directory, self.header = directory, header
        self._file: Any = None  # locked
        self._slot = self._end = 0

    def append(self, entries: np.ndarray, blocks: Sequence[bytes]) -> None:
        """Appends cuts: `entries` without their offsets, and the data of each."""
        with writing(self.directory):
            file = self._file
            if file is None or not self._has_room(len(entries)):
                file = self._file = self._open(len(entries))
            lengths = [len(block) for block in blocks]
            entries["offset"] = self._end + np.cumsum([0, *lengths[:-1]])
            _write(file, b"".join(blocks), self._end)
            os.fsync(file.fileno())
            _write(file, entries.tobytes(), HEADER_BYTES + self._slot * ENTRY.itemsize)
        self._slot += len(entries)
        self._end += sum(lengths)

    def _has_room(self, cuts: int) -> bool:
        return self._slot + cuts <= SLOTS and self._end < SHARD_BYTES

    def _open(self, cuts: int) -> Any:
        """A locked shard that has room for so many cuts."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.directory.mkdir(parents=True, exist_ok=True)
        there = sorted(self.directory.glob(f"*{SUFFIX}"))
        for path in there:
            if file := self._take(path, cuts):
                return file
        number = 1 + int(there[-1].stem) if there else 0
        while True:
            path = self.directory / f"{number:05d}{SUFFIX}"
            number += 1
            try:
                path.open("xb").close()
            except FileExistsError:
                continue
            if file := self._take(path, cuts, made=True):  # unless another process was quicker to lock it
                return file

    def _take(self, path: Path, cuts: int, made: bool = False) -> Any:
        """Locks a shard and goes to its end; None if another process has locked it, or it has no room.

        made: just now by this process, which then may have it where there are no locks.
        """
        file = path.open("r+b", buffering=0)
        locked = try_lock(file.fileno())
        if locked or (locked is None and made):
            shard = map_shard(path)
            if shard is None:
                text = json.dumps(self.header).encode()
                assert len(text) < HEADER_BYTES
                _write(file, text.ljust(HEADER_BYTES), 0)
                self._slot, self._end = 0, DATA
            else:
                self._slot = len(shard.entries)
                self._end = end_of(shard.entries[-1], shard.header) if self._slot else DATA
            if self._has_room(cuts):
                file.truncate(self._end)  # without what a killed process left of a batch
                return file
        file.close()
        return None


def _write(file: Any, data: bytes, offset: int) -> None:
    """All of `data`, whatever the system takes of it at a time."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written
