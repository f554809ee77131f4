"""Result records, their tables, and the scripts that render and compare them."""

from __future__ import annotations

import json
import multiprocessing
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdstream.errors import UserError
from kdstream.evaluation import records, scoring, tables
from kdstream.evaluation.compare import compare, compare_delays
from kdstream.evaluation.latency import COMPUTE, FRAME, MEASURES, SHOWN, Delays, Spread, delays_file, write_delays
from kdstream.evaluation.records import add_record, load_records
from kdstream.evaluation.tables import wer_table
from support.decoding import run_script
from support.paths import ROOT
from support.records import make_record, random_transcripts, scored, write_runs

LATENCY = {SHOWN: Spread(200, 151.25, 175.0, 255.0, 375.5), COMPUTE: Spread(50, 8.46, 8.5, 9.0, 36.04)}
PUBLISHED = ROOT / "egs" / "librispeech" / "results"


def test_records_survive_the_file(tmp_path):
    path = tmp_path / "new" / "results.json"
    records = [
        make_record(),
        make_record(mode="full", chunk_ms=None, left_ms=None, latency_ms=None),
        make_record(seed=1, latency=LATENCY),
        make_record(seed=2, utterance_errors=(10, 0, 20), utterance_words=(80, 80, 80)),
    ]
    for record in records:
        add_record(path, record)
    assert load_records(path) == records


def test_records_of_fewer_measurements_load_and_are_written_as_they_were(tmp_path):
    items = json.loads((PUBLISHED / "mini.json").read_text())
    items = [{name: value for name, value in item.items() if name not in records.MAY_LACK} for item in items]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(items))
    records = load_records(path)
    assert all(record.latency == {} and record.score is None for record in records)
    records.publish(tmp_path / "again", records)
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

    monkeypatch.setattr(records.os, "replace", fail)
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


def test_what_weights_alone_do_not_tell_of_their_training_is_a_dash():
    (row,) = wer_table([make_record(speech_hours=0.0, compute_hours=0.0)]).splitlines()[2:]
    assert row.endswith("| - | - |")


def test_table_tells_seeds_apart():
    lines = wer_table([make_record(), make_record(seed=7)]).splitlines()
    assert len(lines) == 4 and "| seed |" in lines[0] and "| 7 |" in lines[3]


def test_commands_are_listed_once():
    block = tables.commands_block([make_record(), make_record(test_set="x"), make_record(command="other.py")])
    assert block == "```bash\ndecode.py --exp-dir exp/baseline\nother.py\n```\n"


def test_latency_table_has_columns_for_what_was_measured_alone():
    full = make_record(mode="full", chunk_ms=None, left_ms=None, latency_ms=None)
    (row,) = tables.latency_rows([full, make_record()])  # full context has no latency to speak of
    assert list(row) == ["system", "test set", "mode", "chunk / left (ms)", "algorithmic"]
    assert row["algorithmic"] == 255
    teacher = replace(full, latency={FRAME: Spread(99, -80.4, -40.0, 0.0, 40.0)})
    rows = tables.latency_rows([teacher, make_record(latency=LATENCY), make_record(search="other")])
    assert [row["algorithmic"] for row in rows] == [None, 255, 255]
    assert [row["words"] for row in rows] == [99, None, None]
    assert [row[MEASURES[SHOWN].label] for row in rows] == [None, "151 (175 / 255 / 376)", None]
    assert [row[MEASURES[FRAME].label] for row in rows] == ["-80 (-40 / 0 / 40)", None, None]
    assert [row[MEASURES[COMPUTE].label] for row in rows] == [None, "8.5 (8.5 / 9.0 / 36.0)", None]
    assert "final text" not in rows[0] and "search" in rows[0] and "seed" not in rows[0]


