"""A comparison of distillation methods: every method trained with several seeds, one budget and one teacher."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdstream.checkpoints.store import has_begun, last_epoch
from kdstream.config.command_line import CACHE_DATA_FLAGS
from kdstream.config.distillation import DistillConfig
from kdstream.config.flags import flag_value, flags_of
from kdstream.config.sections import DataConfig
from kdstream.errors import UserError, option
from kdstream.evaluation.records import Record, load_newest, newest
from kdstream.experiments.cells import Cell, Flags, all_records, seen_from
from kdstream.experiments.method_table import IN_FULL_CONTEXT, METHODS, WITHOUT_TEACHER
from kdstream.experiments.train_flags import (
    FLAGS_FILE,
    flags_begun_with,
    read_section,
    same_training,
    without_flags,
)
from kdstream.kd.cache_shards import VERSION
from kdstream.kd.teachers import flags_without_effect, read_without_teacher

TEACHER = "teacher"
SYSTEMS = [TEACHER]  # in the order of tables
for _method in METHODS:
    SYSTEMS += [_method, *([IN_FULL_CONTEXT[_method]] if _method in IN_FULL_CONTEXT else [])]

# run.sh's, but for --lr-epochs; one process takes two batches to a step where its two take one each, which gives the
# same gradients.  The learning rate is the one at which the baseline ends best.
EMBEDDED_CORPUS = (
    "--preset tiny --causal 1 --chunk-size 8 --left-context-frames 32 --bpe-model data/lang_bpe_64/bpe.model "
    "--max-duration 15 --accum-grad 2 --num-workers 0 --ref-duration 1.5 --warm-step 200 --lr-warmup-batches 100 "
    "--lr-batches 300 --lr-epochs 6 --average-period 10 --valid-interval 100000 --save-every-n 50 --keep-last-k 1 "
    "--use-ctc 1 --ctc-loss-scale 0.5 --enable-spec-aug 0 --kd-warmup-batches 100 --base-lr 0.07"
)

CHUNK_FLAGS = ("chunk_size", "left_context_frames", "right_context_frames")  # of decode.py


@dataclass(frozen=True)
class Comparison:
    """What is compared, and the cells that this takes.

    recipe: the directory in which every command runs; paths in flags are as seen from there.
    exp_root: directory of the students, and of the teacher unless `teacher_exp_dir` names another one.
    methods: keys of METHODS; each is trained with every one of `seeds`.
    num_epochs, teacher_num_epochs: epochs of a student's training and of the teacher's.
    avg: epochs whose mean teaches and is decoded.
    cache_teacher: whether what the teacher computes is stored, and read by the students.
    cache_layers: the teacher's layers to store; empty for the last one of each stack that downsamples.
    train_flags, decode_flags: added to those of every training and of every decoding.
    """

    recipe: Path
    exp_root: Path
    methods: Sequence[str]
    seeds: Sequence[int]
    num_epochs: int
    teacher_num_epochs: int
    avg: int
    teacher_exp_dir: Path | None = None
    cache_teacher: bool = False
    cache_layers: str = ""
    train_flags: Sequence[str] = ()
    decode_flags: Sequence[str] = ()

    def cells(self) -> list[Cell]:
        """The teacher, if a method needs it, and every method with every seed."""
        cells = [self.teacher] if set(self.methods).difference(WITHOUT_TEACHER) else []
        return cells + [self._student(method, seed) for method in self.methods for seed in self.seeds]

    @cached_property
    def teacher(self) -> Cell:
        """The teacher's training in full context, its decodings and its cache.

        A teacher of --teacher-exp-dir that was trained otherwise is only decoded.
        """
        flags = (
            *self._unguided_flags(TEACHER),
            "--num-epochs",
            str(self.teacher_num_epochs),
            "--causal",
            "0",
            "--seed",
            "1",
        )
        exp_dir = self.teacher_exp_dir or self.exp_root / TEACHER
        teacher = self._cell(exp_dir, TEACHER, flags)
        if self.teacher_exp_dir and is_trained_otherwise(exp_dir, flags):
            (decoding,) = teacher.decodings
            results = ("--results-json", seen_from(self.recipe, self.exp_root / "teacher.json"))
            teacher = replace(teacher, train_flags=None, decodings=((*decoding, *results),))
        teacher = replace(teacher, epoch=self._teacher_epoch(teacher))
        if self.cache_teacher:
            teacher = replace(teacher, cache=self._cache_dir, cache_flags=self._cache_flags(teacher.epoch))
        return teacher

    def _teacher_epoch(self, teacher: Cell) -> int:
        """The epoch that teaches: what --train-flags name; 0 for the one that ends the teacher's training here.

        Of a teacher that is trained elsewhere, and may be trained further, it is the epoch that taught the students
        that are there already, else its last one.
        """
        named = read_section(DistillConfig, self.train_flags).teacher_epoch
        if named or teacher.train_flags is not None:
            return named
        return epoch_that_taught(self.exp_root, teacher.exp_dir) or last_epoch(teacher.folder)

    def _student(self, method: str, seed: int) -> Cell:
        exp_dir, seed_flags = self.exp_root / f"{method}-{seed}", ("--seed", str(seed))
        if method in WITHOUT_TEACHER:
            return self._cell(exp_dir, method, (*self._unguided_flags(method), *seed_flags))
        teacher = self.teacher
        guidance = ["--teacher-exp-dir", teacher.exp_dir, "--teacher-avg", str(self.avg)]
        if teacher.epoch:
            guidance += ["--teacher-epoch", str(teacher.epoch)]
        if teacher.cache:
            guidance += ["--teacher-cache", teacher.cache]
        flags = (*self._budget, *guidance, *METHODS[method].split(), *seed_flags)
        unread = flags_without_effect(read_section(DistillConfig, flags))
        return replace(self._cell(exp_dir, method, tuple(without_flags(flags, unread))), after=teacher)

    def _cell(self, exp_dir: Path, system: str, train_flags: Flags) -> Cell:
        """A training and its decoding; of a student that is trained in both modes one in full context too."""
        whole = tuple(without_flags(self.decode_flags, CHUNK_FLAGS))
        ways = [(whole if system == TEACHER else self.decode_flags, system)]
        if system in IN_FULL_CONTEXT:
            ways.append(((*whole, "--chunk-size", "-1"), IN_FULL_CONTEXT[system]))
        decodings = tuple(("decode", "--avg", str(self.avg), *flags, "--system", name) for flags, name in ways)
        return Cell(self.recipe, seen_from(self.recipe, exp_dir), train_flags, decodings)

    @property
    def _budget(self) -> Flags:
        """The flags that all trainings share."""
        return ("--num-epochs", str(self.num_epochs), *shlex.split(EMBEDDED_CORPUS), *self.train_flags)

    def _unguided_flags(self, method: str) -> Flags:
        """Those of a method without a teacher, which reads few of the distillation flags, or none."""
        own = METHODS.get(method, "").split()
        in_both_modes = read_section(DistillConfig, own).runs_both_modes
        read = read_without_teacher(read_section(DistillConfig, (*self._budget, *own))) if in_both_modes else ()
        unread = [flag.name for flag in flags_of(DistillConfig) if flag.name not in read]
        return (*without_flags(self._budget, unread), *own)

    @property
    def _cache_dir(self) -> str:
        """A directory of its own for each format of the cache and each choice of layers."""
        layers = self.cache_layers.split(",") if self.cache_layers else []
        return seen_from(self.recipe, self.exp_root / "-".join([f"teacher-cache-v{VERSION}", *layers]))

    def _cache_flags(self, epoch: int) -> Flags:
        """Of cache-teacher: which teacher and layers, and the cuts of the students, not those of the teacher."""
        data = read_section(DataConfig, self._budget)
        settings = {"teacher_avg": self.avg, "teacher_epoch": epoch, "layers": self.cache_layers}
        settings.update({name: getattr(data, name) for name in CACHE_DATA_FLAGS})
        return tuple(word for name, value in settings.items() for word in (option(name), flag_value(value)))

    def check(self) -> None:
        """Raises UserError where --cache-teacher stores other layers than --train-flags tap, or stores nothing."""
        distill = read_section(DistillConfig, self.train_flags)
        other_layers = distill.kd_layers or distill.kd_layer_map != DistillConfig.kd_layer_map
        if self.cache_teacher and other_layers and not self.cache_layers:
            raise UserError(
                "stores the last layer of each stack that downsamples, but --train-flags tap other layers",
                flag="--cache-teacher 1",
                fix="name the teacher's layers with --cache-layers, e.g. 1.0,2.1",
            )
        if self.cache_layers and not self.cache_teacher:
            raise UserError("no cache is written", flag="--cache-layers", fix="give --cache-teacher 1 too")


def is_trained_otherwise(exp_dir: Path, flags: Sequence[str]) -> bool:
    """Whether `exp_dir` holds a training that was begun with other flags than these."""
    if not has_begun(exp_dir):
        return False
    return not ((exp_dir / FLAGS_FILE).is_file() and same_training(flags, flags_begun_with(exp_dir)))


def epoch_that_taught(exp_root: Path, teacher_exp_dir: str) -> int:
    """The epoch of this teacher from which the students in `exp_root` learn; 0 where there is none yet."""
    for folder in sorted(path.parent for path in exp_root.glob(f"*/{FLAGS_FILE}")):
        if not has_begun(folder):
            continue
        distill = read_section(DistillConfig, flags_begun_with(folder))
        if Path(distill.teacher_exp_dir) == Path(teacher_exp_dir) and distill.teacher_epoch:
            return distill.teacher_epoch
    return 0


def load_added(paths: Sequence[Path]) -> list[Record]:
    """The records of results JSONs that --add-results names, of each training those of the checkpoint decoded last.

    Raises UserError if a system is no method, or if two files hold one seed with other errors: it counts once.
    """
    added: dict[tuple[Any, ...], tuple[Path, Record]] = {}
    for path in paths:
        try:
            records = load_newest(path)
        except UserError as error:
            raise UserError(error.problem, flag=option("add_results"), fix=error.fix) from error
        unknown = {record.system for record in records}.difference(SYSTEMS)
        if unknown:
            raise UserError(
                f"not from a comparison of methods; it has {', '.join(unknown)}", flag=option("add_results", path)
            )
        for record in records:
            first, same = added.setdefault(record.training, (path, record))
            if same.utterance_errors != record.utterance_errors:
                problem = f"{record.shown}: is in {first} too, with other errors, and a seed counts once"
                raise UserError(problem, flag=option("add_results", path), fix="leave one of them out")
    return [record for _, record in added.values()]


def records_of(cells: Sequence[Cell], added: Sequence[Record]) -> list[Record]:
    """The records of the cells so far, and of `added` those that the cells lack; in the order of METHODS.

    The log warns of added ones that have other errors than those of the cells, in place of which they do not count.
    """
    own = all_records(cells)
    errors = {record.training: record.utterance_errors for record in own}
    for record in added:
        if errors.get(record.training, record.utterance_errors) != record.utterance_errors:
            why = "does not count, as the seed was trained here too, with other errors"
            logging.warning(f"{option('add_results')}: {record.shown}: {why}")
    records = newest([*added, *own])
    return sorted(records, key=lambda record: (SYSTEMS.index(record.system), record.seed))
