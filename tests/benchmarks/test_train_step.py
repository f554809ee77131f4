"""The training benchmark: it measures what its table says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

SCRIPT = ROOT / "local" / "bench_train_step.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_train_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(bench, monkeypatch, path, flags=""):
    """The rows that the benchmark writes to path."""
    flags = f"--memory 0 --repetitions 1 --max-duration 4 --utterance-seconds 2 --clock cpu --json {path} {flags}"
    monkeypatch.setattr(sys, "argv", ["bench_train_step.py", *flags.split()])
    bench.main()
    return json.loads(path.read_text())


def test_every_part_is_timed_and_named(bench, tmp_path, monkeypatch, capsys):
    rows = run(bench, monkeypatch, tmp_path / "bench.json", "--kd-relation-scale 0.1")
    parts = ["teacher forward", "branches", "feature loss", "relation loss", "apc loss"]
    assert [row["part"] for row in rows] == [*bench.STEPS, *parts]
    assert all(row["ms"] > 0 or row["part"].endswith("loss") for row in rows)
    assert rows[0]["of the baseline step"] == 1.0
    out = capsys.readouterr().out
    assert "2.1 <- 2.1" in out and "| baseline step |" in out


def test_token_distillation_alone_is_timed_too(bench, tmp_path, monkeypatch):
    alone = "--kd-feature-scale 0 --kd-relation-scale 0 --kd-apc-scale 0 --kd-token-scale 0.5"
    rows = run(bench, monkeypatch, tmp_path / "bench.json", alone)
    assert [row["part"] for row in rows] == [*bench.STEPS, "teacher forward", "token loss"]
    assert rows[-1]["ms"] > 0


def test_another_teachers_sizes_are_its_presets_whatever_the_students(bench):
    flags = "--preset tiny --feedforward-dim 64,64,64,64 --teacher-preset small --max-duration 4 --utterance-seconds 2"
    args = bench.get_parser().parse_args(flags.split())
    batch, tokens = bench.synthetic_batch(bench.from_args(bench.DataConfig, args), args.utterance_seconds)
    teacher = bench.Bench(args, batch, tokens, bench.SYNTHETIC_VOCABULARY).teacher_config
    expected = bench.ModelConfig(preset="small", vocab_size=bench.SYNTHETIC_VOCABULARY)
    assert teacher == bench.resolve(expected)


@pytest.mark.parametrize("flag", ["--teacher-exp-dir exp", "--teacher-cache cache", "--init-from-teacher 1"])
def test_flags_of_a_trained_teacher_are_refused(bench, flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.get_parser().parse_args(flag.split())
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
def test_peak_memory_sees_memory_that_was_freed_before_it_looked():
    program = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import torch
from bench_train_step import PeakMemory
peak = PeakMemory(torch.device("cpu"))
peak.start()
torch.ones(64 * 2**20, dtype=torch.uint8)
print(peak.read())
"""
    # in a process of its own: in this one training may have told malloc to keep what is freed
    peak = int(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout)
    assert 60 * 2**20 <= peak <= 100 * 2**20
