"""A teacher whose output is computed once, stored, and read back while students train.

A cache is a directory that local/cache_teacher.py writes:

    cache.json      which teacher and features it is of, and what the columns of its arrays are
    index.jsonl     for each cut, the Lhotse arrays that hold it, one for each frame rate, and the mean of its features
    arrays/         the arrays, (frames, columns), in float16 or compressed to about 8 bits by lilcom

Shapes: N batch, T frames, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from lhotse.array import Array
from lhotse.features.io import LilcomFilesWriter, NumpyFilesWriter
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdstream.config.sections import CACHE_STORAGES
from kdstream.data.batch import Batch
from kdstream.data.mixture import REPEATED
from kdstream.errors import UserError, option
from kdstream.files import write_text, writing
from kdstream.kd.taps import TENSORS, Tap
from kdstream.kd.teacher import Heard, Teacher
from kdstream.models.streaming import OUTPUT_DOWNSAMPLING
from kdstream.models.transducer import Transducer

VERSION = 2
HEADER, INDEX, ARRAYS = "cache.json", "index.jsonl", "arrays"
FORMATS: dict[str, Any] = dict(zip(CACHE_STORAGES, (NumpyFilesWriter, LilcomFilesWriter), strict=True))
ENCODER_OUT = "encoder_out"
Entry = dict[str, Any]  # a line of the index
REPETITION = re.compile(rf"{REPEATED}\d+$")  # what the id of a cut's repetition ends in
MEAN_TOLERANCE = 0.05  # of log mel energies: stored with a loss, or computed anew; other speech differs by more


class Columns(NamedTuple):
    """A tensor's place among the columns of an array: of which layer (or ENCODER_OUT), which tensor, how wide."""

    layer: str
    tensor: str
    width: int


