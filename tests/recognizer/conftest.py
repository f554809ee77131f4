"""A small model as an exp-dir and as exported files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.decoding import make_experiment
from support.serving import export_with_tokens


@pytest.fixture(scope="session")
def exp_dir(tmp_path_factory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("streaming"), causal=True)


@pytest.fixture(scope="session")
def exported(exp_dir, tmp_path_factory) -> Path:
    """A directory with what export.py writes, and nothing else."""
    folder = tmp_path_factory.mktemp("exported")
    export_with_tokens(exp_dir, folder)
    return folder


@pytest.fixture
def both(exp_dir, exported, tmp_path) -> Path:
    """A directory that is an exp-dir and has exported files, as export.py leaves it."""
    shutil.copytree(exp_dir, tmp_path / "both")
    shutil.copytree(exported, tmp_path / "both", dirs_exist_ok=True)
    return tmp_path / "both"
