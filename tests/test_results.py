"""Result records, their tables, and the scripts that render and compare them."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from decoding_helpers import run_script
from kdstream.config import UserError
from kdstream.decoding import results, scoring
from kdstream.decoding.results import Record, add_record, algorithmic_latency_ms, compare, load_records, wer_table
from kdstream.models.streaming import ChunkConfig
from test_scoring import random_transcripts


def make_record(**changes: Any) -> Record:
    record = Record(
        system="baseline",
        encoder="zipformer tiny",
        parameters=2_345_678,
        method="none",
        seed=42,
        checkpoint="epoch-30_avg-9",
        test_set="test-clean",
        mode="simulated",
        chunk_ms=160,
        left_ms=640,
        latency_ms=255,
        search="greedy_search",
        errors=30,
        words=240,
        insertions=5,
        deletions=5,
        substitutions=20,
        wer=12.5,
        interval=(11.0, 14.25),
        speech_hours=100.0,
        compute_hours=2.5,
        recogs="greedy_search/recogs.txt",
        command="decode.py --exp-dir exp/baseline",
    )
    return replace(record, **changes)


def test_records_survive_the_file(tmp_path):
    path = tmp_path / "new" / "results.json"
    records = [make_record(), make_record(mode="full", chunk_ms=None, left_ms=None, latency_ms=None)]
    for record in records:
        add_record(path, record)
    assert load_records(path) == records


def test_scoring_again_replaces_the_record_of_the_same_key(tmp_path):
    path = tmp_path / "results.json"
    other = [
        make_record(mode="chunkwise"),
        make_record(seed=1),
        make_record(test_set="test-other"),
        make_record(chunk_ms=320),
    ]
    for record in [make_record(), *other, make_record(wer=10.0, checkpoint="epoch-31_avg-9")]:
        add_record(path, record)
    assert load_records(path) == [*other, make_record(wer=10.0, checkpoint="epoch-31_avg-9")]


def _add_many(path: Path, system: str) -> None:
    for seed in range(20):
        add_record(path, make_record(system=system, seed=seed))


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

    monkeypatch.setattr(results.os, "replace", fail)
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


def test_algorithmic_latency_is_the_chunk_and_95_ms():
    """The convolutions read 3.5 feature frames ahead, the ConvNeXt three encoder frames of 20 ms."""
    assert algorithmic_latency_ms(ChunkConfig(8, 32)) == 160 + 35 + 60
    assert algorithmic_latency_ms(ChunkConfig(16, 64)) - algorithmic_latency_ms(ChunkConfig(8, 32)) == 160


def test_table_has_a_row_per_way_of_decoding_and_a_column_per_test_set():
    records = [
        make_record(),
        make_record(test_set="test-other", wer=30.0, interval=(28.0, 32.0)),
        make_record(mode="chunkwise"),
    ]
    lines = wer_table(records).splitlines()
    assert len(lines) == 4
    assert "test-clean WER %" in lines[0] and "test-other WER %" in lines[0] and "seed" not in lines[0]
    assert "| 12.50 [11.00, 14.25] | 30.00 [28.00, 32.00] | 100.00 | 2.50 |" in lines[2]
    assert "| 12.50 [11.00, 14.25] | - |" in lines[3]


def test_table_tells_seeds_apart():
    lines = wer_table([make_record(), make_record(seed=7)]).splitlines()
    assert len(lines) == 4 and "| seed |" in lines[0] and "| 7 |" in lines[3]


def test_commands_are_listed_once():
    block = results.commands_block([make_record(), make_record(test_set="x"), make_record(command="other.py")])
    assert block == "```bash\ndecode.py --exp-dir exp/baseline\nother.py\n```\n"


def write_runs(root: Path) -> None:
    """Two experiments: 'distilled' is 'baseline' with every error of every third utterance mended."""
    for test_set in ("test-clean", "test-other"):
        before = random_transcripts(60, seed=len(test_set))
        after = [t._replace(hyp=t.ref) if n % 3 == 0 else t for n, t in enumerate(before)]
        for system, transcripts in (("baseline", before), ("distilled", after)):
            folder = root / system
            folder.mkdir(exist_ok=True)
            score = scoring.score(scoring.align(transcripts))
            scoring.write_recogs(folder / f"recogs-{test_set}.txt", transcripts)
            for mode in ("simulated", "chunkwise"):
                record = make_record(
                    system=system, test_set=test_set, mode=mode, wer=score.wer, recogs=f"recogs-{test_set}.txt"
                )
                add_record(folder / "results.json", replace(record, interval=scoring.bootstrap_wer(score)))


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


def test_reductions_without_recogs_files_have_no_interval(tmp_path):
    write_runs(tmp_path)
    runs = {path: load_records(path) for path in tmp_path.glob("*/results.json")}
    (tmp_path / "baseline" / "recogs-test-other.txt").unlink()
    reductions = compare(runs, "baseline")
    assert {r.record.test_set: r.interval is None for r in reductions} == {"test-clean": False, "test-other": True}
    assert {r.row()["interval"] is None for r in reductions if r.record.test_set == "test-other"} == {True}


def test_results_md_is_filled_between_its_markers_only(tmp_path, monkeypatch):
    render = partial(run_script, monkeypatch, "local/render_results.py", "--json-dir", tmp_path, "--results")
    page = tmp_path / "RESULTS.md"
    (tmp_path / "speech.json").write_text(
        json.dumps([{"part": "teacher | forward", "ratio": 1.5}, {"part": "x", "ratio": 2.0}])
    )
    add_record(tmp_path / "wer.json", make_record())
    text = "before\n<!-- table: wer -->\n<!-- end -->\nbetween\n<!-- table: speech -->\nold\n<!-- end -->\nafter\n"
    page.write_text(text)
    assert "run local/render_results.py" in render(page, "--check", 1) and page.read_text() == text
    assert render(page) == ""
    filled = page.read_text()
    before, wer, between, speech, after = (
        piece.split("-->\n")[-1] for piece in filled.replace("<!-- end", "<!-- table").split("<!-- table")
    )
    assert (before, between, after) == ("before\n", "\nbetween\n".lstrip(), "after\n")
    assert "12.50 [11.00, 14.25]" in wer and "decode.py --exp-dir exp/baseline" in wer
    assert speech == "| part | ratio |\n| --- | ---: |\n| teacher \\| forward | 1.50 |\n| x | 2.00 |\n"
    assert render(page, "--check", 1) == ""


def test_tables_of_the_committed_results_page_are_those_of_its_json(monkeypatch):
    assert run_script(monkeypatch, "local/render_results.py", "--check", 1) == ""


@pytest.mark.parametrize(
    "text, named",
    [
        ("<!-- table: a -->\n", "<!-- end -->"),
        ("<!-- end -->", "<!-- end -->"),
        ("<!-- table: a -->\n<!-- end -->", "a.json"),
    ],
)
def test_results_md_with_a_broken_marker_is_left_alone(tmp_path, monkeypatch, text, named):
    page = tmp_path / "RESULTS.md"
    page.write_text(text)
    error = run_script(monkeypatch, "local/render_results.py", "--results", page, "--json-dir", tmp_path)
    assert named in error and "\n" not in error
    assert page.read_text() == text
