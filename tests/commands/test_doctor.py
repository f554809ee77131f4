"""`kdstream doctor` tells what is there, what will be used, and how to get the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import kdstream
from kdstream.commands import doctor
from kdstream.models import rnnt_loss
from support.packaging import extras_of_pyproject
from support.paths import ROOT

EVERYTHING = [package.name for package in (*doctor.PACKAGES, *doctor.OPTIONAL)]


def pretend(monkeypatch: pytest.MonkeyPatch, *absent: str) -> None:
    monkeypatch.setattr(
        doctor, "installed_versions", lambda names: {name: None if name in absent else "1.0" for name in names}
    )


@pytest.mark.slow
def test_it_prints_versions_loss_features_and_device() -> None:
    command = [sys.executable, "-m", "kdstream", "doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line.strip()}
    assert rows["torch"] == doctor.installed_versions(["torch"])["torch"]
    assert rows["decode"] == rows["train"] == "complete"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loss = {"k2": "RNN-T loss: k2", "torch": "RNN-T loss: kdstream's own"}[rnnt_loss.backend("auto", device)]
    assert loss in done.stdout
    assert "features: lhotse's Fbank" in done.stdout
    assert ("no CUDA device" in done.stdout) == (not torch.cuda.is_available())


def test_missing_packages_come_with_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pretend(monkeypatch, "kaldialign", "k2", "kaldifeat")
    assert doctor.main([]) == 1
    shown = capsys.readouterr().out
    assert "missing: kaldialign; run: pip install 'kdstream[train]'" in shown and "bash local/setup_env.sh" in shown
    assert "https://k2-fsa.github.io/k2/cpu.html" in shown and "bash local/setup_env.sh --k2" in shown
    assert "https://csukuangfj.github.io/kaldifeat/cuda.html" in shown


def test_an_extra_without_torch_is_complete_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(doctor, "rnnt_loss_line", lambda: pytest.fail("torch is not there"))
    pretend(monkeypatch, "torch", "kaldialign")
    assert doctor.main(["serve"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"kdstream {kdstream.__version__}, Python ")
    assert "serve    complete" in lines and "decode   lacks torch, kaldialign" in lines
    assert not any("missing:" in line for line in lines)
    assert doctor.main(["serve", "export"]) == 1
    assert "missing: torch, kaldialign; run: pip install 'kdstream[export]'" in capsys.readouterr().out


def test_every_extra_of_pyproject_is_known(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pretend(monkeypatch, "pytest")
    assert [doctor.main([extra]) for extra in ("all", "dev", "train")] == [1, 1, 0]
    shown = capsys.readouterr().out
    assert "missing: pytest; run: pip install 'kdstream[all]'" in shown and "all      lacks pytest" in shown


def test_nothing_is_advised_when_everything_is_there() -> None:
    assert doctor.advice(dict.fromkeys(EVERYTHING, "1.0"), list(doctor.INCLUDES)) == []


def test_its_packages_are_those_of_pyproject() -> None:
    extras = extras_of_pyproject()
    for extra in doctor.INCLUDES:
        assert set(doctor.packages_in(extra)) == set(extras[extra]), extra
    assert set(extras) == {*doctor.INCLUDES, ""}
