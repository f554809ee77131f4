"""`python -m kdstream` tells what is there, what will be used, and how to get the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from kdstream.commands import doctor as report
from kdstream.models import rnnt_loss
from support.paths import ROOT


def test_it_prints_versions_loss_features_and_device() -> None:
    done = subprocess.run([sys.executable, "-m", "kdstream"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line.strip()}
    assert rows["torch"] == report.installed_versions(["torch"])["torch"]
    loss = {"k2": "RNN-T loss: k2", "torch": "RNN-T loss: kdstream's own"}[rnnt_loss.backend()]
    assert loss in done.stdout
    assert "features: lhotse's Fbank" in done.stdout
    assert ("no CUDA device" in done.stdout) == (not torch.cuda.is_available())


def test_missing_packages_come_with_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    absent = ("kaldialign", "k2", "kaldifeat")
    monkeypatch.setattr(report, "installed_versions", lambda names: {n: None if n in absent else "1.0" for n in names})
    assert report.main() == 1
    shown = capsys.readouterr().out
    assert "missing: kaldialign; run: bash local/setup_env.sh" in shown
    assert "https://k2-fsa.github.io/k2/cpu.html" in shown and "bash local/setup_env.sh --k2" in shown
    assert "https://csukuangfj.github.io/kaldifeat/cuda.html" in shown


def test_nothing_is_advised_when_everything_is_there() -> None:
    versions = {name: "1.0" for name, _ in (*report.NEEDED, *report.OPTIONAL)}
    assert report.advice(versions) == []
