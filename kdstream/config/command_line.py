"""The flags that every command on a trained model shares, and the experiment that they name."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace

from kdstream.config.decoding import DECODE_SECTIONS, DecodeConfig
from kdstream.config.distillation import TEACHERS, DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import (
    Section,
    add_arguments,
    add_overrides,
    flags_of,
    from_args,
    override,
    parser_of,
    with_settings,
)
from kdstream.config.sections import DataConfig

DATA_FLAGS = (
    "manifest_dir", "test_parts", "test_cuts", "bpe_model", "max_duration", "num_workers", "feature_extractor",
)  # fmt: skip
CACHE_DATA_FLAGS = (
    "manifest_dir", "train_parts", "train_cuts", "pseudo_cuts", "unlabelled_cuts", "bpe_model", "max_duration",
    "num_workers", "min_utterance_seconds", "max_utterance_seconds", "on_the_fly_feats", "feature_extractor",
)  # fmt: skip
LOG_FORMAT = "%(asctime)s %(levelname)s [%(filename)s:%(lineno)d] %(message)s"


def teacher_flags() -> list[str]:
    """The settings that say which teacher it is, and which of its weights."""
    own = [item.name for item in flags_of(DistillConfig) if item.name.startswith("teacher_")]
    brought = [name for names in TEACHERS.settings.values() for name in names]
    return [name for name in dict.fromkeys([*own, *brought]) if name != "teacher_cache"]


def read_flags(description: str | None, argv: Sequence[str] | None = None) -> tuple[ExperimentConfig, DecodeConfig]:
    """The experiment and how to decode it, for a script that has no flags of its own; see `read_experiment`.

    Args:
      description: the script's docstring.
      argv: instead of the command line.
    """
    return read_experiment(make_parser(description).parse_args(argv))


def make_parser(
    description: str | None,
    sections: Sequence[type[Section]] = DECODE_SECTIONS,
    data_flags: Sequence[str] = DATA_FLAGS,
) -> argparse.ArgumentParser:
    """A parser of the flags of `sections` of DECODE_SECTIONS, and of `data_flags`, which go before config.json."""
    parser = parser_of(description)
    for section in sections:
        add_arguments(parser, section)
    add_overrides(parser, DataConfig, *data_flags)
    return parser


def read_experiment(args: argparse.Namespace) -> tuple[ExperimentConfig, DecodeConfig]:
    """The experiment, from EXP_DIR/config.json and the flags that override it, and how to decode it.

    Args:
      args: from a parser of `make_parser`.
    Raises:
      UserError: no config.json in --exp-dir.
    """
    decode = from_args(DecodeConfig, args)
    config = ExperimentConfig.load(decode.exp_dir)
    return replace(config, data=override_data(config.data, args)), decode


def override_data(data: DataConfig, args: argparse.Namespace) -> DataConfig:
    """`override`, where parts that were typed also go before the cuts of config.json."""
    typed = override(data, args)
    for parts, cuts in (("train_parts", "train_cuts"), ("dev_parts", "valid_cuts"), ("test_parts", "test_cuts")):
        if getattr(args, parts, None) and not getattr(args, cuts, None):
            typed = with_settings(typed, **{cuts: ()})
    return typed


def log_to_stderr() -> None:
    """Logs to stderr from INFO on, in icefall's format."""
    logging.basicConfig(format=LOG_FORMAT, level=logging.INFO)


def typed_command() -> str:
    """The command line of this process, as a user repeats it: `python decode.py ...` or `kdstream decode ...`."""
    program, *flags = sys.argv
    command = program.split() if program.startswith("kdstream ") else ["python", os.path.relpath(program)]
    return shlex.join([*command, *flags])
