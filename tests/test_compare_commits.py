"""What compare_commits.sh says of two outputs that differ a little, and of two that do not."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from support.compare_commits import Failed, Stage, compare, different_folders, of_files, of_gzipped, run
from support.comparing import (
    different_bytes,
    different_checkpoints,
    different_lines,
    different_records,
    different_settings,
    different_values,
    read_losses,
)

SCRIPT = Path(__file__).with_name("compare_commits.sh")
LOG = """2026-01-31 12:00:00,123 INFO [loop.py:45] Training started: train.py --exp-dir exp
2026-01-31 12:00:01,{ms} INFO [{place}] Epoch 1, batch 0, loss[loss={loss}, over 118.00 frames. ], lr: 2.47e-02
2026-01-31 12:00:02,{ms} INFO [{place}] Epoch 1, validation: loss=4.1, over 83.00 frames.
"""


def test_a_changed_byte_is_found():
    assert different_bytes(b"\xff\x00\x01", b"\xff\x00\x01") == ""
    assert different_bytes(b"\xff\x00\x01", b"\xff\x00\x02") == "byte 2, of 3 and 3"
    assert different_bytes(b"\xff\x00", b"\xff\x00\x02") == "byte 2, of 2 and 3"
    assert different_bytes(b"one\ntwo\n", b"one\ntwO\n") == "line 2: 'two', 'twO'"
    assert different_bytes(b"one\n", b"one") == "2 and 1 lines"


@pytest.mark.parametrize("change", [1e-7, float("nan")])
def test_a_changed_number_in_a_tensor_is_found(change: float):
    tensor = torch.arange(6.0).reshape(2, 3) + 1
    changed = tensor.clone()
    changed[1, 0] += changed[1, 0] * change
    a, b = {"state": [{"step": 3, "average": tensor}]}, {"state": [{"step": 3, "average": changed}]}
    assert different_values(a, a) == ""
    assert different_values(a, b).startswith("state[0].average: [3] of 6: 4.0, ")


@pytest.mark.parametrize(
    "a, b",
    [
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.ones(4), torch.ones(4, dtype=torch.float64)),
        (torch.ones(4), torch.ones(2, 2)),
        (torch.ones(2, 2, dtype=torch.bfloat16), torch.tensor([[1, 1], [1, 1.01]], dtype=torch.bfloat16)),
        (torch.tensor(1.0), 1.0),
        (1, 1.0),
        (1, True),
        ([1, 2], [1]),
        ([1, 2], (1, 2)),
        ({"x": None}, {}),
        ({}, {"x": 1}),
        (0.1 + 0.2, 0.3),
    ],
)
def test_values_that_are_not_the_same_in_every_bit_differ(a: object, b: object):
    assert different_values(a, a) == different_values(b, b) == ""
    assert different_values({"it": a}, {"it": b}).startswith(("it", "length of it"))


def test_tensors_laid_out_differently_are_the_same():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert different_values(tensor.t().contiguous().t(), tensor) == ""
    assert different_values(torch.zeros(0, 3), torch.zeros(0, 3)) == ""
    assert different_values(torch.ones(8, 8)[:1, :1], torch.ones(1, 1)) == ""  # a view with strides of its own
    assert different_values(torch.tensor([float("nan")]), torch.tensor([float("nan")])) == ""


def test_losses_are_compared_and_when_and_where_they_were_logged_is_not(tmp_path: Path):
    logs = {"a": ("123", "loop.py:45", "7.179"), "b": ("9", "step.py:4", "7.179"), "c": ("123", "loop.py:45", "7.18")}
    for name, (ms, place, loss) in logs.items():
        (tmp_path / name).write_text(LOG.format(ms=ms, place=place, loss=loss))
    a, b, c = (read_losses(tmp_path / name) for name in logs)
    assert len(a) == 2 and a[0].startswith("Epoch 1, batch 0, loss[loss=7.179, ")
    assert different_lines(a, b) == ""
    assert different_lines(a, c).startswith("line 1: ") and different_lines(a, a[:1]) == "2 and 1 lines"


def test_a_clock_in_a_record_is_not_compared_and_all_else_is():
    record = {"wer": 1.5, "compute_hours": 0.1, "latency": {"shown": {"mean": 80.0}, "compute": {"mean": 3.0}}}
    other = json.loads(json.dumps(record))
    other["compute_hours"], other["latency"]["compute"]["mean"] = 0.2, 4.0
    assert different_records([record], [other]) == ""
    other["latency"]["shown"]["mean"] = 81.0
    assert different_records([record], [other]) == "[0].latency.shown.mean: 80.0, 81.0"
    assert different_records([record], [record, record]).startswith("length of ")


def test_checkpoints_differ_in_parts_and_progress_and_apart_from_that_in_settings():
    a = {"model": {"w": torch.ones(2)}, "optimizer": None, "tot_loss": {"loss": 0.5}, "compute_seconds": 3.0, "seed": 1}
    assert different_checkpoints(a, {**a, "compute_seconds": 4.0, "seed": 2, "new_flag": 1}) == ""
    assert different_checkpoints(a, {**a, "model": {"v": torch.ones(2)}}).startswith("model.w: ")
    assert different_checkpoints(a, {**a, "tot_loss": {"loss": 0.6}}) == "tot_loss.loss: 0.5, 0.6"
    assert different_checkpoints(a, {**a, "branches": {}}) == "branches: absent, {}"
    assert different_settings(a, {**a, "compute_seconds": 4.0, "new_flag": 1}) == ""
    assert different_settings(a, {**a, "seed": 2}) == "seed: 1, 2"


def test_files_are_compared_by_name(tmp_path: Path):
    a, b = (tmp_path / side for side in "AB")
    for side, log in ((a, "log-train-2026-01-31-12-00-00"), (b, "log-train-2026-02-01-00-00-00")):
        (side / "log").mkdir(parents=True)
        (side / "log" / log).write_text("x")
        (side / "log" / "more").write_text(side.name)
    assert different_folders(a, b, "log/log-train-*", of_files) == {"log/log-train-1": ""}
    assert different_folders(a, b, "**/more", of_files) == {"log/more": "line 1: 'A', 'B'"}
    (b / "log" / "more").unlink()
    assert different_folders(a, b, "log/more", of_files) == {"log/more": "only in A"}
    assert different_folders(a, b, "nothing-*", of_files) == {"nothing-*": "there is no such file"}


def test_the_time_in_a_gzipped_file_is_not_compared(tmp_path: Path):
    paths = [tmp_path / name for name in "abc"]
    for path, text, time in zip(paths, (b"x", b"x", b"y"), (1, 2, 1), strict=True):
        path.write_bytes(gzip.compress(text, mtime=time))
    a, b, c = paths
    assert of_files(a, b) and of_gzipped(a, b) == "" and of_gzipped(a, c) == "line 1: 'x', 'y'"


def test_where_nothing_was_written_nothing_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert not compare(tmp_path / "A", tmp_path / "B")
    said = capsys.readouterr().out.splitlines()
    assert all("DIFFERS (there is no such file)" in line for line in said[:-1])
    assert said[-1].startswith("0 of ")


def test_a_script_sees_its_own_checkout_and_a_failure_shows_its_last_words(tmp_path: Path):
    script = tmp_path / "checkout" / "local" / "script.py"
    script.parent.mkdir(parents=True)
    (tmp_path / "output").mkdir()
    (tmp_path / "checkout" / "mine.py").write_text("NAME = 'mine'")
    script.write_text("import mine, os, sys; print(mine.NAME, os.getcwd(), *sys.argv)")
    run(tmp_path, 3, Stage("local/script.py", "--flag 'two words'"))
    said = (tmp_path / "output" / "03-script.out").read_text()
    assert said == f"mine {tmp_path} checkout/local/script.py --flag two words\n"
    script.write_text("raise SystemExit('error: no such thing')")
    with pytest.raises(Failed, match="local/script.py --flag: exit status 1\nerror: no such thing"):
        run(tmp_path, 3, Stage("local/script.py", "--flag"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["HEAD"], "usage: bash tests/compare_commits.sh COMMIT COMMIT"),
        (["HEAD", "no-such-commit"], "no-such-commit: no such commit"),
    ],
)
def test_wrong_arguments_are_a_clear_error(arguments: list[str], message: str):
    done = start("bash", *arguments)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_a_python_that_is_not_there_is_a_clear_error():
    done = start("/no/python", "HEAD", "HEAD")
    assert done.returncode == 2 and done.stderr.startswith("error: /no/python: no such program; run local/setup_env.sh")


def start(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python}
    return subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, env=environment)
