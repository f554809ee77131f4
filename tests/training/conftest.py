"""A corpus and a teacher that several test modules train with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdstream.config.sections import DataConfig
from kdstream.training.process import train_experiment
from support.training import experiment, make_corpus


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> DataConfig:
    return make_corpus(tmp_path_factory.mktemp("corpus"), num_utterances=12)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, data: DataConfig) -> Path:
    """An exp-dir of a teacher that was trained for three steps."""
    exp_dir = tmp_path_factory.mktemp("teacher") / "exp"
    train_experiment(experiment(exp_dir, data, causal=False, num_epochs=1, average_period=1))
    return exp_dir
