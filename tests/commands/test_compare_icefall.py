"""Our word error rates beside icefall's: every row is there, in the right column, with its source."""

from __future__ import annotations

import json

import pytest

from kdstream.commands import compare_icefall
from kdstream.evaluation.records import add_record
from support.decoding import run_script
from support.records import make_record

SCRIPT = "local/compare_icefall.py"
PUBLISHED = json.loads(compare_icefall.PUBLISHED.read_text())


def cells(line: str) -> list:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("baseline", sorted({row["baseline"] for row in PUBLISHED["rows"]}))
def test_our_rows_stand_beside_all_of_a_baseline(monkeypatch, capsys, tmp_path, baseline):
    for test_set, wer in (("test-clean", 4.25), ("test-other", 9.5), ("test-novel", 20.125)):
        add_record(tmp_path / "results.json", make_record(test_set=test_set, wer=wer))
    assert run_script(monkeypatch, SCRIPT, tmp_path, "--baseline", baseline) == ""
    out = capsys.readouterr().out
    header, _, ours, *theirs = [cells(line) for line in out.splitlines() if line.startswith("|")]
    assert header[-3:] == ["test-clean WER %", "test-other WER %", "test-novel WER %"]
    assert ours[-3:] == ["4.25", "9.50", "20.12"]
    rows = [row for row in PUBLISHED["rows"] if row["baseline"] == baseline]
    assert [line[-3:] for line in theirs] == [
        [f"{row['test-clean']:.2f}", f"{row['test-other']:.2f}", "-"] for row in rows
    ]
    assert PUBLISHED["source"] in out


def test_seeds_of_a_system_have_rows_of_their_own(monkeypatch, capsys, tmp_path):
    for seed, test_set, wer in ((1, "test-clean", 4.0), (1, "test-other", 9.0), (2, "test-clean", 5.0)):
        add_record(tmp_path / "results.json", make_record(seed=seed, test_set=test_set, wer=wer))
    assert run_script(monkeypatch, SCRIPT, tmp_path) == ""
    one, two = [cells(line) for line in capsys.readouterr().out.splitlines() if "seed" in line]
    assert (one[0], one[-2:]) == ("baseline, seed 1", ["4.00", "9.00"])
    assert (two[0], two[-2:]) == ("baseline, seed 2", ["5.00", "-"])


def test_checkpoints_do_not_share_a_row(monkeypatch, capsys, tmp_path):
    for epoch, test_set, wer in ((30, "test-clean", 3.0), (30, "test-other", 8.0), (10, "test-clean", 9.0)):
        record = make_record(checkpoint=f"epoch-{epoch}_avg-9", test_set=test_set, wer=wer)
        add_record(tmp_path / "results.json", record)
    assert run_script(monkeypatch, SCRIPT, tmp_path) == ""
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if "baseline, " in line]
    assert [(row[0], *row[-2:]) for row in rows] == [
        ("baseline, epoch-10_avg-9", "9.00", "-"), ("baseline, epoch-30_avg-9", "-", "8.00"),
    ]  # fmt: skip


def test_rates_of_one_test_set_do_not_share_a_cell(monkeypatch, capsys, tmp_path):
    for test_set, unit, wer in (("x", "char", 4.0), ("x", "word", 9.0), ("test-clean", "char", 2.0)):
        add_record(tmp_path / "results.json", make_record(test_set=test_set, unit=unit, wer=wer))
    assert run_script(monkeypatch, SCRIPT, tmp_path) == ""
    header, _, ours, theirs, *_ = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert header[-5:] == ["test-clean WER %", "test-other WER %", "x CER %", "x WER %", "test-clean CER %"]
    assert [ours[0], *ours[-5:]] == ["baseline", "-", "-", "4.00", "9.00", "2.00"]
    assert "-" not in theirs[-5:-3] and theirs[-3:] == ["-"] * 3  # icefall's are WERs


def test_an_experiment_without_results_is_a_clear_error(monkeypatch, tmp_path):
    assert "results.json: no such file; run decode.py" in run_script(monkeypatch, SCRIPT, tmp_path)


def test_published_rows_are_plausible_and_distinct():
    names = ("model", "mode", "chunk_ms", "left_ms", "search", "comment")
    keys = [tuple(row[name] for name in names) for row in PUBLISHED["rows"]]
    assert len(set(keys)) == len(keys)
    assert all(2 < row["test-clean"] < row["test-other"] < 12 for row in PUBLISHED["rows"])
    assert all((row["chunk_ms"] is None) == (row["mode"] == "full") for row in PUBLISHED["rows"])
