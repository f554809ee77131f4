"""The report: a page that stands alone, holds every number, escapes every name, and says what it lacks."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet, NumpyFilesWriter

from kdstream.checkpoints.store import save_checkpoint
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig, DistillConfig, TrainConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError
from kdstream.evaluation import compare as comparing
from kdstream.evaluation import scoring, tables
from kdstream.evaluation.compare import Reduction
from kdstream.evaluation.latency import Delays, Spread, delays_file, summarise, write_delays
from kdstream.evaluation.records import add_record, load_records
from kdstream.kd.teachers import find_teacher
from kdstream.models.transducer import build_model
from kdstream.reporting import findings, plots, sources
from kdstream.reporting.relations import BRANCH, STUDENT, TEACHER, compare_maps, read_relations
from kdstream.reporting.report import Report
from kdstream.reporting.sources import Member
from kdstream.reporting.utterances import GAP, Comparison, align_systems, worth_reading
from kdstream.training.step import build_distiller
from support.decoding import run_script
from support.records import make_record, random_transcripts, write_runs
from support.training import experiment, make_corpus, make_cut

HOSTILE_NAME = 'distilled <b onclick="x()">& $A$'
HOSTILE_TEXT = "<script>alert('1')</script> &amp; <!-- $A_$ A"
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


def write_experiment(exp_root: Path) -> None:
    """Random weights of a teacher and a distilled student, and a test set whose second cut is long enough to show."""
    data = make_corpus(exp_root, num_utterances=2)
    writer = NumpyFilesWriter(exp_root / "test_feats")
    features = np.random.RandomState(0).randn(380, 80).astype(np.float32) - 6
    cuts = [make_cut("short", features[:200], "A B", writer), make_cut("long", features, HOSTILE_TEXT, writer)]
    CutSet.from_cuts(cuts).to_file(exp_root / "test.jsonl.gz")
    data = replace(data, test_cuts=(str(exp_root / "test.jsonl.gz"),))
    vocab_size = Tokenizer(data.bpe_model).vocab_size
    distill = DistillConfig(teacher_exp_dir=str(exp_root / "teacher"), kd_branch_feedforward_dim=32, kd_apc_dim=16)
    for name in ("teacher", "distilled"):
        causal = name == "distilled"
        config = experiment(exp_root / name, data, causal)
        config = replace(config, model=replace(config.model, vocab_size=vocab_size))
        config = replace(config, distill=distill if causal else DistillConfig())
        torch.manual_seed(causal)
        model = build_model(config.model)
        branches = build_distiller(config.distill, model, find_teacher(config, torch.device("cpu")))
        params = {"batch_idx_train": 10, "average_period": 1}
        save_checkpoint(exp_root / name / "epoch-1.pt", model, model, branches, params=params)
        if causal:  # as a student that read a cache, which holds the training cuts alone
            config = replace(config, distill=replace(distill, teacher_cache=str(exp_root / "of_training_cuts")))
        config.save(exp_root / name)


def write_curves(exp_dir: Path, losses: list[str]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(exp_dir / "tensorboard")) as writer:
        for batch in range(10, 100, 10):
            for loss in losses:
                writer.add_scalar(f"train/tot_{loss}", 1.0 / batch, batch)
            writer.add_scalar("train/valid_pruned_loss", 2.0 / batch, batch)


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
    assert text.count("| baseline | zipformer tiny, 2.35 M |") == 2
    pictures = ("wer.png", "latency.png", "loss.png", "relations.png", "similarity-distilled.png", "../sweep-small.png")
    for picture in pictures:
        assert f"({picture})" in text and (exp_root / "report" / picture).stat().st_size > 10_000


def test_published_records_render_again(exp_root):
    published = exp_root / "published" / "run"
    assert len(load_records(published.with_name("run.json"))) == 9
    assert "| baseline | test-clean |" in tables.render(published.with_name("run-reduction.json"))


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


def test_relations_are_distributions_and_their_divergence_is_the_losss(exp_root):
    relations = read_relations(exp_root / "distilled")
    assert (relations.cut_id, relations.text) == ("long", HOSTILE_TEXT)
    assert relations.frame_ms == 40 and relations.layers == ("1.1", "1.1")
    frames = {len(relation) for relation in relations.maps.values()}
    assert frames == {93}  # 380 feature frames are 186 encoder frames
    assert set(relations.maps) == {(whose, name) for whose in (TEACHER, BRANCH, STUDENT) for name in "QKV"}
    for relation in relations.maps.values():
        assert relation.shape == (*frames, *frames) and (relation > 0).all()
        torch.testing.assert_close(relation.sum(dim=1), torch.ones(len(relation), dtype=torch.float64))
    assert all(divergence > 0 for divergence in relations.divergences.values())


def test_divergence_of_maps_with_one_head_is_that_of_their_rows():
    torch.manual_seed(0)
    vectors = {whose: tuple(torch.randn(1, 7, width) for width in (4, 4, 6)) for whose in (TEACHER, BRANCH, STUDENT)}
    maps, divergences = compare_maps(vectors, heads=1)
    for (whose, name), divergence in divergences.items():
        teacher, other = maps[TEACHER, name], maps[whose, name]
        slow = (
            sum(p * (p / q).log() for ps, qs in zip(teacher, other, strict=True) for p, q in zip(ps, qs, strict=False))
            / 7
        )
        assert divergence == pytest.approx(float(slow), rel=1e-5)
    assert len(divergences) == 6 and {width.shape for width in maps.values()} == {(7, 7)}


@pytest.mark.parametrize(
    "spoil, named",
    [
        (lambda root: (root / "distilled" / "epoch-1.pt").unlink(), "distilled: no epoch-N.pt"),
        (lambda root: (root / "test.jsonl.gz").unlink(), "test.jsonl.gz: no such manifest"),
        (lambda root: shutil.rmtree(root / "teacher"), "teacher/config.json: no such file"),
        (
            lambda root: save_checkpoint(root / "distilled" / "epoch-2.pt", build_model(load(root).model)),
            "epoch-2.pt: holds no branches",
        ),
        (lambda root: replace(load(root), distill=DistillConfig()).save(root / "distilled"), "without a teacher"),
        (
            lambda root: CutSet.from_jsonl(root / "test.jsonl.gz").subset(first=1).to_file(root / "test.jsonl.gz"),
            "no cut lasts between 3 and 8 s",
        ),
    ],
)
def test_relations_that_cannot_be_drawn_say_why(tmp_path, spoil, named):
    write_experiment(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=named):
        read_relations(tmp_path / "distilled")


def load(root: Path) -> ExperimentConfig:
    return ExperimentConfig.load(root / "distilled")


def test_systems_are_aligned_word_under_word():
    compared = align_systems("x", list("ABC"), {"one": list("AXBC"), "two": list("AYZBD"), "none": []})
    assert compared.reference == ["A", GAP, GAP, "B", "C"]
    assert compared.hypotheses["one"] == ["A", "X", GAP, "B", "C"]
    assert compared.hypotheses["two"] == ["A", "Y", "Z", "B", "D"]
    assert compared.hypotheses["none"] == [GAP] * 5
    assert (compared.words, compared.total, compared.spread) == (3, 1 + 3 + 3, 2)


def test_alignments_keep_every_word_and_count_errors_as_scoring_does():
    first, second = random_transcripts(40, seed=1), random_transcripts(40, seed=2)
    for one, two in zip(first, second, strict=True):
        hypotheses = {"one": one.hyp, "two": two.hyp, "star": ["*", *one.hyp]}
        compared = align_systems(one.cut_id, one.ref, hypotheses)
        assert [word for word in compared.reference if word] == one.ref
        for system, hypothesis in hypotheses.items():
            assert [word for word in compared.hypotheses[system] if word] == hypothesis
        aligned = scoring.align([one, two._replace(ref=one.ref)])
        assert [compared.errors(s) for s in ("one", "two")] == list(scoring.score(aligned).utterance_errors)


def test_utterances_where_systems_differ_come_first_then_the_worst():
    def compared(name: str, one: str, two: str) -> Comparison:
        return align_systems(name, list("AAAAAA"), {"one": list(one), "two": list(two)})

    alike, better, best = (
        compared("alike", "B", "B"),
        compared("better", "AAAABB", "AAAAAA"),
        compared("best", "", "AAA"),
    )
    worse, right = compared("worse", "BB", "BB"), compared("right", "AAAAAA", "AAAAAA")
    assert worth_reading([right, alike, better, worse, best], differing=2, worst=9) == ([best, better], [alike, worse])
    assert worth_reading([right, alike, better, best], differing=1, worst=1) == ([best], [alike])


def reduction(percent: float, interval=None, **changes) -> Reduction:
    record = make_record(system="distilled", wer=20.0 * (1 - percent / 100), **changes)
    return Reduction(record, make_record(wer=20.0, **changes), percent, interval)


def test_the_headline_is_the_best_system_where_latency_is_lowest():
    full = make_record(system="teacher", mode="full", chunk_ms=None, wer=10.0)
    slow = reduction(90.0, chunk_ms=640)
    simulated = reduction(80.0, mode="simulated")
    wanted = reduction(27.0, (17.4, 36.1), mode="chunkwise")
    weaker = replace(wanted, record=replace(wanted.record, system="weaker"), percent=3.0)
    (line,) = findings.headline([full], [slow, simulated, weaker, wanted])
    assert line == (
        "distilled has 27 % [17, 36] fewer word errors than baseline at 160 ms on test-clean: 14.6 % against 20.0 % "
        "WER. teacher, which hears the whole utterance, has 10.0 %: 54 % of the gap is closed."
    )


def test_the_headline_admits_chance_harm_and_seeds():
    (line,) = findings.headline([], [reduction(2.0, (-1.0, 5.0))])
    assert "2 % [-1, 5] fewer word errors" in line and "may be chance" in line
    (line,) = findings.headline([], [reduction(-10.0, (-15.0, -5.0))])
    assert "10 % [5, 15] more word errors" in line and "chance" not in line
    (line,) = findings.headline([], [reduction(10.0, (5.0, 15.0), seed=1), reduction(20.0, (5.0, 30.0), seed=2)])
    assert "15 % [10, 20] fewer" in line and "17.0 % against 20.0 % WER (mean and range of 2 seeds)" in line
    (line,) = findings.headline([make_record()], [])
    assert line.startswith("baseline has 12.50 [11.00, 14.25] % WER on test-clean")


def write_measured(root: Path) -> None:
    """Systems that differ in --delay-penalty or in the data's batches, with delays of their words."""
    for system, penalty, seconds, later in (("early", 0.01, 200.0, -40.0), ("plain", 0.0, 200.0, 0.0), ("o", 0, 9, 20)):
        config = ExperimentConfig(
            data=DataConfig(max_duration=seconds), train=TrainConfig(exp_dir=system, delay_penalty=penalty)
        )
        words = [[100 + later, 200 + later], [300.0, None]]
        delays = [Delays(f"u{n}", row, row, row[-1]) for n, row in enumerate(words)]
        record = make_record(
            system=system, mode="chunkwise", recogs="recogs.txt", wer=9.0 - later / 20, latency=summarise(delays)
        )
        add_record(root / system / "results.json", record)
        config.save(root / system)
        (root / system / "recogs.txt").write_text("u0:\tref=['A', 'B']\nu0:\thyp=['A', 'B']\n")
        write_delays(delays_file(root / system / "recogs.txt"), delays)


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


