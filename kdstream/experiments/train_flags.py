"""Flags of train.py: what they set, and whether two lists of them describe the same training."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdstream.checkpoints.store import has_begun
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import Config, add_arguments, from_args, parser_of
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig
from kdstream.errors import option
from kdstream.kd.teachers import flags_without_effect

FLAGS_FILE = "train-flags.txt"  # in an experiment directory: the flags with which its training was begun


def read_section(section: type[Config], flags: Sequence[str]) -> Config:
    """The settings of one section that `flags` make; flags of other sections are passed over."""
    parser = parser_of(None, add_help=False)
    add_arguments(parser, section)
    return from_args(section, parser.parse_known_args(flags)[0])


def without_flags(flags: Sequence[str], names: Iterable[str]) -> list[str]:
    """`flags` without the settings `names` (with underscores) and their values."""
    parser = parser_of(None, add_help=False)
    for name in names:
        parser.add_argument(option(name))
    return parser.parse_known_args(flags)[1]


def flags_begun_with(exp_dir: Path) -> list[str]:
    """The flags with which the training in `exp_dir` was begun, from its train-flags.txt.

    Where they name no epoch of the teacher, the epoch that the training found then is added, from its config.json,
    unless the training came to no checkpoint.
    """
    flags = shlex.split((exp_dir / FLAGS_FILE).read_text(encoding="utf8"))
    distill = read_section(DistillConfig, flags)
    if distill.teacher_exp_dir and not distill.teacher_epoch and has_begun(exp_dir):
        flags += [option("teacher_epoch"), str(ExperimentConfig.load(exp_dir).distill.teacher_epoch)]
    return flags


def same_training(flags: Sequence[str], begun: Sequence[str]) -> bool:
    """Whether a training that was begun with the flags `begun` can go on with `flags`.

    The settings are compared, not the texts: the order of the flags, defaults that are typed out, distillation flags
    that nothing reads, the place of the teacher's cache and how the teacher's directory is spelled do not count.  Where
    one of the two names no epoch of the teacher, the training keeps the epoch that it began with.
    """
    try:
        now, then = _settings(flags), _settings(begun)
    except argparse.ArgumentError:  # flags of another version
        return False
    if not (now["teacher_epoch"] and then["teacher_epoch"]):
        then["teacher_epoch"] = now["teacher_epoch"]
    return now == then


def _settings(flags: Sequence[str]) -> dict[str, Any]:
    """All settings that matter to a training; under "" what is no flag of train.py."""
    parser = parser_of(None, add_help=False, exit_on_error=False)
    for section in (TrainConfig, ModelConfig, DataConfig, DistillConfig):
        add_arguments(parser, section)
    args, unknown = parser.parse_known_args(flags)
    defaults = DistillConfig()
    unread = {name: getattr(defaults, name) for name in flags_without_effect(from_args(DistillConfig, args))}
    settings = {**vars(args), **unread, "": unknown}
    teacher = settings["teacher_exp_dir"]
    return {
        **settings,
        "teacher_cache": bool(settings["teacher_cache"]),
        "teacher_exp_dir": teacher and os.path.normpath(teacher),
    }
