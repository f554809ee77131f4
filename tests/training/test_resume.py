"""Resuming from config.json: a flag that is not typed keeps the value that the training began with."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdstream.checkpoints.store import load_checkpoint
from kdstream.commands import cache_teacher
from kdstream.commands.train import get_parser
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import EXTENSIONS, extend, flag, flag_value, with_settings
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig
from kdstream.models.presets import resolve
from kdstream.training.start import START_FIELDS, config_of_start
from support.recording import record
from support.training import experiment, typed

RESUME = ("--resume", "1")


def start(exp_dir: Path, *flags: str) -> ExperimentConfig:
    """The settings of `train.py --exp-dir EXP_DIR FLAGS`."""
    return config_of_start(get_parser().parse_args(["--exp-dir", str(exp_dir), *flags]))


@pytest.fixture
def begun(tmp_path: Path, monkeypatch) -> ExperimentConfig:
    """Settings in tmp_path's config.json that are no defaults, one of them of a flag that another program added."""
    monkeypatch.setitem(EXTENSIONS, DistillConfig, {})
    extend(DistillConfig, kd_toy_scale=flag(0.0, "Weight of a toy loss."))
    distill = DistillConfig(teacher_exp_dir="exp/teacher", teacher_epoch=7, kd_token_scale=0.5)
    config = ExperimentConfig(
        resolve(ModelConfig(causal=True, decoder_dim=32, vocab_size=18)),
        DataConfig(train_cuts=("a.jsonl.gz",), bpe_model="nowhere/bpe.model", enable_spec_aug=False),
        TrainConfig(exp_dir="where/it/was", base_lr=0.01, master_port=1, inf_check=True, world_size=2),
        with_settings(distill, kd_toy_scale=0.25),
    )
    config.save(tmp_path)
    return config


@pytest.mark.parametrize("flags", [RESUME, ("--start-epoch", "2"), ("--start-batch", "100")])
def test_what_is_not_typed_is_as_config_json_has_it(tmp_path: Path, begun, flags) -> None:
    settings = start(tmp_path, *flags)
    of_this_start = {name: getattr(settings.train, name) for name in START_FIELDS}
    assert settings == replace(begun, train=replace(begun.train, **of_this_start))
    assert of_this_start["exp_dir"] == str(tmp_path)
    assert (settings.train.master_port, settings.train.inf_check) == (TrainConfig.master_port, False)


@pytest.mark.parametrize(
    "section, name, value",
    [
        ("train", "base_lr", TrainConfig.base_lr),  # the default, typed
        ("train", "world_size", 1),
        ("train", "master_port", 5),
        ("data", "enable_spec_aug", True),
        ("data", "bpe_model", "nowhere/else.model"),
        ("distill", "kd_token_scale", 0.0),
        ("distill", "kd_toy_scale", 0.0),
        ("distill", "teacher_epoch", 3),
        ("model", "encoder_dim", (64, 64, 64, 64, 64, 64)),
    ],
)
def test_what_is_typed_goes_before_config_json(tmp_path: Path, begun, section: str, name: str, value: Any) -> None:
    settings = start(tmp_path, *RESUME, f"--{name.replace('_', '-')}={flag_value(value)}")
    expected = start(tmp_path, *RESUME)
    assert getattr(getattr(settings, section), name) == value
    expected = replace(expected, **{section: with_settings(getattr(expected, section), **{name: value})})
    assert settings == expected


def test_a_start_anew_has_defaults(tmp_path: Path, begun) -> None:
    assert start(tmp_path) == ExperimentConfig(train=TrainConfig(exp_dir=str(tmp_path)))
    (tmp_path / "config.json").unlink()
    assert start(tmp_path, *RESUME) == ExperimentConfig(train=TrainConfig(exp_dir=str(tmp_path), resume=True))


def test_parts_that_are_typed_go_before_the_cuts_in_config_json(tmp_path: Path, begun) -> None:
    data = start(tmp_path, *RESUME, "--train-parts", "train-clean-5").data
    assert (data.train_parts, data.train_cuts) == (("train-clean-5",), ())


