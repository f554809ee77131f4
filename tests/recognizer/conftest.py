"""A small model as an exp-dir and as exported files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kdstream.checkpoints.trained import load_trained
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DecodeConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.export.onnx import export_onnx, quantize
from kdstream.models.streaming import ChunkConfig
from support.decoding import make_experiment


@pytest.fixture(scope="session")
def exp_dir(tmp_path_factory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("streaming"), causal=True)


@pytest.fixture(scope="session")
def exported(exp_dir, tmp_path_factory) -> Path:
    """A directory with what export.py writes, and nothing else."""
    folder = tmp_path_factory.mktemp("exported")
    config = ExperimentConfig.load(exp_dir)
    trained = load_trained(config, DecodeConfig(exp_dir=str(exp_dir)))
    quantize(export_onnx(trained.model, ChunkConfig(8, 32), folder, "epoch-3-avg-2"))
    tokenizer = Tokenizer(config.data.bpe_model)
    tokenizer.save_tokens(folder / "tokens.txt")
    tokenizer.save_vocabulary(folder / "bpe.vocab")
    return folder


@pytest.fixture
def both(exp_dir, exported, tmp_path) -> Path:
    """A directory that is an exp-dir and has exported files, as export.py leaves it."""
    shutil.copytree(exp_dir, tmp_path / "both")
    shutil.copytree(exported, tmp_path / "both", dirs_exist_ok=True)
    return tmp_path / "both"
