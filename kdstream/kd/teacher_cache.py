"""A teacher whose output is computed once, stored, and read back while students train.

cache_filling.py writes a cache, and cache_shards.py says what its files are.  `CachedTeacher.reader` is for the
processes that load data: it reads what a cache holds of a batch into Batch.stored, which goes to the device with the
rest of the batch.

Shapes: N batch, T frames, D width, F all numbers that are read of an utterance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from torch import Tensor

from kdstream.data.batch import Batch, mean_of
from kdstream.data.cuts import id_number, iterate
from kdstream.data.features import FBANK_CONFIG
from kdstream.errors import UserError, option
from kdstream.kd.cache_shards import (
    ENTRY,
    SUFFIX,
    WRITE_ANEW,
    Column,
    Shards,
    ShardWriter,
    columns_of,
    decode,
    encode,
    make_header,
)
from kdstream.kd.taps import TENSORS, Tap
from kdstream.kd.teacher import ENCODER_OUT, Heard, Teacher
from kdstream.models.streaming import OUTPUT_DOWNSAMPLING
from kdstream.models.transducer import Transducer
from kdstream.units import ENCODER_FRAME_MS

# Settings of training that choose its cuts; those of a cache are else the teacher's own.
OF_CUTS = ("bpe_model", "min_utterance_seconds", "max_utterance_seconds", "pseudo_cuts", "unlabelled_cuts")
MEAN_TOLERANCE = 0.05  # of log mel energies: stored with a loss, or computed anew; other speech differs by more


def fingerprint(teacher: Teacher, features: Mapping[str, Any] | None = None) -> str:
    """A hash of a teacher's parameters and settings, and of those of the features (ours)."""
    settings = {**(FBANK_CONFIG.to_dict() if features is None else features), **teacher.settings}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class CacheWriter:
    """Fills a cache; if the directory holds a part of one, it is completed.

    Args:
      directory: made if it is not there; several writers may fill it.
      teacher: the live one, which can be stored.
      layers: names of the layers to store, besides the encoder's output of a teacher that writes tokens.
      storage: one of CACHE_STORAGES.
      identity: of the teacher and the features; see `fingerprint`.
      attention: whether queries, keys and values of the layers are stored too.
    Raises:
      UserError: the directory holds a cache of something else, or the teacher lacks a layer.
    """

    def __init__(
        self,
        directory: Path,
        teacher: Teacher,
        layers: Sequence[str],
        storage: str,
        identity: str,
        attention: bool = True,
    ) -> None:
        self.directory, self.teacher, self.layers, self.storage = directory, teacher, list(layers), storage
        missing = [name for name in layers if name not in teacher.shapes]
        if missing:
            raise UserError(
                f"the teacher has {', '.join(teacher.shapes)}",
                flag=f"--layers {','.join(missing)}",
                fix="choose of these",
            )
        self.columns = columns_to_store(teacher, layers, TENSORS if attention else TENSORS[:1])
        header = make_header(identity, storage, self.columns)
        self.shards = Shards(directory)
        if self.shards.header not in (None, header):
            raise UserError(
                f"{directory}: holds the cache of another teacher, layers or format; delete it or give another --output"
            )
        self._writer = ShardWriter(directory, header)

    @property
    def bytes_per_hour(self) -> int:
        """That an hour of speech takes, without what each cut takes beside it."""
        return bytes_per_hour(self.columns, self.storage)

    def not_stored(self, batches: Iterable[CutSet], world_size: int, rank: int) -> Iterator[CutSet]:
        """Every world_size-th of the batches, from the rank-th on, without those that the cache holds.

        The first one stays, so that `add` notices other speech under the same ids.
        """
        for number, cuts in enumerate(islice(batches, rank, None, world_size)):
            if number == 0 or -1 in self.shards.find(cut.id for cut in iterate(cuts)):
                yield cuts

    def add(self, batch: Batch) -> None:
        """Stores what the teacher makes of a batch, unless it is there.  UserError if that is of other speech."""
        means = means_of(batch.host)
        places = self.shards.find(batch.cut_ids)
        for cut_id, place, mean in zip(batch.cut_ids, places, means, strict=True):
            if place >= 0:
                check_mean(f"--output {self.directory}", cut_id, float(self.shards.entry(place)[1]["mean"]), mean)
        new = [n for n, place in enumerate(places) if place < 0]
        if not new:
            return
        heard = self.teacher.listen(batch, self.layers)
        lens = self.teacher.encoder_frames(batch.host.feature_lens).tolist()
        blocks = [
            encode(tensor_of(heard, c), [length // c.stride for length in lens], self.storage) for c in self.columns
        ]
        entries = np.zeros(len(new), ENTRY)
        feature_lens = batch.host.feature_lens.tolist()
        for entry, n in zip(entries, new, strict=True):
            entry["key"] = id_number(batch.cut_ids[n])
            entry["feature_frames"], entry["frames"], entry["mean"] = feature_lens[n], lens[n], means[n]
        self._writer.append(entries, [b"".join(block[n] for block in blocks) for n in new])


def columns_to_store(teacher: Teacher, layers: Iterable[str], tensors: Collection[str]) -> list[Column]:
    """The encoder's output of a teacher that writes tokens, and of the layers these of TENSORS."""
    columns = []
    if teacher.writes_tokens:
        columns.append(Column(ENCODER_OUT, "features", teacher.output_dim, OUTPUT_DOWNSAMPLING))
    for name in layers:
        shape = teacher.shapes[name]
        columns += [
            Column(name, tensor, getattr(shape, tensor), shape.stride) for tensor in TENSORS if tensor in tensors
        ]
    return columns


def bytes_per_hour(columns: Iterable[Column], storage: str) -> int:
    """That an hour of speech takes in a cache of these columns."""
    return sum(c.bytes_of(3600 * 1000 // ENCODER_FRAME_MS, storage) for c in columns)


class CacheReader:
    """Reads what a cache holds of a batch, in a process that loads data.

    Args:
      columns: what is read, of those that the cache has.
    """

    def __init__(self, directory: Path, shards: Shards, columns: Sequence[Column]) -> None:
        assert shards.header is not None
        self.directory, self.shards, self.columns = directory, shards, columns
        self._storage, self._stored = shards.header["storage"], columns_of(shards.header)

    @property
    def flag(self) -> str:
        return option("teacher_cache", self.directory)

    def __call__(self, batch: Batch) -> Tensor:
        """(N, F) float16: column by column (frames of the longest utterance, width), with zeros behind the others.

        Raises UserError for a cut that is not there, or is of other speech; of one with noise only its length is known.
        """
        places = self.places_of(batch.cut_ids)
        found = [self.shards.entry(place) for place in places]
        for cut_id, (_, entry), frames in zip(batch.cut_ids, found, batch.feature_lens.tolist(), strict=True):
            if entry["feature_frames"] != frames:
                raise UserError(
                    f"cut {cut_id} has {entry['feature_frames']} frames there and {frames} here",
                    flag=self.flag,
                    fix=f"its features have changed, {WRITE_ANEW}",
                )
        for cut_id, (_, entry), mean in zip(batch.cut_ids, found, batch.means or [None] * len(found), strict=True):
            if mean is not None:
                check_mean(self.flag, cut_id, float(entry["mean"]), mean)
        sizes = self.sizes(max(int(entry["frames"]) for _, entry in found))
        stored = torch.zeros(len(found), sum(sizes), dtype=torch.float16)
        for row, (shard, entry) in zip(stored, found, strict=True):
            self.read(shard.data, entry, dict(zip(self.columns, row.split(sizes), strict=True)))
        return stored

    def sizes(self, longest: int) -> list[int]:
        """Numbers of each column in a batch whose longest utterance has so many encoder frames."""
        return [longest // c.stride * c.width for c in self.columns]

    def read(self, data: Tensor, entry: np.void, places: Mapping[Column, Tensor]) -> None:
        """Copies the columns of a cut from a shard's bytes to the beginning of their places."""
        frames, offset = int(entry["frames"]), int(entry["offset"])
        for column in self._stored:
            size = column.bytes_of(frames, self._storage)
            if column in places:
                block = decode(data[offset : offset + size], frames // column.stride, column.width, self._storage)
                places[column][: block.numel()] = block.flatten()
            offset += size

    def places_of(self, cut_ids: Iterable[str]) -> list[int]:
        """Where the cuts are.  Raises UserError unless every one of them is in the cache."""
        cut_ids = list(cut_ids)
        places = self.shards.find(cut_ids)
        missing = [cut_id for cut_id, place in zip(cut_ids, places, strict=True) if place < 0]
        if missing:
            raise UserError(
                f"lacks {len(missing)} of the training cuts "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})",
                flag=self.flag,
                fix="run kdstream cache-teacher on all of them, speed-perturbed ones included, with what is given here "
                f"of {', '.join(map(option, OF_CUTS))}",
            )
        return places


class CachedTeacher(Teacher):
    """A teacher that reads its output from a cache, by the cut's name; only joiner and CTC head, if any, still run.

    The output is of clean cuts: noise or masks on the student's features do not change it.

    Args:
      teacher: whose cache it is.
      identity: of that teacher and the features; see `fingerprint`.
    Raises:
      UserError: the cache is missing or damaged, or is of another teacher or of other features.
    """

    def __init__(self, teacher: Teacher, directory: Path, identity: str) -> None:
        self.teacher, self.shapes = teacher, teacher.shapes
        self.writes_tokens, self.gives_weights = teacher.writes_tokens, teacher.gives_weights
        self.has_ctc = teacher.has_ctc
        self.directory = directory
        self.flag = option("teacher_cache", directory)
        try:
            self.shards = Shards(directory)
        except UserError as error:
            raise UserError(error.problem, flag=self.flag, fix=error.fix) from error
        if self.shards.header is None:
            raise UserError(f"no *{SUFFIX} there", flag=self.flag, fix="write it with kdstream cache-teacher")
        if self.shards.header["fingerprint"] != identity:
            raise UserError(
                "is of another teacher or of other features",
                flag=self.flag,
                fix="give the --teacher-epoch and --teacher-avg that it was written with, or write a new one with "
                "kdstream cache-teacher",
            )
        self._columns = columns_of(self.shards.header)
        self._reader = CacheReader(directory, self.shards, self._columns)

    def check_cuts(self, cut_ids: Iterable[str]) -> None:
        """Raises UserError unless every one of them is in the cache."""
        self._reader.places_of(cut_ids)

    def lattice_logits(self, encoder_out: Tensor, tokens: Tensor, ranges: Tensor) -> Tensor:
        return self.teacher.lattice_logits(encoder_out, tokens, ranges)

    def ctc_log_probs(self, encoder_out: Tensor) -> Tensor:
        return self.teacher.ctc_log_probs(encoder_out)

    def hypotheses(self, encoder_out: Tensor, lens: Tensor) -> list[list[int]]:
        return self.teacher.hypotheses(encoder_out, lens)

    def check_layers(self) -> None:
        self.teacher.check_layers()
        self.encoder = self.teacher.encoder

    def encoder_frames(self, feature_lens: Tensor) -> Tensor:
        return self.teacher.encoder_frames(feature_lens)

    def state_dict(self) -> dict[str, Tensor]:
        return self.teacher.state_dict()

    def weights_for(self, student: Transducer) -> dict[str, Tensor]:
        return self.teacher.weights_for(student)

    def reader(self, wanted: Collection[tuple[str, str]]) -> CacheReader:
        """Reads these alone; `listen` expects them in every batch that has been read with its `stored`."""
        self._reader = self._reader_of(wanted)
        return self._reader

    def _reader_of(self, wanted: Collection[tuple[str, str]]) -> CacheReader:
        """Raises UserError where the cache lacks one of them."""
        stored = {(c.layer, c.tensor) for c in self._columns}
        if missing := set(wanted) - stored:
            layers = {layer for layer, _ in stored.union(wanted)} - {ENCODER_OUT}
            without = sorted({layer for layer, _ in missing} - {layer for layer, _ in stored})
            attention = "" if without else f"the attention ({', '.join(TENSORS[1:])}) of "
            raise UserError(
                f"lacks {attention}layers {','.join(without or sorted({layer for layer, _ in missing}))}",
                flag=self.flag,
                fix=f"write it with --layers {','.join(sorted(layers))}{' --attention 1' if attention else ''}",
            )
        columns = [c for c in self._columns if (c.layer, c.tensor) in wanted]
        return CacheReader(self.directory, self.shards, columns)

    def listen(self, batch: Batch, layers: Iterable[str]) -> Heard:
        names, reader, stored = list(layers), self._reader, batch.stored
        if stored is None:
            there = {(c.layer, c.tensor) for c in self._columns if c.layer in (ENCODER_OUT, *names)}
            reader = self._reader_of(there | {(name, "features") for name in names})
            stored = reader(batch.host).to(batch.features.device)
        lens = self.encoder_frames(batch.feature_lens)
        longest = self._longest(batch)
        parts = stored.to(batch.features.dtype).split(reader.sizes(longest), dim=1)
        pairs = zip(reader.columns, parts, strict=True)
        tensors = {(c.layer, c.tensor): part.unflatten(1, (longest // c.stride, c.width)) for c, part in pairs}
        encoder_out = tensors.get((ENCODER_OUT, "features"))
        return Heard({name: self.tap_of(name, tensors, lens) for name in names}, encoder_out)

    def _longest(self, batch: Batch) -> int:
        """Encoder frames of the longest utterance, known on the host."""
        return int(self.encoder_frames(torch.tensor([batch.features.size(1)])))

    def stored_size(self, batch: Batch) -> int:
        return sum(self._reader.sizes(self._longest(batch)))

    def tap_of(self, layer: str, tensors: Mapping[tuple[str, str], Tensor], encoder_lens: Tensor) -> Tap:
        """A layer's tap, whose queries, keys and values have no width where they were not read."""
        features, stride = tensors[layer, "features"], self.shapes[layer].stride
        given = {name: tensors.get((layer, name), features[:, :, :0]) for name in TENSORS}
        return Tap(**given, lens=torch.div(encoder_lens, stride, rounding_mode="floor"), stride=stride)


def tensor_of(heard: Heard, column: Column) -> Tensor:
    """(N, T, width): what stands in this column."""
    if column.layer != ENCODER_OUT:
        return getattr(heard.layers[column.layer], column.tensor)
    if heard.encoder_out is None:
        raise ValueError("this teacher writes no tokens, so that it cannot be stored")
    return heard.encoder_out


def means_of(batch: Batch) -> list[float]:
    """`mean_of` the features of each utterance."""
    lens = batch.feature_lens.tolist()
    return [mean_of(features[:length]) for features, length in zip(batch.features, lens, strict=True)]


def check_mean(whose: str, cut_id: str, stored: float, mean: float) -> None:
    """Raises UserError if the features of a cut are not those that the teacher heard."""
    if abs(stored - mean) > MEAN_TOLERANCE:
        raise UserError(
            f"cut {cut_id} is of other speech there",
            flag=whose,
            fix="its features have changed, write a new cache",
        )
