"""The files of a cache: what is appended is found again, whatever is killed, cut short or written beside it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from kdstream.data.cuts import id_number
from kdstream.data.mixture import REPEATED
from kdstream.errors import UserError
from kdstream.kd import cache_shards
from kdstream.kd.cache_shards import (
    DATA,
    ENTRY,
    HEADER_BYTES,
    Column,
    Shards,
    ShardWriter,
    columns_of,
    decode,
    encode,
    make_header,
)

COLUMNS = [Column("encoder_out", "features", 6, 2), Column("1.0", "features", 5, 4)]
FRAMES = 12


def header(storage: str = "float16") -> dict:
    return make_header("of a teacher", storage, COLUMNS)


def append(writer: ShardWriter, names: str, storage: str = "float16") -> None:
    """A cut for each letter, whose numbers are those of the letter."""
    entries, blocks = np.zeros(len(names), ENTRY), []
    for entry, name in zip(entries, names, strict=True):
        entry["key"], entry["feature_frames"], entry["frames"] = id_number(name), 4 * FRAMES, FRAMES
        values = [torch.full((1, FRAMES // c.stride, c.width), float(ord(name))) for c in COLUMNS]
        blocks.append(b"".join(encode(x, [x.size(1)], storage)[0] for x in values))
    writer.append(entries, blocks)


def read(shards: Shards, name: str) -> list[float]:
    """All numbers of a cut, each once."""
    (place,) = shards.find([name])
    shard, entry = shards.entry(place)
    offset, values = int(entry["offset"]), set()
    for column in columns_of(shard.header):
        size = column.bytes_of(int(entry["frames"]), shard.header["storage"])
        x = decode(shard.data[offset : offset + size], FRAMES // column.stride, column.width, shard.header["storage"])
        values |= set(x.flatten().tolist())
        offset += size
    return sorted(values)


def assert_holds(directory: Path, names: str, lacks: str = "") -> None:
    shards = Shards(directory)
    assert len(shards) == len(names) and shards.find(lacks) == [-1] * len(lacks)
    assert [read(shards, name) for name in names] == [[pytest.approx(ord(name), rel=1e-3)] for name in names]


@pytest.mark.parametrize("storage, error", [("float16", 5e-4), ("int8", 5e-3)])
@pytest.mark.parametrize("frames", [1, 3, 8])
def test_what_is_encoded_is_decoded_with_a_small_error_in_each_column(storage, error, frames):
    loud = torch.tensor([2e-2, 1.0, 1e3, 60.0, 0.5])
    x = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0)) * loud
    column = Column("1.0", "features", 5, 1)
    for n, block in enumerate(encode(x, [frames, 8], storage)):
        length = [frames, 8][n]
        assert len(block) == column.bytes_of(length, storage)
        values = decode(torch.frombuffer(bytearray(block), dtype=torch.uint8), length, 5, storage).float()
        largest = x[n, :length].abs().amax(0)
        assert ((values - x[n, :length]).abs() <= error * largest).all()


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_what_float16_cannot_hold_is_stored_as_a_large_number(storage):
    (block,) = encode(torch.tensor([[[1e6, -1e6, 3.0]]]), [1], storage)
    values = decode(torch.frombuffer(bytearray(block), dtype=torch.uint8), 1, 3, storage)
    assert values.isfinite().all() and values[0, 0] >= 65000 and values[0, 1] <= -65000
    assert values[0, 2].item() == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_cuts_are_found_by_their_ids_and_those_of_their_repetitions(tmp_path, storage):
    writer = ShardWriter(tmp_path, header(storage))
    append(writer, "ab", storage), append(writer, "c", storage)
    assert_holds(tmp_path, "abc", lacks="xyz")
    shards = Shards(tmp_path)
    assert shards.header == header(storage)
    assert shards.find([f"b{REPEATED}3", f"b{REPEATED}able", "b"]) == [*shards.find("b"), -1, *shards.find("b")]
    again = pickle.loads(pickle.dumps(shards))
    assert len(pickle.dumps(shards)) < 1000 and read(again, "c") == read(shards, "c")


def test_where_there_is_no_cache_there_are_no_cuts(tmp_path):
    shards = Shards(tmp_path / "none")
    assert (len(shards), shards.header, shards.bytes, shards.find("a")) == (0, None, 0, [-1])


def test_a_writer_that_was_killed_loses_what_it_had_in_work_alone(tmp_path):
    """Killed before anything, in the middle of the data, behind them, and behind the entry."""
    whole = tmp_path / "whole"
    writer = ShardWriter(whole, header())
    append(writer, "ab"), append(writer, "cd")
    del writer
    expected = (whole / "00000.shard").read_bytes()
    slot = HEADER_BYTES + 2 * ENTRY.itemsize
    before = expected[:slot] + bytes(2 * ENTRY.itemsize) + expected[slot + 2 * ENTRY.itemsize :]
    data = (len(expected) - DATA) // 2
    for number, killed in enumerate((expected[:100], before[: len(before) - data], before[:-30], before, expected)):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "00000.shard").write_bytes(killed)
        there = {0: "", 4: "abcd"}.get(number, "ab")
        assert_holds(directory, there)
        writer = ShardWriter(directory, header())
        for names in ("ab", "cd"):
            if names not in there:
                append(writer, names)
        assert (directory / "00000.shard").read_bytes() == expected


def test_nothing_is_written_a_second_time(tmp_path, monkeypatch):
    writer = ShardWriter(tmp_path, header())
    append(writer, "ab")
    end = (tmp_path / "00000.shard").stat().st_size
    written, pwrite = [], os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: written.append((at, len(data))) or pwrite(file, data, at))
    del writer
    append(ShardWriter(tmp_path, header()), "c")
    (data, _), entry = written
    assert data == end and entry == (HEADER_BYTES + 2 * ENTRY.itemsize, ENTRY.itemsize)


def test_writers_at_once_have_a_shard_each_and_the_next_one_continues_theirs(tmp_path):
    first, second = (ShardWriter(tmp_path, header()) for _ in range(2))
    append(first, "a"), append(second, "b"), append(first, "c"), append(second, "d")
    assert [len(shard.entries) for shard in Shards(tmp_path).shards] == [2, 2]
    assert_holds(tmp_path, "abcd")
    del first, second
    append(ShardWriter(tmp_path, header()), "e")
    assert [len(shard.entries) for shard in Shards(tmp_path).shards] == [3, 2]
    assert_holds(tmp_path, "abcde")


@pytest.mark.parametrize("meanwhile", ["appended", "cut off"])
def test_a_reader_maps_a_shard_anew_where_a_writer_changes_its_size_meanwhile(tmp_path, monkeypatch, meanwhile):
    """Between the look at the file's size and that at its entries; cut off is what a killed writer left."""
    writer = ShardWriter(tmp_path, header())
    append(writer, "ab")
    path, from_file = tmp_path / "00000.shard", torch.from_file
    end = path.stat().st_size

    def map_late(*args, **settings):
        monkeypatch.undo()
        append(writer, "c") if meanwhile == "appended" else os.truncate(path, end)
        return from_file(*args, **settings)

    if meanwhile == "cut off":
        os.truncate(path, end + 100)
    monkeypatch.setattr(torch, "from_file", map_late)
    assert_holds(tmp_path, "abc" if meanwhile == "appended" else "ab")