def test_every_column_of_measurements_is_explained_and_no_other():
    everything = {name: Spread(1, 1.0, 1.0, 1.0, 1.0) for name in MEASURES}
    rows = tables.latency_rows([make_record(latency=everything)])
    plain = {"system", "test set", "mode", "chunk / left (ms)"}
    assert set(tables.latency_notes(rows)) == set(rows[0]) - plain
    assert set(tables.latency_notes(tables.latency_rows([make_record()]))) == {"algorithmic"}


def test_published_records_show_their_latency_where_there_is_any(tmp_path):
    path = tmp_path / "run.json"
    add_record(path, make_record())
    assert "Latency" not in tables.render(path)
    add_record(path, make_record(mode="chunkwise", latency=LATENCY))
    text = tables.render(path)
    assert f"<summary>{tables.LATENCY_CELLS}</summary>" in text and "| 151 (175 / 255 / 376) |" in text
    assert text.index("test-clean WER %") < text.index("151 (175") < text.index("```bash")
    assert text.count("<details>") == text.count("</details>") == 2  # in Markdown, blank lines begin and end a table
    assert "</summary>\n\n| system" in text and "|\n\n</details>\n" in text


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


def test_reductions_of_records_that_did_not_count_utterances_have_no_interval(tmp_path):
    write_runs(tmp_path)
    runs = {path: load_records(path) for path in tmp_path.glob("*/results.json")}
    path = tmp_path / "baseline" / "results.json"
    runs[path] = [replace(r, utterance_words=()) if r.test_set == "test-other" else r for r in runs[path]]
    reductions = compare(runs, "baseline")
    assert {r.record.test_set: r.interval is None for r in reductions} == {"test-clean": False, "test-other": True}
    assert {r.row()["interval"] is None for r in reductions if r.record.test_set == "test-other"} == {True}


def test_a_record_scores_as_what_was_scored():
    score = scoring.score(scoring.align(random_transcripts(20, seed=3)))
    again = scored(score).score
    assert (again.errors, again.words, again.log_line("x")) == (score.errors, score.words, score.log_line("x"))
    assert scoring.bootstrap_wer(again) == scoring.bootstrap_wer(score)
    assert make_record().score is None


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


def test_several_pages_are_filled_or_none_at_all(tmp_path, monkeypatch):
    render = partial(run_script, monkeypatch, "local/render_results.py", "--json-dir", tmp_path, "--results")
    (tmp_path / "speech.json").write_text(json.dumps([{"part": "x", "ratio": 2.0}]))
    empty = "<!-- table: speech -->\n<!-- end -->\n"
    full = "<!-- table: speech -->\n| part | ratio |\n| --- | ---: |\n| x | 2.00 |\n<!-- end -->\n"
    first, second, broken = pages = [tmp_path / name for name in ("first.md", "second.md", "broken.md")]
    for page in pages:
        page.write_text(empty)
    broken.write_text("<!-- end -->")
    assert str(broken) in render(*pages) and first.read_text() == second.read_text() == empty
    stale = render(first, second, "--check", 1)
    assert str(first) in stale and str(second) in stale and first.read_text() == empty
    assert render(first) == "" and str(first) not in render(first, second, "--check", 1)
    assert render(first, second) == "" and first.read_text() == second.read_text() == full


def test_tables_of_the_committed_results_pages_are_those_of_their_json(monkeypatch):
    assert run_script(monkeypatch, "local/render_results.py", "--check", 1) == ""


def test_every_published_json_is_a_table_of_one_page():
    """But for the records of which another JSON is the comparison: methods.json and depth.json."""
    pages = [PUBLISHED.with_name("RESULTS.md"), *PUBLISHED.glob("*.md")]
    tables = [name for page in pages for name in re.findall(r"<!-- table: ([\w.-]+) -->", page.read_text())]
    published = {path.stem for path in PUBLISHED.glob("*.json")}
    compared = {name for name in published if f"{name}-comparison" in published}
    assert sorted(tables) == sorted(published - compared)


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
