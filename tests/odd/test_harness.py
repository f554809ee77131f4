"""The judge of odd input sees a fault where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from odd import accounts
from odd.harness import Case, Outcome

CASE = Case("cut", "odd", ["decode"], ["cut-1"], lambda outcome: "" if "all" in outcome.stdout else "one is lost")


@pytest.mark.parametrize(
    "outcome, ended, fault",
    [
        (Outcome(0, "all", ""), "handled", ""),
        (Outcome(0, "", ""), "handled", "one is lost"),
        (Outcome(1, "", "INFO begun\nerror: cut-1: too short; take it out\n"), "refused", ""),
        (Outcome(1, "", "error: --avg 0: must be at least 1: cut-1\n"), "refused", ""),
        (Outcome(2, "", "kdstream decode: error: argument --avg: invalid int value: 'x'\n"), "refused", ""),
        (Outcome(1, "", "error: too short; take it out\n"), "refused", "names none of cut-1, or no fix"),
        (Outcome(1, "", "error: cut-1: too short\n"), "refused", "names none of cut-1, or no fix"),
        (Outcome(1, "", "error: cut-1: a; b\nand more\n"), "refused", "1 error lines, or text after them"),
        (Outcome(1, "", "error: cut-1: a; b\nerror: cut-1: a; b\n"), "refused", "2 error lines, or text after them"),
        (Outcome(1, "", ""), "refused", "0 error lines, or text after them"),
        (Outcome(1, "", "Traceback (most recent call last):\nValueError\n"), "handled", "a traceback"),
        (Outcome(0, "all", "Traceback (most recent call last):\n"), "handled", "a traceback"),
        (Outcome(None, "all", ""), "handled", "did not end within 60 s"),
        (Outcome(-11, "all", ""), "handled", "was ended by signal 11"),
    ],
)
def test_the_judge_names_each_kind_of_fault(outcome: Outcome, ended: str, fault: str) -> None:
    assert CASE.verdict(outcome) == (ended, fault)


def test_what_must_be_refused_may_not_be_handled_and_the_reverse() -> None:
    refused = Outcome(1, "", "error: cut-1: too short; take it out\n")
    assert Case("", "", [], ["cut-1"], must="refuse").verdict(Outcome(0, "", ""))[1] == "was not refused"
    assert Case("", "", [], ["cut-1"], must="handle").verdict(refused)[1] == "was refused"


def test_a_cut_that_was_not_decoded_is_missed(tmp_path: Path) -> None:
    (tmp_path / "recogs-test.txt").write_text("a:\tref=['A']\na:\thyp=[]\n")
    assert accounts.decoded(tmp_path, ["a"]) == ""
    assert accounts.decoded(tmp_path, ["a", "b"]) == "2 cuts, 1 decoded; lost: ['b']"
    assert accounts.decoded(tmp_path, ["a", "a"]) != ""


def test_a_cut_that_the_log_does_not_count_is_missed(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    line = (
        "training cuts: 3 kept (0.00 h); left out: 1 shorter than 1 s (a); 2 longer than 20 s (b, c); 0 have <unk> in"
    )
    (tmp_path / "log" / "log-train-1").write_text(line)
    assert accounts.trained(tmp_path, list("abcdef")) == ""
    assert accounts.trained(tmp_path, list("abcdefg")) == "7 cuts, but 3 kept and 3 left out"


def test_a_file_that_was_heard_in_part_is_missed(tmp_path: Path) -> None:
    heard = Outcome(0, json.dumps({"audio": str(tmp_path / "a.wav"), "seconds": 1.0}) + "\n", "")
    assert accounts.transcribed({tmp_path / "a.wav": 1.0}, heard) == ""
    assert accounts.transcribed({tmp_path / "a.wav": 2.0}, heard) == "a.wav: 1.00 of 2.00 s were heard"
    assert accounts.transcribed({tmp_path / "b.wav": 1.0}, heard) == "b.wav is neither transcribed nor named"