def fingerprint(teacher: Teacher, features: Mapping[str, Any]) -> str:
    """A hash of a teacher's parameters and of the settings of its features."""
    digest = hashlib.sha256(json.dumps(dict(features), sort_keys=True).encode())
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class CacheWriter:
    """Fills a cache; if the directory holds a part of one, it is completed.

    Args:
      directory: made if it is not there.
      teacher: the live one; it writes tokens.
      layers: names of the layers to store, besides the encoder's output.
      storage: a key of FORMATS.
    Raises:
      UserError: the directory holds a cache of something else, or the teacher lacks a layer.
    """

    def __init__(self, directory: Path, teacher: Teacher, layers: Sequence[str], storage: str, identity: str) -> None:
        self.directory, self.teacher, self.layers = directory, teacher, list(layers)
        missing = [name for name in layers if name not in teacher.shapes]
        if missing:
            raise UserError(
                f"the teacher has {', '.join(teacher.shapes)}",
                flag=f"--layers {','.join(missing)}",
                fix="choose of these",
            )
        header = {"version": VERSION, "fingerprint": identity, "storage": storage, "columns": self.columns()}
        path = directory / HEADER
        if not path.exists():
            write_text(path, json.dumps(header, indent=2) + "\n")
        elif not holds(path, header):
            raise UserError(
                f"{directory}: holds the cache of another teacher, layers or format; delete it or give another --output"
            )
        (directory / INDEX).touch()
        self.index = read_index(directory)
        cut_half_line(directory / INDEX)
        self._writer = FORMATS[storage](str(directory / ARRAYS))
        self._dtype = np.float16 if storage == "float16" else np.float32

    def columns(self) -> dict[int, list[Columns]]:
        """By frame rate (encoder frames per frame), what the columns of an array are."""
        columns = {OUTPUT_DOWNSAMPLING: [Columns(ENCODER_OUT, "features", self.teacher.output_dim)]}
        for name in self.layers:
            shape = self.teacher.shapes[name]
            widths = (shape.features, shape.query, shape.key, shape.value)
            columns.setdefault(shape.stride, []).extend(
                Columns(name, *pair) for pair in zip(TENSORS, widths, strict=True)
            )
        return columns

    def add(self, batch: Batch) -> None:
        """Stores what the teacher makes of a batch, unless it is there.  UserError if that is of other speech."""
        means = means_of(batch)
        there = [
            (self.index[cut_id], mean)
            for cut_id, mean in zip(batch.cut_ids, means, strict=True)
            if cut_id in self.index
        ]
        for entry, mean in there:
            check_mean(f"--output {self.directory}", entry, mean)
        if len(there) == len(means):
            return
        heard = self.teacher.listen(batch, self.layers)
        lens = self.teacher.encoder_frames(batch.feature_lens)
        arrays: dict[int, np.ndarray] = {}
        for stride, columns in self.columns().items():
            tensors = [tensor_of(heard, c) for c in columns]
            limit = float(np.finfo(self._dtype).max)
            arrays[stride] = torch.cat(tensors, dim=2).float().clamp(-limit, limit).cpu().numpy().astype(self._dtype)
        path = self.directory / INDEX
        with writing(path), path.open("a", encoding="utf8") as index:
            for n, (cut_id, mean) in enumerate(zip(batch.cut_ids, means, strict=True)):
                if cut_id in self.index:
                    continue  # a kill while its array is written anew would leave half of it behind its line
                stored = {s: self.store(f"{cut_id}-{s}", x[n, : int(lens[n]) // s]) for s, x in arrays.items()}
                index.write(json.dumps({"cut": cut_id, "mean": mean, "arrays": stored}) + "\n")

    def store(self, key: str, array: np.ndarray) -> dict[str, Any]:
        """Lhotse's description of the stored array (frames, columns)."""
        try:
            key = self._writer.write(quote(key, safe=""), np.ascontiguousarray(array))
        except OSError as error:  # numpy's says neither number nor file
            problem = f"{self.directory / ARRAYS}: cannot be written ({error})"
            raise UserError(problem, fix="free space on its disk, then repeat the command") from error
        return Array(self._writer.name, ARRAYS, key, list(array.shape)).to_dict()


class CachedTeacher(Teacher):
    """A teacher that reads its output from a cache, by the cut's name; only its joiner still runs.

    The output is of clean cuts: noise or masks on the student's features do not change it.

    Args:
      teacher: whose cache it is; it writes tokens.
      clean: whether the student's features have neither noise nor masks, so that they can be held against those that
        the teacher heard.
    Raises:
      UserError: the cache is missing or damaged, or is of another teacher or of other features.
    """

    writes_tokens = True
    gives_weights = True

    def __init__(self, teacher: Teacher, directory: Path, identity: str, clean: bool = False) -> None:
        self.teacher, self.shapes, self.output_dim = teacher, teacher.shapes, teacher.output_dim
        self.directory, self.clean = directory, clean
        try:
            header = json.loads((directory / HEADER).read_text())
            if header["version"] != VERSION:
                raise ValueError(f"of version {header['version']}, not {VERSION}")
            self.columns = {int(s): [Columns(*c) for c in columns] for s, columns in header["columns"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(str(error), flag=self.flag, fix="write it with local/cache_teacher.py") from error
        self.index = read_index(directory)
        if header["fingerprint"] != identity:
            raise UserError(
                "is of another teacher or of other features",
                flag=self.flag,
                fix="give the --teacher-epoch and --teacher-avg that it was written with, or write a new one with "
                "local/cache_teacher.py",
            )

    def check_cuts(self, cut_ids: Iterable[str]) -> None:
        """Raises UserError unless every one of them is in the cache."""
        self.entries_of(cut_ids)

    def entries_of(self, cut_ids: Iterable[str]) -> list[Entry]:
        """What the index has of the cuts.  Raises UserError unless every one of them is in the cache."""
        found = [(cut_id, self.find(cut_id)) for cut_id in cut_ids]
        missing = [cut_id for cut_id, entry in found if entry is None]
        if missing:
            raise UserError(
                f"lacks {len(missing)} of the training cuts "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})",
                flag=self.flag,
                fix="run local/cache_teacher.py on all of them, speed-perturbed ones included",
            )
        return [entry for _, entry in found if entry is not None]

    @property
    def flag(self) -> str:
        return option("teacher_cache", self.directory)

    def lattice_logits(self, encoder_out: Tensor, tokens: Tensor, ranges: Tensor) -> Tensor:
        return self.teacher.lattice_logits(encoder_out, tokens, ranges)

    def check_layers(self) -> None:
        self.teacher.check_layers()
        self.encoder = self.teacher.encoder

    def encoder_frames(self, feature_lens: Tensor) -> Tensor:
        return self.teacher.encoder_frames(feature_lens)

    def state_dict(self) -> dict[str, Tensor]:
        return self.teacher.state_dict()

    def weights_for(self, student: Transducer) -> dict[str, Tensor]:
        return self.teacher.weights_for(student)

    def listen(self, batch: Batch, layers: Iterable[str]) -> Heard:
        stored = {c.layer for columns in self.columns.values() for c in columns}
        missing = sorted(set(layers) - stored)
        if missing:
            raise UserError(
                f"lacks layers {','.join(missing)}",
                flag=self.flag,
                fix=f"write it with --layers {','.join(sorted((stored | set(layers)) - {ENCODER_OUT}))}",
            )
        entries = self.entries_of(batch.cut_ids)
        if self.clean:
            for entry, mean in zip(entries, means_of(batch.host), strict=True):
                check_mean(self.flag, entry, mean)
        encoder_lens = self.encoder_frames(batch.feature_lens)
        taps: dict[str, dict[str, Any]] = {}
        for stride, columns in self.columns.items():
            lens = torch.div(encoder_lens, stride, rounding_mode="floor")
            frames = torch.div(self.encoder_frames(batch.host.feature_lens), stride, rounding_mode="floor").tolist()
            arrays = [self.load(entry, stride, count) for entry, count in zip(entries, frames, strict=True)]
            block = pad_sequence(arrays, batch_first=True).to(batch.features)  # (N, T, columns)
            for c, tensor in zip(columns, block.split([c.width for c in columns], dim=2), strict=True):
                taps.setdefault(c.layer, {"lens": lens, "stride": stride})[c.tensor] = tensor
        encoder_out = taps.pop(ENCODER_OUT)["features"]
        return Heard({name: Tap(**taps[name]) for name in layers}, encoder_out)

    def find(self, cut_id: str) -> Entry | None:
        """What the index has of a cut, under its own name or, for a repetition, under that of the cut."""
        return self.index.get(cut_id) or self.index.get(REPETITION.sub("", cut_id))

    def load(self, entry: Entry, stride: int, frames: int) -> Tensor:
        """The array of a cut, (frames, columns).  Raises UserError if it is damaged or of another length."""
        cut_id = entry["cut"]
        array = Array.from_dict(entry["arrays"][str(stride)]).with_path_prefix(self.directory)
        try:
            values = array.load()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"cut {cut_id} cannot be read ({error})", flag=self.flag, fix="write a new cache"
            ) from error
        if len(values) != frames:
            raise UserError(
                f"cut {cut_id} has {len(values)} frames there and {frames} here",
                flag=self.flag,
                fix="its features have changed, write a new cache",
            )
        return torch.from_numpy(values)


def tensor_of(heard: Heard, column: Columns) -> Tensor:
    """(N, T, width): what stands in these columns."""
    if column.layer != ENCODER_OUT:
        return getattr(heard.layers[column.layer], column.tensor)
    if heard.encoder_out is None:
        raise ValueError("this teacher writes no tokens, so that it cannot be stored")
    return heard.encoder_out


def holds(path: Path, header: Mapping[str, Any]) -> bool:
    """Whether the JSON file at `path` is this header."""
    try:
        return json.loads(path.read_text()) == json.loads(json.dumps(header))
    except ValueError:
        return False


def read_index(directory: Path) -> dict[str, Entry]:
    """By cut id: the mean of its features, and by frame rate the descriptions of its stored arrays.

    A last line without its end, at which the writer was killed, does not count.
    """
    path = directory / INDEX
    index: dict[str, Entry] = {}
    try:
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                index[entry["cut"]] = {name: entry[name] for name in ("cut", "mean", "arrays")}
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}: line {number} is damaged", fix="delete the cache and write it anew"
                ) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", fix="write the cache with local/cache_teacher.py") from error
    return index


def cut_half_line(path: Path) -> None:
    """Cuts off what follows the last line, where the writer was killed; nothing else is written."""
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def means_of(batch: Batch) -> list[float]:
    """Of each utterance the mean of its features: what tells other speech of the same length."""
    lens = batch.feature_lens.tolist()
    return torch.stack(
        [features[:length].double().mean() for features, length in zip(batch.features, lens, strict=True)]
    ).tolist()


def check_mean(whose: str, entry: Entry, mean: float) -> None:
    """Raises UserError if an utterance is not the one that an entry of the index is of."""
    if abs(entry["mean"] - mean) > MEAN_TOLERANCE:
        raise UserError(
            f"cut {entry['cut']} is of other speech there",
            flag=whose,
            fix="its features have changed, write a new cache",
        )
