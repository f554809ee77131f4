"""Flags and dataclasses: what one says the other holds, and what cannot be meant is refused by name."""

from __future__ import annotations

import argparse

import pytest

import kdstream.decoding.settings  # noqa: F401  fills the table of searches, of which --decoding-method names one
from kdstream.config.decoding import DecodeConfig
from kdstream.config.distillation import DistillConfig
from kdstream.config.flags import (
    add_arguments,
    flag_value,
    flags_of,
    from_args,
    from_dict,
    parser_of,
    settings_of,
    to_dict,
)
from kdstream.config.labels import LabelConfig
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig
from kdstream.lm.settings import LmConfig

CONFIGS = (ModelConfig, DataConfig, TrainConfig, DistillConfig, DecodeConfig, LabelConfig, LmConfig)


def parse(config_class: type, flags: list[str]):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser, config_class)
    return from_args(config_class, parser.parse_args(flags))


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_default_is_a_value_that_its_flag_takes(config_class):
    flags = []
    for item in flags_of(config_class):
        if item.default is not None:
            flags += [f"--{item.name.replace('_', '-')}", flag_value(item.default)]
    parsed, untyped = parse(config_class, flags), parse(config_class, [])
    assert settings_of(parsed) == settings_of(untyped) == settings_of(config_class())


@pytest.mark.parametrize(
    "config_class, flag, text, value",
    [
        (ModelConfig, "--chunk-size", "-1,8", (-1, 8)),
        (ModelConfig, "--left-context-frames", "-1", (-1,)),
        (DecodeConfig, "--lodr-scale", "-1e-1", -0.1),
        (DecodeConfig, "--lodr-scale", "-.5", -0.5),
    ],
)
def test_a_value_may_begin_with_a_minus(config_class, flag, text, value):
    parser = parser_of(None)
    add_arguments(parser, config_class)
    parsed = from_args(config_class, parser.parse_args([flag, text]))
    assert getattr(parsed, flag.removeprefix("--").replace("-", "_")) == value
    with pytest.raises(SystemExit):
        parser.parse_args([flag, "--device"])


def test_a_shift_is_a_number_or_auto():
    for text, value in (("0", 0), ("3", 3), ("auto:4", "auto:4")):
        config = parse(DistillConfig, ["--kd-token-shift", text])
        assert config.kd_token_shift == value == from_dict(DistillConfig, to_dict(config)).kd_token_shift
    with pytest.raises(TypeError, match="kd_token_shift is 'auto'"):
        from_dict(DistillConfig, {"kd_token_shift": "auto"})


@pytest.mark.parametrize(
    "config_class, flag, value, message",
    [
        (DistillConfig, "--kd-token-shift", "-1", "-1: must be at least 0"),
        (DistillConfig, "--kd-token-shift", "auto:0", "auto:0: neither a number nor a text like auto:4"),
        (DistillConfig, "--kd-token-shift", "auto", "auto: neither a number nor a text like auto:4"),
        (TrainConfig, "--world-size", "0", "0: must be at least 1"),
        (TrainConfig, "--accum-grad", "0", "0: must be at least 1"),
        (TrainConfig, "--average-period", "0", "0: must be at least 1"),
        (TrainConfig, "--base-lr", "0", "0: must be more than 0"),
        (TrainConfig, "--base-lr", "nan", "nan: must be a number"),
        (DataConfig, "--min-utterance-seconds", "nan", "nan: must be a number"),
        (DataConfig, "--max-duration", "inf", "inf: must be a number"),
        (TrainConfig, "--seed", "9999999999", "9999999999: must be at most 2147483647"),
        (TrainConfig, "--delay-penalty", "-0.1", "-0.1: must be at least 0"),
        (TrainConfig, "--prune-range", "1", "1: must be at least 2"),
        (DecodeConfig, "--beam-size", "0", "0: must be at least 1"),
        (DecodeConfig, "--avg", "0", "0: must be at least 1"),
        (DecodeConfig, "--num-decode-streams", "0", "0: must be at least 1"),
        (DecodeConfig, "--max-sym-per-frame", "0", "0: must be at least 1"),
        (DecodeConfig, "--lodr-scale", "0.1", "0.1: must be at most 0"),
        (DecodeConfig, "--beam", "0", "0: must be more than 0"),
        (DecodeConfig, "--max-contexts", "0", "0: must be at least 1"),
        (DecodeConfig, "--max-states", "0", "0: must be at least 1"),
        (TrainConfig, "--num-epochs", "many", "invalid int value: 'many'"),
        (DataConfig, "--max-duration", "0", "0: must be more than 0"),
        (DistillConfig, "--kd-feature-scale", "-1", "-1: must be at least 0"),
        (DistillConfig, "--kd-apc-shift", "0", "0: must be at least 1"),
        (DistillConfig, "--kd-token-temperature", "0", "0: must be more than 0"),
        (DistillConfig, "--kd-token-form", "half", "invalid choice: 'half'"),
        (DataConfig, "--time-mask-ratio", "100", "100: must be at most 6"),
        (TrainConfig, "--master-port", "70000", "70000: must be at most 65535"),
        (LabelConfig, "--min-confidence", "1.5", "1.5: must be at most 1"),
        (LabelConfig, "--min-confidence", "-0.1", "-0.1: must be at least 0"),
        (LmConfig, "--dropout", "2", "2: must be at most 1"),
        (LmConfig, "--seed", "-1", "-1: must be at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_flag(config_class, flag, value, message, capsys):
    with pytest.raises(SystemExit):
        parse(config_class, [f"{flag}={value}"])
    assert f"argument {flag}: {message}" in capsys.readouterr().err
