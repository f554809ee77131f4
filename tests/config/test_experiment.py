"""config.json: what is written comes back, and a file that cannot be read says why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import CONFIG_VERSION, ExperimentConfig
from kdstream.config.flags import EXTENSIONS, extend, flag, with_settings
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig
from kdstream.errors import UserError
from support.disk import full_disk

CONFIG = ExperimentConfig(
    ModelConfig(encoder_dim=(32, 64), causal=True, vocab_size=500),
    DataConfig(train_cuts=("a.jsonl.gz", "b.jsonl.gz"), bpe_model="data/lang/bpe.model"),
    TrainConfig(base_lr=0.01),
    DistillConfig(teacher_exp_dir="exp/teacher", kd_layers=("1.0",)),
)


def rewrite(exp_dir: Path, **changes: object) -> None:
    """Changes top-level entries of config.json; None takes one out."""
    path = exp_dir / "config.json"
    entries = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in entries.items() if value is not None}))


def test_everything_comes_back_with_the_flags_of_others(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(EXTENSIONS, DistillConfig, {})
    extend(DistillConfig, kd_toy_scale=flag(0.0, "Weight of a toy loss."))
    config = replace(CONFIG, distill=with_settings(CONFIG.distill, kd_toy_scale=0.5))
    config.save(tmp_path)
    assert ExperimentConfig.load(tmp_path) == config
    assert list(json.loads((tmp_path / "config.json").read_text())) == ["version", "model", "data", "train", "distill"]


def test_a_config_without_a_version_is_read_alike(tmp_path: Path) -> None:
    CONFIG.save(tmp_path)
    rewrite(tmp_path, version=None)
    assert ExperimentConfig.load(tmp_path) == CONFIG


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": CONFIG_VERSION + 1}, "a newer kdstream wrote it .version 2; this one reads up to 1.; update kdst"),
        ({"version": "one"}, "not a config.json of this project"),
        ({"model": None}, "not a config.json of this project .'model'.; train again or mend it"),
        ({"train": {"sugar": 1}}, "not a config.json of this project .*unexpected keyword argument 'sugar'"),
    ],
)
def test_a_config_that_cannot_be_read_says_why(tmp_path: Path, changes: dict, message: str) -> None:
    CONFIG.save(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(UserError, match=f"{tmp_path}/config.json: {message}"):
        ExperimentConfig.load(tmp_path)


@pytest.mark.parametrize(
    "section, name, value",
    [
        ("model", "encoder_dim", [32, "64"]),
        ("model", "encoder_dim", [32, 0]),
        ("model", "encoder_dim", 32),
        ("model", "encoder_dim", [10**30]),
        ("model", "causal", 1),
        ("model", "context_size", None),
        ("model", "context_size", True),
        ("data", "max_duration", float("nan")),
        ("data", "max_duration", float("inf")),
        ("data", "max_duration", 0),
        ("data", "time_mask_ratio", 7.0),
        ("data", "bpe_model", ["a"]),
        ("train", "base_lr", "0.1"),
    ],
)
def test_a_value_that_its_flag_would_not_take_is_named(tmp_path: Path, section: str, name: str, value: object) -> None:
    CONFIG.save(tmp_path)
    path = tmp_path / "config.json"
    entries = json.loads(path.read_text())
    entries[section][name] = value
    path.write_text(json.dumps(entries))
    with pytest.raises(
        UserError, match=f"{path}: not a config.json of this project .{name} is .*; train again or mend"
    ):
        ExperimentConfig.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[1, 2]", "7", '{"version": 1'])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json: not a config.json of this project"):
        ExperimentConfig.load(tmp_path)


def test_a_write_that_fails_leaves_the_old_config_and_no_litter(tmp_path: Path) -> None:
    CONFIG.save(tmp_path)
    with full_disk(1000), pytest.raises(UserError, match="config.json: cannot be written"):
        ExperimentConfig().save(tmp_path)
    assert ExperimentConfig.load(tmp_path) == CONFIG
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_tokenizer_in_an_experiment_goes_before_the_one_that_config_json_names(tmp_path: Path) -> None:
    CONFIG.save(tmp_path)
    assert ExperimentConfig.load(tmp_path).data.bpe_model == "data/lang/bpe.model"
    (tmp_path / "bpe.model").touch()
    assert ExperimentConfig.load(tmp_path).data.bpe_model == str(tmp_path / "bpe.model")
    assert ExperimentConfig.as_written(tmp_path) == CONFIG