def test_where_there_are_no_locks_a_writer_leaves_the_shards_of_others_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_shards, "try_lock", lambda file: None)
    first, second = (ShardWriter(tmp_path, header()) for _ in range(2))
    append(first, "a"), append(second, "b"), append(first, "c")
    assert [len(shard.entries) for shard in Shards(tmp_path).shards] == [2, 1]
    assert_holds(tmp_path, "abc")


def test_a_full_shard_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_shards, "SHARD_BYTES", DATA + 200)
    writer = ShardWriter(tmp_path, header())
    append(writer, "ab"), append(writer, "c"), append(writer, "de"), append(writer, "f")
    assert [len(shard.entries) for shard in Shards(tmp_path).shards] == [2, 3, 1]
    monkeypatch.setattr(cache_shards, "SHARD_BYTES", 2**32)
    monkeypatch.setattr(cache_shards, "SLOTS", 3)
    del writer
    writer = ShardWriter(tmp_path, header())
    append(writer, "gh"), append(writer, "i"), append(writer, "jk")
    assert [len(shard.entries) for shard in Shards(tmp_path).shards][:3] == [3, 3, 3]


def test_damaged_and_foreign_shards_are_named(tmp_path):
    append(ShardWriter(tmp_path, header()), "abc")
    path, other = tmp_path / "00000.shard", tmp_path / "00001.shard"
    whole = path.read_bytes()
    for damaged in (b"x" + whole[1:], b"[]" + b" " * HEADER_BYTES + whole, whole[:-1], bytes(len(whole))):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="00000.shard: damaged, or no shard .*; delete the cache and write it anew"):
            Shards(tmp_path)
    path.write_bytes(whole)
    other.write_bytes(whole.replace(b"of a teacher", b"of theirs   "))
    with pytest.raises(UserError, match="00001.shard: of another cache than .*00000.shard; delete"):
        Shards(tmp_path)
    other.unlink()
    (tmp_path / "cache.json").write_text("{}")
    with pytest.raises(UserError, match="a cache of an older format, with files for each cut, .*; delete the cache"):
        Shards(tmp_path)
