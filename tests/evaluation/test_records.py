"""Result records and the files that keep them."""

from __future__ import annotations

import errno
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdstream import files
from kdstream.data.cuts import fingerprint_of
from kdstream.errors import UserError
from kdstream.evaluation import records, scoring
from kdstream.evaluation.latency import SHOWN
from kdstream.evaluation.records import add_record, check_test_set, load_newest, load_records, warn_of_other_inputs
from support.data import error_of
from support.paths import ROOT
from support.records import LATENCY, make_record, random_transcripts, scored

PUBLISHED = ROOT / "egs" / "librispeech" / "results"


def test_records_survive_the_file(tmp_path):
    path = tmp_path / "new" / "results.json"
    records = [
        make_record(),
        make_record(mode="full", chunk_ms=None, left_ms=None, latency_ms=None),
        make_record(seed=1, latency=LATENCY),
        make_record(seed=2, utterance_errors=(10, 0, 20), utterance_words=(80, 80, 80)),
        make_record(right_ms=160),
        make_record(seed=3, begins_with="exp/old"),
    ]
    for record in records:
        add_record(path, record)
    assert load_records(path) == records


def test_records_of_fewer_measurements_load_and_are_written_as_they_were(tmp_path):
    items = json.loads((PUBLISHED / "mini.json").read_text())
    items = [{name: value for name, value in item.items() if name not in records.MAY_LACK} for item in items]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(items))
    loaded = load_records(path)
    assert all(record.latency == {} and record.score is None and record.right_ms == 0 for record in loaded)
    records.publish(tmp_path / "again", loaded)
    assert json.loads((tmp_path / "again.json").read_text()) == items


@pytest.mark.parametrize("latency", [{"hunch": {}}, {SHOWN: {"mean": 1.0}}, {SHOWN: 1.0}, [1.0], None])
def test_latency_of_another_kind_is_a_clear_error(tmp_path, latency):
    item = {**json.loads((PUBLISHED / "mini.json").read_text())[0], "latency": latency}
    (tmp_path / "results.json").write_text(json.dumps([item]))
    with pytest.raises(UserError, match="results.json: .*decode again"):
        load_records(tmp_path / "results.json")


def test_scoring_again_replaces_the_record_of_the_same_key(tmp_path):
    path = tmp_path / "results.json"
    other = [
        make_record(mode="chunkwise"),
        make_record(seed=1),
        make_record(test_set="test-other"),
        make_record(chunk_ms=320),
        make_record(right_ms=160),
        make_record(checkpoint="epoch-30_avg-1"),
        make_record(checkpoint="iter-8000_avg-9"),
        make_record(unit="char"),
    ]
    for record in [make_record(), *other, make_record(wer=10.0, unit="word")]:
        add_record(path, record)
    assert load_records(path) == [*other, make_record(wer=10.0, unit="word")]


def test_of_several_checkpoints_the_one_decoded_last_is_taken_and_named(tmp_path, caplog):
    path = tmp_path / "results.json"
    old, new = (make_record(checkpoint=f"epoch-30_avg-{avg}", wer=float(avg)) for avg in (1, 9))
    others = [make_record(seed=1), make_record(mode="chunkwise"), make_record(unit="char", checkpoint=old.checkpoint)]
    for record in (new, old, *others, new):  # the best one was decoded again
        add_record(path, record)
    assert load_records(path) == [old, *others, new]
    assert sorted(load_newest(path), key=repr) == sorted([new, *others], key=repr)
    line = f"{path}: of {new.system} {new.checkpoint}, decoded last, not {old.checkpoint}"
    assert [record.message for record in caplog.records] == [line]


def test_a_record_of_an_unknown_unit_is_refused(tmp_path):
    item = {**json.loads((PUBLISHED / "mini.json").read_text())[0], "unit": "syllable"}
    (tmp_path / "results.json").write_text(json.dumps([item]))
    with pytest.raises(UserError, match="results.json: unknown unit syllable; decode again"):
        load_records(tmp_path / "results.json")


def _add_many(path: Path, system: str) -> None:
    for seed in range(20):
        add_record(path, make_record(system=system, seed=seed))


@pytest.mark.slow
def test_processes_that_add_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "results.json"
    processes = [multiprocessing.Process(target=_add_many, args=(path, f"system{n}")) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(load_records(path)) == 80
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    add_record(path, make_record())

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError):
        add_record(path, make_record(seed=1))
    assert load_records(path) == [make_record()]


@pytest.mark.parametrize("content", ["", "[{", "{}", "[1]", '[{"system": "a"}]'])
def test_a_file_of_something_else_is_named_and_kept(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match="results.json"):
        add_record(path, make_record())
    assert path.read_text() == content


@pytest.mark.parametrize(
    "damage",
    [
        {"wer": "x"},
        {"wer": float("nan")},
        {"errors": 1.5},
        {"interval": None},
        {"utterance_errors": [1, 2]},
        {"search": 3},
    ],
)
def test_a_value_that_is_none_is_named(tmp_path, damage):
    path = tmp_path / "results.json"
    add_record(path, make_record())
    (item,) = json.loads(path.read_text())
    path.write_text(json.dumps([{**item, **damage}]))
    with pytest.raises(UserError, match="results.json: .* record .*; mend it, or delete it and decode again"):
        load_records(path)


def test_a_record_scores_as_what_was_scored():
    score = scoring.score(scoring.align(random_transcripts(20, seed=3)))
    again = scored(score).score
    assert (again.errors, again.words, again.log_line("x")) == (score.errors, score.words, score.log_line("x"))
    assert scoring.bootstrap_wer(again) == scoring.bootstrap_wer(score)
    assert make_record().score is None


def test_without_file_locks_records_are_added_too(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    monkeypatch.setattr(files, "fcntl", None)  # as on Windows
    add_record(path, make_record())

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(
        files, "fcntl", SimpleNamespace(LOCK_EX=0, LOCK_NB=0, flock=no_locks)
    )  # as on some network disks
    add_record(path, make_record(seed=1))
    assert load_records(path) == [make_record(), make_record(seed=1)]


def test_results_of_other_files_of_one_name_are_not_replaced_in_silence(tmp_path, caplog):
    path = tmp_path / "results.json"
    before = make_record(search="beam_hotwords-names-1.5", inputs="a")
    add_record(path, before)
    add_record(path, make_record())
    warn_of_other_inputs(path, before.checkpoint, before.search, "a")
    warn_of_other_inputs(path, before.checkpoint, "greedy_search", "b")  # without files
    assert not caplog.messages
    warn_of_other_inputs(path, before.checkpoint, before.search, "b")
    assert f"{path}: its result of epoch-30_avg-9, {before.search} on test-clean is of other files" in caplog.text


def test_results_of_other_cuts_are_not_replaced(tmp_path):
    path = tmp_path / "results.json"
    check_test_set(path, "test", fingerprint_of("ab"))
    add_record(path, replace(make_record(), test_set="test", cuts=fingerprint_of("ab")))
    check_test_set(path, "test", fingerprint_of("ba"))
    check_test_set(path, "other", fingerprint_of("c"))
    message = error_of(lambda: check_test_set(path, "test", fingerprint_of("abc")))
    assert f"{path}: its results of test set test are of other cuts; name this manifest otherwise" in message
    add_record(path, replace(make_record(), test_set="old"))  # of a version that did not note the cuts
    check_test_set(path, "old", fingerprint_of("c"))
    assert [record.cuts for record in load_records(path)] == [fingerprint_of("ba"), ""]