def test_systems_that_differ_in_the_delay_penalty_alone_are_a_family(tmp_path):
    write_measured(tmp_path)
    make = lambda: sources.read_families(sources.read_runs(tmp_path, ("early", "plain", "o")))  # noqa: E731
    assert make() == {"early": Member("plain", 0.01), "plain": Member("plain", 0.0), "o": Member("o", 0.0)}
    (tmp_path / "o" / "config.json").write_text((tmp_path / "plain" / "config.json").read_text())
    assert {member.family for member in make().values()} == {"early", "plain", "o"}  # twice the same penalty
    (tmp_path / "o" / "config.json").unlink()
    assert make() == {"early": Member("plain", 0.01), "plain": Member("plain", 0.0), "o": Member("o", 0.0)}


def test_curves_join_what_is_not_beaten_in_latency_and_wer():
    assert plots.unbeaten([(3.0, 5.0), (1.0, 9.0), (2.0, 9.5), (4.0, 5.0), (2.5, 7.0)]) == [
        (1.0, 9.0),
        (2.5, 7.0),
        (3.0, 5.0),
    ]
    assert plots.unbeaten([]) == []


def test_seeds_are_drawn_at_their_mean_latency():
    one = make_record(seed=1, latency={"shown": Spread(9, 10.0, 1.0, 2.0, 3.0)})
    other = make_record(seed=2, latency={"shown": Spread(9, 20.0, 1.0, 2.0, 3.0)})
    assert plots.merged([one, other])[0].latency == {"shown": Spread(9, 15.0, 1.0, 2.0, 3.0)}
    assert plots.merged([one, replace(other, latency={})])[0].latency == {}