def test_a_preset_is_filled_in_anew_only_where_another_one_is_typed(tmp_path: Path, begun) -> None:
    assert start(tmp_path, *RESUME, "--preset", begun.model.preset).model == begun.model
    model = start(tmp_path, *RESUME, "--preset", "small", "--num-heads", "2").model
    expected = ModelConfig(causal=True, preset="small", num_heads=(2,), vocab_size=18)
    assert model == expected and resolve(model) == resolve(expected)


def test_the_epoch_of_a_teacher_is_not_taken_for_that_of_another(tmp_path: Path, begun) -> None:
    assert start(tmp_path, *RESUME).distill.teacher_epoch == 7
    assert start(tmp_path, *RESUME, "--teacher-exp-dir", "exp/other").distill.teacher_epoch == 0
    both = ("--teacher-exp-dir", "exp/other", "--teacher-epoch", "2")
    assert start(tmp_path, *RESUME, *both).distill.teacher_epoch == 2


def test_the_tokenizer_is_the_kept_one_where_the_path_in_config_json_leads_nowhere(tmp_path: Path, begun) -> None:
    (tmp_path / "bpe.model").touch()
    assert start(tmp_path, *RESUME).data.bpe_model == str(tmp_path / "bpe.model")
    assert start(tmp_path, *RESUME, "--bpe-model", "nowhere/bpe.model").data.bpe_model == "nowhere/bpe.model"
    there = tmp_path / "there.model"
    there.touch()
    replace(begun, data=replace(begun.data, bpe_model=str(there))).save(tmp_path)
    assert start(tmp_path, *RESUME).data.bpe_model == str(there)


def differing(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """The entries of two checkpoints that are not the same to the last bit."""
    if isinstance(ours, torch.Tensor):
        return [] if torch.equal(ours, theirs) else [where]
    if isinstance(ours, dict):
        keys = list(dict.fromkeys([*ours, *theirs]))
        return [name for key in keys for name in differing(ours.get(key), theirs.get(key), f"{where}/{key}")]
    if isinstance(ours, (list, tuple)) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [name for i, pair in pairs for name in differing(*pair, f"{where}/{i}")]
    return [] if ours == theirs else [where]


@pytest.mark.slow
def test_resuming_without_flags_equals_resuming_with_all_of_them(tmp_path: Path, data, teacher, capsys, caplog) -> None:
    cache = tmp_path / "cache"
    cache_teacher.main(["--teacher-exp-dir", str(teacher), "--output", str(cache)])
    distill = DistillConfig(
        str(teacher), teacher_cache=str(cache), kd_warmup_batches=4, kd_relation_scale=0.1, kd_token_scale=0.5
    )
    flags = typed(replace(experiment(tmp_path, data, save_every_n=2), distill=distill))
    first = record(start(tmp_path / "with", *flags), kill_before=4)
    shutil.copytree(tmp_path / "with", tmp_path / "without")

    with_all = record(start(tmp_path / "with", *flags, *RESUME))
    with caplog.at_level(logging.WARNING):
        without = record(start(tmp_path / "without", *RESUME))
    assert max(first) == 3 and min(with_all) == 3 and with_all == without
    assert "other settings" not in caplog.text

    ours, theirs = (load_checkpoint(tmp_path / name / "epoch-2.pt") for name in ("with", "without"))
    assert any(name.startswith("branches") for name in theirs["branches"]) and theirs["kd_token_scale"] == 0.5
    assert set(differing(ours, theirs)) <= {"/exp_dir", "/compute_seconds"}
    ours, theirs = (ExperimentConfig.as_written(tmp_path / name) for name in ("with", "without"))
    assert ours == replace(theirs, train=replace(theirs.train, exp_dir=ours.train.exp_dir))


@pytest.mark.slow
def test_a_flag_that_is_typed_changes_the_training_and_is_logged(tmp_path: Path, data, caplog) -> None:
    flags = typed(experiment(tmp_path, data, num_epochs=1))
    record(start(tmp_path, *flags))
    with caplog.at_level(logging.WARNING):
        losses = record(start(tmp_path, *RESUME, "--num-epochs", "2", "--base-lr", "0.01"))
    assert losses
    (line,) = [line for line in caplog.messages if "other settings" in line]
    assert line.endswith("this start has other settings: --num-epochs 1 there, 2 now; --base-lr 0.045 there, 0.01 now")
    assert ExperimentConfig.load(tmp_path).train.base_lr == 0.01
