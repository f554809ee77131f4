"""The tables of Markdown files, filled from JSON files."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest

from kdstream.evaluation.records import add_record
from support.decoding import run_script
from support.paths import ROOT
from support.records import make_record

PUBLISHED = ROOT / "egs" / "librispeech" / "results"


def test_results_md_is_filled_between_its_markers_only(tmp_path, monkeypatch):
    render = partial(run_script, monkeypatch, "local/render_results.py", "--json-dir", tmp_path, "--results")
    page = tmp_path / "RESULTS.md"
    (tmp_path / "speech.json").write_text(
        json.dumps([{"part": "teacher | forward", "ratio": 1.5}, {"part": "x", "ratio": 2.0}])
    )
    add_record(tmp_path / "wer.json", make_record())
    text = "before\n<!-- table: wer -->\n<!-- end -->\nbetween\n<!-- table: speech -->\nold\n<!-- end -->\nafter\n"
    page.write_text(text)
    assert "run kdstream render-results" in render(page, "--check", 1) and page.read_text() == text
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
