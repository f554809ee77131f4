"""The script for a GPU runs through on a CPU, and says so where there is no GPU."""

import json
import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from kdstream.evaluation.tables import render
from support.paths import ROOT

SCRIPT = ["bash", str(ROOT / "tests" / "gpu" / "run.sh")]
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_dry_run_passes_every_check_and_its_results_make_a_table(tmp_path):
    path = tmp_path / "gpu.json"
    done = subprocess.run([*SCRIPT, "--dry-run", "--json", str(path)], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())
    checks = {"parity", "decoding", "resume", "bfloat16", "layouts", "speed", "out of memory", "compile", "icefall"}
    assert checks <= {row["check"] for row in rows} and all(row["passed"] != "NO" for row in rows)
    assert "| resume | two losses after it: relative difference |" in render(path)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails(tmp_path):
    done = subprocess.run(
        [*SCRIPT, "--json", str(tmp_path / "gpu.json")], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "error: no GPU is here; --dry-run" in done.stderr
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.slow
def test_float32_is_compared_in_full_precision_and_left_as_it_was(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    checks, steps = import_module("checks"), import_module("steps")
    world = checks.World(torch.device("cpu"), steps.DRY, frozenset(), "")
    original, seen = torch.nn.functional.conv2d, set()

    def conv2d(*args, **kwargs):
        seen.add(torch.backends.cudnn.allow_tf32)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for check in (checks.parity, checks.decoding):
        seen.clear()
        assert list(check(world)) and seen == {False}
        assert torch.backends.cudnn.allow_tf32
