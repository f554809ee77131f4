"""Manifests of cuts: how they are read and written."""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from lhotse import CutSet, RecordingSet, SupervisionSet
from lhotse.cut import Cut

from kdstream.config.sections import LIBRISPEECH
from kdstream.data.fields import field_fault
from kdstream.data.shar import find_shards, read_shard
from kdstream.errors import UserError
from kdstream.files import CUT_SUFFIXES, replacing

UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, AssertionError, zlib.error)
OF_A_LINE = (JSONDecodeError, KeyError, TypeError, AttributeError, AssertionError)
# Formats that Lhotse reads as a whole; all else is JSON, line by line
EAGER = (".json", ".json.gz", ".yaml", ".yaml.gz")
MANIFEST_SUFFIXES = (*CUT_SUFFIXES, *EAGER)


def cuts_name(part: str, corpus: str = LIBRISPEECH) -> str:
    """The name of the manifest of a part's cuts."""
    return f"{corpus}_cuts_{part}.jsonl.gz"


def read_manifest(path: Path, needs_text: bool = False, trusted: bool = False) -> CutSet:
    """A lazily read CutSet that turns what is wrong with the file into a UserError, also a text that it should have.

    Args:
      path: .jsonl, .json or .yaml, or one of these with .gz; or a Shar directory.
      needs_text: refuse a cut without a text.
      trusted: the fields of its cuts were looked at before; see selection.py.
    """
    if path.is_dir():
        if not find_shards(path):
            raise UserError(f"{path}: a directory instead of a manifest", fix="name the manifests in it")
    elif not path.is_file():
        fix = "run prepare.sh, or see --manifest-dir, --*-parts and --*-cuts"
        if all(map(os.path.exists, several := str(path).split(","))):
            fix = f"only one is taken here: lhotse combine {' '.join(several)} together.jsonl.gz"
        raise UserError(f"{path}: no such manifest", fix=fix)
    return CutSet(CheckedManifest(path, needs_text, trusted))


class CheckedManifest:
    """Iterates over a cut manifest afresh each time."""

    is_lazy = True

    def __init__(self, path: Path, needs_text: bool, trusted: bool) -> None:
        self.path, self.needs_text, self.trusted = path, needs_text, trusted

    def __iter__(self) -> Iterator[Cut]:
        read = 0
        try:
            for cut in self._read():
                if not self.trusted:
                    self._check(cut)
                yield cut
                read += 1
        except UNREADABLE as error:
            raise self._unreadable(error, line=read + 1) from error
        if not read:
            raise UserError(f"{self.path}: holds no cuts", fix="name another manifest, or run prepare.sh again")

    def _check(self, cut: Any) -> None:
        if not isinstance(cut, Cut):
            raise TypeError(f"{type(cut).__name__} instead of a cut")
        if fault := field_fault(cut):
            raise UserError(f"{self.path}: {fault}", fix="mend it or take the cut out")
        if self.needs_text and not text_of(cut):
            raise UserError(f"{self.path}: cut {cut.id} has no text", fix="let kdstream pseudo-label transcribe it")

    @property
    def _has_lines(self) -> bool:
        return not self.path.is_dir() and not self.path.name.endswith(EAGER)

    def _read(self) -> Iterable[Any]:
        if self.path.is_dir():
            return chain.from_iterable(map(read_shard, find_shards(self.path)))
        if self._has_lines:
            return iterate(CutSet.from_jsonl_lazy(self.path))
        try:
            return iterate(CutSet.from_file(self.path))
        except Exception as error:  # each format's parser raises its own kinds
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception, line: int = 0) -> UserError:
        """line: at which it came, if each cut has a line of the file."""
        what = " ".join(str(error).split())
        if self._has_lines and isinstance(error, OF_A_LINE):
            if isinstance(error, JSONDecodeError):  # of this line alone: it counts lines from its beginning
                what = f"column {error.colno}, {error.msg}"
            what = f"line {line}: {what}"
        fix = "give one of cuts, or delete it and run prepare.sh again"
        return UserError(f"{self.path}: damaged or not a manifest of cuts ({what})", fix=fix)


def write_manifest(manifest: CutSet | RecordingSet | SupervisionSet, path: Path) -> None:
    """Writes a Lhotse manifest, .jsonl.gz or .jsonl, whole or not at all."""
    with replacing(path, suffix="".join(path.suffixes)) as temporary:  # Lhotse compresses what is called .gz
        manifest.to_file(temporary)


def write_cuts(cuts: Sequence[Cut], path: Path) -> None:
    """Writes a manifest of cuts, and logs how many they are."""
    write_manifest(CutSet.from_cuts(cuts), path)
    logging.info(f"{path}: {len(cuts)} cuts, {sum(cut.duration for cut in cuts) / 3600:.2f} h")


def iterate(cuts: CutSet) -> Iterator[Cut]:
    """The cuts one by one; type checkers do not take Lhotse's own annotation of it."""
    return iter(cuts)  # pyright: ignore[reportReturnType, reportCallIssue, reportArgumentType]


def text_of(cut: Cut) -> str:
    """The cut's transcript, "" if it has none."""
    return (cut.supervisions[0].text or "").strip() if cut.supervisions else ""


def without_text(cut: Cut) -> Cut:
    """The cut as one of which nobody knows what is said in it."""
    return cut.drop_supervisions()


class DistinctIds:
    """Refuses a second cut with an id: scores, augmentation and teacher caches tell cuts apart by it.

    Args:
      what: the set of cuts.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.seen: set[int] = set()  # numbers, for a million of ids

    def add(self, cut_id: str) -> None:
        before = len(self.seen)
        self.seen.add(id_number(cut_id))
        if len(self.seen) == before:
            fix = "rename one with cut.with_id(), and name no manifest twice"
            raise UserError(f"{self.what}: two cuts have the id {cut_id}", fix=fix)

    def add_all(self, numbers: set[int], cut_ids: Iterable[str]) -> None:
        """Adds the cuts of a manifest, by the numbers of their ids; `cut_ids` are read only if one was there before."""
        if not self.seen.isdisjoint(numbers):
            for cut_id in cut_ids:
                self.add(cut_id)
        self.seen |= numbers


def fingerprint_of(cut_ids: Iterable[str]) -> str:
    """16 hexadecimal digits that stand for a set of cuts by their ids, in any order."""
    return hashlib.blake2b("\n".join(sorted(cut_ids)).encode(), digest_size=8).hexdigest()


def id_number(cut_id: str) -> int:
    """64 bits that stand for an id: the same in every process, and for a million of ids distinct."""
    return int.from_bytes(hashlib.blake2b(cut_id.encode(), digest_size=8).digest(), "little")
