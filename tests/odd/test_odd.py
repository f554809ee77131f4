"""A small seed of the odd inputs, in a process of its own, which forks for each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from odd.trial import KINDS, MESSAGES
from support.paths import ROOT

COUNT = 150


@pytest.mark.slow
def test_odd_input_is_handled_or_refused_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "odd", "--count", str(COUNT), "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in (*KINDS, MESSAGES):
        assert f"| {kind} |" in done.stdout
