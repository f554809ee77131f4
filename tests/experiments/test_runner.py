"""Many experiments in a row: what is finished is skipped, what was killed goes on, what fails is told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdstream.errors import UserError
from kdstream.experiments.runner import report_failures, run_cells
from support.experiments import events, make_cell, make_recipe, run
from support.killing import alive

RUNNER = """
import signal
import sys
from pathlib import Path
from kdstream.experiments.cells import Cell
from kdstream.experiments.runner import run_cells
from kdstream.commands import run as run_command
cells = [Cell(Path.cwd(), f"exp/{name}", ("--num-epochs", "2"), (("decode",),)) for name in "ab"]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs deaf to it
run_command(lambda: run_cells(cells, 2))
"""


@pytest.fixture()
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return make_recipe(tmp_path / "egs" / "recipe")


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def test_what_is_finished_is_not_done_again_and_more_decodings_are(recipe):
    run([make_cell(recipe, "a")])
    before = events(recipe)
    run([make_cell(recipe, "a")])
    assert events(recipe) == before
    run([make_cell(recipe, "a", decodings=(("decode",), ("decode", "--chunk-size", "16")))])
    assert events(recipe)[len(before) :] == [["decode", "a", "16"]]


def test_a_test_set_that_is_missing_is_decoded(recipe):
    cell = make_cell(recipe, "a")
    (recipe / "half").touch()
    assert "exit status 1" in run_cells([cell], 1)[cell]
    assert not cell.is_finished()
    (recipe / "half").unlink()
    run([cell])
    assert cell.is_finished() and len(events(recipe, "train")) == 1 and len(events(recipe, "decode")) == 2


def test_a_failure_is_told_with_the_end_of_its_log_and_the_others_go_on(recipe, capsys):
    bad, good = make_cell(recipe, "bad", "--base-lr", 666), make_cell(recipe, "good")
    failures = run_cells([bad, good], 1)
    assert list(failures) == [bad] and good.is_finished()
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("bad: ", "good: "))]
    assert first.startswith("bad: failed, see ") and first.endswith("bad.log")
    assert re.fullmatch(r"good: clean [\d.]+ %, other [\d.]+ %", second)
    with pytest.raises(UserError, match="failed: bad;"):
        report_failures(failures)
    shown = capsys.readouterr().err
    assert "bad.log" in shown and "first line\nerror: --base-lr 666: the devil's\nexit status 1" in shown
    assert "$ python train.py --exp-dir exp/bad --resume 1 --num-epochs 2 --base-lr 666" in bad.log.read_text()
    report_failures({})


def test_a_script_that_leaves_no_record_has_failed(recipe):
    cell = make_cell(recipe, "a")
    (recipe / "decode.py").write_text("")
    assert "left no record" in run_cells([cell], 1)[cell]


def test_a_cell_waits_for_the_one_it_needs(recipe):
    teacher = make_cell(recipe, "teacher", "--warm-step", 200)
    students = [make_cell(recipe, name, after=teacher) for name in ("a", "b")]
    run([teacher, *students], jobs=3)
    assert [line[1] for line in events(recipe)][:5] == ["teacher"] * 5


def test_a_cell_fails_with_the_one_it_needs(recipe):
    teacher = make_cell(recipe, "teacher", "--base-lr", 666)
    student, baseline = make_cell(recipe, "a", after=teacher), make_cell(recipe, "b")
    failures = run_cells([teacher, student, baseline], 2)
    assert set(failures) == {teacher, student} and "exp/teacher" in failures[student]


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_so_many_run_at_a_time_and_share_the_cores(recipe, monkeypatch, jobs):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    (recipe / "together").write_text(str(jobs))  # a busy machine starts them one after the other
    run([make_cell(recipe, f"c{n}", "--warm-step", 200) for n in range(4)], jobs)
    running, most = 0, 0
    for kind, *_ in events(recipe, "train", "trained"):
        running += 1 if kind == "train" else -1
        most = max(most, running)
    assert most == jobs
    assert {threads for _, _, threads, _ in events(recipe, "train")} == {str(7 // jobs)}


def test_threads_are_never_less_than_one_and_as_the_user_set_them(recipe, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    run([make_cell(recipe, "a")], 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    run([make_cell(recipe, "b")], 4)
    assert [threads for _, _, threads, _ in events(recipe, "train")] == ["1", "5"]


def test_only_trainings_of_several_processes_get_ports_and_each_its_own(recipe):
    run([make_cell(recipe, "a"), *(make_cell(recipe, f"w{n}", "--world-size", 2) for n in range(3))], 2)
    ports = {name: port for _, name, _, port in events(recipe, "train")}
    assert ports.pop("a") == "-" and len(set(ports.values())) == 3 and "-" not in ports.values()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_runner_that_is_killed_takes_its_scripts_along_and_the_next_one_goes_on(recipe, number):
    (recipe / "slow").touch()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with open(recipe / "stderr", "w") as stderr:
        runner = subprocess.Popen([sys.executable, "-c", RUNNER], cwd=recipe, env=env, stderr=stderr)
    wait_until(lambda: len(events(recipe, "hanging")) == 2)
    pids = [pid for line in events(recipe, "hanging") for pid in line[1:]]
    assert all(map(alive, pids))
    runner.send_signal(number)
    assert runner.wait(timeout=30) == 130
    wait_until(lambda: not any(map(alive, pids)))
    assert "Traceback" not in (recipe / "stderr").read_text()
    (recipe / "slow").unlink()
    run([make_cell(recipe, "a"), make_cell(recipe, "b")])
    epochs = sorted((name, epoch) for _, name, epoch in events(recipe, "epoch"))
    assert epochs == [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends the children of a process that was killed")
def test_scripts_end_with_a_runner_that_could_not_end_them(recipe):
    (recipe / "slow").touch()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    runner = subprocess.Popen([sys.executable, "-c", RUNNER], cwd=recipe, env=env, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(events(recipe, "hanging")) == 2)
    scripts = [line[1] for line in events(recipe, "hanging")]
    runner.kill()
    assert runner.wait(timeout=30) == -signal.SIGKILL
    wait_until(lambda: not any(map(alive, scripts)))
    for _, _, child in events(recipe, "hanging"):
        os.kill(int(child), signal.SIGKILL)  # a real training's children see to that themselves


def test_cells_at_a_time_have_a_gpu_each_where_there_are_several(recipe, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    run([make_cell(recipe, name, "--warm-step", 300) for name in "ab"], jobs=2)
    run([make_cell(recipe, "both", "--world-size", 2)])
    assert {(recipe / "exp" / name / "gpu").read_text() for name in "ab"} == {"4", "7"}
    assert (recipe / "exp" / "both" / "gpu").read_text() == "4,7"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    run([make_cell(recipe, "only")])
    assert (recipe / "exp" / "only" / "gpu").read_text() == "-"
