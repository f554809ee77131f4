"""Systems against a baseline: error rates, delays and seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdstream.errors import UserError
from kdstream.evaluation import scoring
from kdstream.evaluation.compare import compare, compare_delays, compare_seeds, interval_label
from kdstream.evaluation.latency import FRAME, SHOWN, Delays, Spread, delays_file, write_delays
from kdstream.evaluation.records import add_record, load_records
from support.records import make_record, trained, write_runs


def measured(system: str, folder: Path, shown: list, **changes: Any) -> Path:
    """A results JSON of one record, whose words' delays lie beside it: one utterance per list."""
    record = make_record(system=system, latency={FRAME: Spread(1, 0.0, 0.0, 0.0, 0.0)}, recogs="recogs.txt", **changes)
    add_record(folder / system / "results.json", record)
    (folder / system / "recogs.txt").write_text("")
    delays = [Delays(str(n), row, row, row[-1]) for n, row in enumerate(shown)]
    write_delays(delays_file(folder / system / "recogs.txt"), delays)
    return folder / system / "results.json"


def test_delays_are_compared_over_words_that_both_got_right(tmp_path):
    paths = [
        measured("baseline", tmp_path, [[100.0, 300.0, None], [200.0, 400.0]]),
        measured("late", tmp_path, [[150.0, None, 500.0], [230.0, 440.0]]),
        measured("elsewhere", tmp_path, [[1.0, 1.0, 1.0], [1.0, 1.0]], chunk_ms=320),
        measured("deaf", tmp_path, [[None, None, None], [None, None]]),
    ]
    runs = {path: load_records(path) for path in paths}
    (row,) = compare_delays(runs, "baseline")
    assert (row["system"], row["against"], row["words"]) == ("late", "baseline", 3)
    assert row["word shown, before"].startswith("233 (200 ") and row["word shown, after"].startswith("273 (230 ")
    assert row["word shown, later by"] == "40 [35, 50]"  # 50 in one utterance, 30 and 40 in the other
    assert row["first word, later by"] == "40 [30, 50]"
    assert row["last word, later by"] == row["final text, later by"] == "40 [40, 40]"


def test_delays_that_were_not_measured_are_not_compared(tmp_path):
    paths = [measured(system, tmp_path, [[100.0], [200.0]]) for system in ("baseline", "other")]
    runs = {path: load_records(path) for path in paths}
    assert len(compare_delays(runs, "baseline")) == 1
    for changes in ({"latency": {}}, {"recogs": ""}):
        changed = {path: [replace(record, **changes) for record in records] for path, records in runs.items()}
        assert compare_delays(changed, "baseline") == []
    delays_file(paths[1].parent / "recogs.txt").unlink()
    with pytest.raises(UserError, match="delays.jsonl"):
        compare_delays(runs, "baseline")


def test_reductions_are_against_the_same_setting_with_a_paired_interval(tmp_path):
    write_runs(tmp_path)
    runs = {path: load_records(path) for path in sorted(tmp_path.glob("*/results.json"))}
    rows = [reduction.row() for reduction in compare(runs, "baseline")]
    assert [(row["test set"], row["mode"]) for row in rows] == [
        (test_set, mode) for test_set in ("test-clean", "test-other") for mode in ("simulated", "chunkwise")
    ]
    for row in rows:
        low, high = map(float, row["interval"].strip("[]").split(","))
        assert 15 < low < row["reduction %"] < high < 60
        assert row["reduction %"] == pytest.approx(100 * (1 - row["WER % after"] / row["WER % before"]))


def test_systems_that_were_scored_on_different_utterances_are_named(tmp_path):
    write_runs(tmp_path)
    runs = {path: load_records(path) for path in tmp_path.glob("*/results.json")}
    path = tmp_path / "baseline" / "results.json"
    runs[path] = [replace(r, utterance_words=(*r.utterance_words[:-1], 99)) for r in runs[path]]
    with pytest.raises(UserError, match="test set test-.*baseline were scored on different utt.*decode both again"):
        compare(runs, "baseline")


def test_cuts_of_equal_lengths_are_no_test_set_of_the_same_name(tmp_path):
    write_runs(tmp_path)
    runs = {path: load_records(path) for path in tmp_path.glob("*/results.json")}
    path = tmp_path / "baseline" / "results.json"
    runs[path] = [replace(r, cuts="a" * 16) for r in runs[path]]
    assert compare(runs, "baseline")[0].interval  # the other records do not tell of their cuts
    everything = [replace(r, cuts=r.cuts or "b" * 16) for records in runs.values() for r in records]
    with pytest.raises(UserError, match="baseline were scored on different utterances"):
        compare({path: everything}, "baseline")
    one = [r for r in everything if (r.test_set, r.mode) == ("test-clean", "simulated")]
    with pytest.raises(UserError, match="was scored on other utterances"):
        compare_seeds(one, "baseline", [])