def test_losses_are_read_whole_and_shown_in_a_fixed_order(exp_root):
    curves = {system: sources.read_curves(exp_root / system) for system in ("teacher", "baseline", "distilled")}
    assert curves["teacher"] == {}
    assert sources.losses_in(curves) == ["pruned_loss", "feature_loss", "token_loss", "loss"]
    assert set(curves["baseline"]["pruned_loss"]) == {"training", "validation"}
    assert curves["distilled"]["token_loss"]["training"][1] == (20, pytest.approx(0.05))


def test_plots_show_seeds_as_one_and_no_simulation_of_what_was_decoded_chunk_by_chunk():
    simulated, chunkwise = make_record(), make_record(mode="chunkwise", wer=10.0)
    other_seed = make_record(mode="chunkwise", wer=14.0, seed=7)
    only_simulated = make_record(chunk_ms=320)
    full = make_record(mode="full", chunk_ms=None, left_ms=None)
    assert plots.merged([full, simulated, chunkwise, other_seed, only_simulated]) == [
        full,
        replace(chunkwise, wer=12.0, interval=(10.0, 14.0)),
        only_simulated,
    ]


def test_whiskers_are_called_what_they_are():
    one, two, other = make_record(seed=1), make_record(seed=2), make_record(system="other", seed=3)
    assert plots._whiskers_are([one, other]) == "95 % interval"
    assert plots._whiskers_are([one, two]) == "range of seeds"
    assert plots._whiskers_are([one, two, other]) == "range of seeds (of one: 95 % interval)"


@pytest.mark.parametrize("cka", [[[1.0]], [], [["x", "y"]], [[1.0, 2.0], [1.0]]])
def test_a_damaged_similarity_file_is_named(tmp_path, cka):
    path = tmp_path / "layer_similarity.json"
    path.write_text(json.dumps({"student_layers": ["0.0"], "teacher_layers": ["0.0", "1.0"], "cka": cka}))
    with pytest.raises(UserError, match="layer_similarity.json"):
        sources.read_similarity(path)
