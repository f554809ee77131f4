"""The report: a page that stands alone, holds every number, escapes every name, and says what it lacks."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdstream.evaluation import compare as comparing
from kdstream.evaluation import scoring, tables
from kdstream.evaluation.records import add_record, load_records
from kdstream.reporting import sources
from kdstream.reporting.report import Report
from support.decoding import run_script
from support.records import make_record, write_runs
from support.reporting import HOSTILE_TEXT, write_curves, write_experiment, write_measured

pytestmark = pytest.mark.slow

HOSTILE_NAME = 'distilled <b onclick="x()">& $A$'
VOID = ("meta", "img")
MEGABYTE = 1_000_000


@dataclass
class Page(HTMLParser):
    """What a browser sees of a page; fails on tags that do not match."""

    html: str
    open: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    text: str = ""
    words: dict[tuple[str, str], dict[str, list[str]]] = field(default_factory=dict)  # by utterance and row
    marked: Counter = field(default_factory=Counter)  # words shown as wrong, by utterance
    utterance: tuple[str, str] = ("", "")  # the headings above it: what was chosen, cut id
    row: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        attributes = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not any(name.startswith("on") for name in attributes), attributes
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h2", "h3"):
            self.utterance = ("", "")
        if tag == "h4":
            self.utterance = (self.utterance[0], "")
        if tag == "th":
            self.row = attributes.get("title", "")
        if tag == "td" and attributes.get("class") in ("changed", "missing", "added"):
            self.marked[self.utterance] += 1

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag, f"</{tag}>"

    def handle_data(self, data) -> None:
        self.text += data
        title, cut_id = self.utterance
        if self.open[-1:] == ["h3"]:
            self.utterance = (title + data, "")
        elif self.open[-1:] == ["h4"]:
            self.utterance = (title, cut_id + data)
        elif self.open[-1:] == ["td"] and cut_id:
            self.words.setdefault(self.utterance, defaultdict(list))[self.row].append(data)


def rename_distilled(exp_root: Path) -> None:
    """Gives the distilled system and an utterance of the test set hostile names."""
    path = exp_root / "distilled" / "results.json"
    records = load_records(path)
    path.unlink()
    for record in records:
        add_record(path, replace(record, system=HOSTILE_NAME, command=f"decode.py {HOSTILE_TEXT}"))
    for system in ("baseline", "distilled"):
        recogs = exp_root / system / "recogs-test-clean.txt"
        hostile = scoring.Transcript(
            HOSTILE_TEXT, HOSTILE_TEXT.split() * 9, HOSTILE_TEXT.split()[1:] if system == "baseline" else []
        )
        scoring.write_recogs(recogs, sorted([*scoring.read_recogs(recogs), hostile]))


def write_report(exp_root: Path, *flags: str) -> str:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run_script(monkeypatch, "local/report.py", "--exp-root", exp_root, *flags)


@pytest.fixture(scope="module")
def exp_root(tmp_path_factory) -> Path:
    """An experiment folder with everything that a report can show, reported on."""
    root = tmp_path_factory.mktemp("exp")
    write_experiment(root)
    write_runs(root)
    teacher = make_record(system="teacher", mode="full", chunk_ms=None, left_ms=None, latency_ms=None, wer=3.21)
    add_record(root / "teacher" / "results.json", replace(teacher, test_set="test-clean"))
    rename_distilled(root)
    for system, losses in (("baseline", []), ("distilled", ["feature_loss", "token_loss"])):
        write_curves(root / system, ["loss", "pruned_loss", *losses])
    cka = {"student_layers": ["0.0", "1.0"], "teacher_layers": ["0.0", "1.0", "2.0"], "cka": [[1, 0, 0.5]] * 2}
    (root / "distilled" / "layer_similarity.json").write_text(json.dumps(cka))
    (root / "sweep-small.png").write_bytes(b"\x89PNG" + bytes(MEGABYTE))
    (root / "sweep-large.png").write_bytes(b"\x89PNG" + bytes(2 * MEGABYTE))
    assert write_report(root, "--publish", str(root / "published" / "run")) == ""
    return root


@pytest.fixture(scope="module")
def page(exp_root) -> Page:
    return Page((exp_root / "report" / "report.html").read_text(encoding="utf8"))


def test_the_page_stands_alone(page):
    assert len(page.addresses) == 6 and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "script" not in page.tags and "link" not in page.tags
    style = page.html[page.html.index("<style>") : page.html.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert '<meta name="viewport"' in page.html


def test_every_picture_says_what_it_shows(page):
    assert page.tags.count("img") == page.html.count(' alt="') == page.html.count("<img src=") == 6
    assert ' alt=""' not in page.html


def test_the_page_stays_small_and_names_what_is_too_large_for_it(exp_root, page):
    assert 4 * MEGABYTE / 3 < len(page.html) < 3 * MEGABYTE  # the smaller sweep is in it
    assert f"{exp_root / 'sweep-large.png'} is too large for this page (2.0 MB)" in page.text


def test_the_page_holds_every_number(exp_root, page):
    runs = sources.read_runs(exp_root, ("teacher", "baseline", "distilled"))
    text = page.text.replace("\u00a0", " ")
    for records in runs.values():
        for record in records:
            assert tables.wer_shown(record) in text
    for reduction in comparing.compare(runs, "baseline"):
        assert f"{reduction.percent:.1f} {tables.interval_shown(reduction.interval)}" in text


def test_names_and_transcripts_are_shown_as_they_are(page):
    assert page.text.count(HOSTILE_NAME) > 4
    assert f"\u201c{HOSTILE_TEXT}\u201d" in page.text  # the utterance of the relation maps
    assert f"decode.py {HOSTILE_TEXT}" in page.text
    assert "b" not in page.tags and "script" not in page.tags


def test_aligned_hypotheses_read_back_as_what_was_said_and_heard(exp_root, page):
    assert len(page.words) > 10 and {cut_id for _, cut_id in page.words} >= {HOSTILE_TEXT}
    for (title, cut_id), rows in page.words.items():
        test_set = title.partition("(")[2].rstrip(")")
        transcripts = {
            shown: next(t for t in scoring.read_recogs(exp_root / system / f"recogs-{test_set}.txt") if t[0] == cut_id)
            for shown, system in (("baseline", "baseline"), (HOSTILE_NAME, "distilled"))
        }
        assert rows["reference"] == transcripts["baseline"].ref
        assert {system: rows[system] for system in transcripts} == {s: t.hyp for s, t in transcripts.items()}
        errors = scoring.score(scoring.align(list(transcripts.values()))).errors
        assert page.marked[title, cut_id] == errors > 0


def test_markdown_shows_the_same_pictures(exp_root):
    text = (exp_root / "report" / "report.md").read_text()
    assert text.count("| baseline | 42 | zipformer tiny, 2.35 M |") == 2
    pictures = ("wer.png", "latency.png", "loss.png", "relations.png", "similarity-distilled.png", "../sweep-small.png")
    for picture in pictures:
        assert f"({picture})" in text and (exp_root / "report" / picture).stat().st_size > 10_000


def test_published_records_render_again(exp_root):
    published = exp_root / "published" / "run"
    assert len(load_records(published.with_name("run.json"))) == 9
    assert "| baseline | 1 | test-clean |" in tables.render(published.with_name("run-reduction.json"))


def test_what_is_missing_is_named_in_one_line_each(tmp_path):
    write_runs(tmp_path)
    for recogs in tmp_path.glob("*/recogs*.txt"):
        recogs.unlink()
    (tmp_path / "baseline" / "layer_similarity.json").write_text('{"student_layers": ["0.0"]}')
    assert write_report(tmp_path, "--systems", "baseline,distilled") == ""
    page = Page((tmp_path / "report" / "report.html").read_text())
    lines = page.text[page.text.index("Not in this report") :]
    for what in (
        f"Losses: no TensorBoard files under {tmp_path}",
        f"Attention relations: {tmp_path / 'baseline' / 'config.json'}: no such file",
        f"Similarity of layers: {tmp_path / 'baseline' / 'layer_similarity.json'}: not a table of layer similarities",
        f"Sensitivity: no sweep*.png in {tmp_path}",
        f"Utterances: no recogs files under {tmp_path}",
    ):
        assert what in lines
    assert page.html.count("<li>") == 5 and page.tags.count("img") == 2


def test_directories_of_a_systems_seeds_are_that_system(tmp_path):
    write_runs(tmp_path)
    for system in ("baseline", "distilled"):
        (tmp_path / system).rename(tmp_path / f"{system}-42")
        write_curves(tmp_path / f"{system}-42", ["loss"])
    flags = ("--systems", "distilled-42,baseline-42", "--baseline", "baseline-42", "--output", str(tmp_path / "page"))
    assert write_report(tmp_path, *flags) == ""
    assert "fewer word errors than baseline at 160 ms" in (tmp_path / "page" / "report.html").read_text()
    report = Report(tmp_path, ["distilled-42", "baseline-42"], "baseline-42", tmp_path)
    assert report.curve_colours == {f"{system}-42": report.colours[system] for system in ("distilled", "baseline")}
    assert report.colours["distilled"] != report.colours["baseline"]


def test_a_system_that_is_named_twice_in_two_ways_is_one(tmp_path):
    write_runs(tmp_path)
    report = Report(tmp_path, ["distilled", "baseline/", "distilled/", "./baseline"], "baseline/", tmp_path)
    assert report.systems == ["distilled", "baseline"] and report.baseline == "baseline"
    assert len(report.records) == 8 and report.reductions


def test_a_baseline_that_is_not_there_is_told(tmp_path):
    write_runs(tmp_path)
    assert write_report(tmp_path, "--systems", "baseline,distilled", "--baseline", "base") == ""
    page = Page((tmp_path / "report" / "report.html").read_text())
    assert "Comparison: nothing was decoded as base was" in page.text and "any of baseline, distilled" in page.text


def test_the_pages_name_is_not_its_directory(tmp_path):
    error = write_report(tmp_path, "--output", str(tmp_path / "report.html"))
    assert "--output" in error and "report.html" in error and not (tmp_path / "report.html").exists()


def test_a_system_without_results_is_a_clear_error(tmp_path):
    error = write_report(tmp_path, "--systems", "teacher")
    assert "teacher/results.json" in error and "\n" not in error


def test_measured_delays_are_in_the_page_and_beside_it(tmp_path):
    write_measured(tmp_path)
    flags = ("--systems", "early,plain,o", "--baseline", "plain", "--publish", tmp_path / "run")
    assert write_report(tmp_path, *map(str, flags)) == ""
    html = (tmp_path / "report" / "report.html").read_text()
    page, text = Page(html), (tmp_path / "report" / "report.md").read_text()
    shown = ("173 (160 / 272 / 297)", "200 (200 / 280 / 298)", "213 (220 / 284 / 298)", "-27 [-40, 0]", "13 [0, 20]")
    for cell in shown:
        assert cell in page.text.replace("\u00a0", " ") and cell in text
    for name, meaning in tables.latency_notes(tables.latency_rows(load_records(tmp_path / "run.json"))).items():
        assert f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" in html and f"- {name}: {meaning}\n" in text
    assert "| o | plain | test-clean | chunkwise | 160 / 640 |" in tables.render(tmp_path / "run-latency.json")
    assert write_report(tmp_path, *map(str, flags[:-1]), str(tmp_path / "again")) == ""
    drawn = (tmp_path / "run-latency.svg").read_bytes()
    assert b"<svg" in drawn and drawn == (tmp_path / "again-latency.svg").read_bytes()