def test_texts_that_were_normalised_by_other_rules_are_told_of(tmp_path, caplog):
    write_runs(tmp_path)
    runs = {path: load_records(path) for path in tmp_path.glob("*/results.json")}
    compare(runs, "baseline")
    assert not caplog.records
    path = tmp_path / "baseline" / "results.json"
    everything = [replace(r, normalisation="nmt_nfkc") for records in runs.values() for r in records]
    cased = [replace(r, normalisation="nmt_nfkc, upper case") if r.system == "baseline" else r for r in everything]
    compare({path: cased}, "baseline")
    assert len(caplog.records) == 2 and "nmt_nfkc, upper case: baseline" in caplog.text  # one of each test set


def test_reductions_of_records_that_did_not_count_utterances_have_no_interval(tmp_path):
    write_runs(tmp_path)
    runs = {path: load_records(path) for path in tmp_path.glob("*/results.json")}
    path = tmp_path / "baseline" / "results.json"
    runs[path] = [replace(r, utterance_words=()) if r.test_set == "test-other" else r for r in runs[path]]
    reductions = compare(runs, "baseline")
    assert {r.record.test_set: r.interval is None for r in reductions} == {"test-clean": False, "test-other": True}
    assert {r.row()["interval"] is None for r in reductions if r.record.test_set == "test-other"} == {True}


def test_nothing_is_said_of_a_baseline_without_errors():
    base, other = make_record(wer=0.0, utterance_errors=(0,)), make_record(system="b", utterance_errors=(1,))
    (reduction,) = compare({Path("r.json"): [replace(r, utterance_words=(8,)) for r in (base, other)]}, "baseline")
    assert (reduction.percent, reduction.interval) == (None, None)


def test_seeds_count_together_and_need_not_be_the_same():
    base, new = (
        [trained(system, seed, noise) for seed in (1, 2, 3)] for system, noise in (("base", 0.4), ("new", 0.3))
    )
    (reduction,) = compare({Path("results.json"): [*base, *new[:2]]}, "base")
    scores = [[record.score for record in records if record.score] for records in (base, new[:2])]
    assert reduction.interval == scoring.bootstrap_reduction(*scores)
    wers = [np.mean([record.wer for record in records]) for records in (base, new[:2])]
    row = reduction.row()
    assert [row["WER % before"], row["WER % after"]] == pytest.approx(wers)
    assert row["reduction %"] == pytest.approx(100 * (1 - wers[1] / wers[0])) and row["seeds"] == "2 / 3"
    assert compare({Path("results.json"): [*base, *new]}, "base")[0].row()["seeds"] == "3"


def test_other_checkpoints_of_a_system_are_no_seeds_of_it():
    base, new = trained("base", 1, 0.4), [trained("new", seed, 0.3) for seed in (1, 2)]
    other = replace(new[1], seed=1, checkpoint="epoch-30_avg-1")
    reductions = compare({Path("results.json"): [base, new[0], other]}, "base")
    assert [(len(r.records), r.record.checkpoint) for r in reductions] == [(1, "epoch-30_avg-9"), (1, "epoch-30_avg-1")]


def test_a_baseline_of_several_checkpoints_is_warned_of(caplog):
    new, base = trained("new", 1, 0.3), [trained("base", seed, 0.4) for seed in (1, 2)]
    compare({Path("results.json"): [new, *base]}, "base")
    assert not caplog.messages
    compare({Path("results.json"): [new, base[0], replace(base[1], checkpoint="epoch-9_avg-1")]}, "base")
    assert caplog.messages == [
        "base: its seeds count together, but were decoded from several checkpoints: epoch-30_avg-9 (seed 1), "
        "epoch-9_avg-1 (seed 2); decode all from one --epoch and --avg"
    ]


def test_a_number_of_a_single_training_says_so():
    base, new = ([trained(system, seed, noise) for seed in (1, 2)] for system, noise in (("base", 0.4), ("new", 0.3)))
    for ours, theirs in ((1, 1), (1, 2), (2, 1), (2, 2)):
        row = compare_seeds([*base[:theirs], *new[:ours]], "base", [])[1]
        assert row["test-clean vs base %"].endswith(" (1 seed)") == (1 in (ours, theirs)) and row["seeds"] == ours


def test_seeds_whose_words_were_timed_have_a_mean_delay():
    timed, others = ([trained(system, seed, 0.3) for seed in (1, 2)] for system in ("timed", "others"))
    timed = [replace(r, latency={SHOWN: Spread(9, 150.0 + 2 * r.seed, 0.0, 0.0, 0.0)}) for r in timed]
    others[1] = replace(others[1], latency=timed[1].latency)  # one of two seeds is no mean of both
    measured, rest = compare_seeds([*timed, *others], "others", [])
    assert measured["test-clean word shown (ms)"] == "153 ± 1" and "test-clean word shown (ms)" not in rest


def test_pictures_say_how_many_seeds_an_interval_has():
    one, two, other = make_record(seed=1), make_record(seed=2), make_record(system="other", seed=3)
    assert interval_label([one, other]) == "95 % interval, 1 seed"
    assert interval_label([one, two]) == "95 % interval, 2 seeds"
    assert interval_label([one, two, other]) == "95 % interval, 1 to 2 seeds"
