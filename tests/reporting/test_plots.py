"""The plots of a report: which records they show, and how."""

from __future__ import annotations

from dataclasses import replace

from kdstream.evaluation.latency import Spread
from kdstream.evaluation.scoring import bootstrap_wer
from kdstream.reporting import plots
from kdstream.reporting.sources import Member
from kdstream.reporting.style import phone_style
from support.records import make_record, trained


def test_curves_join_what_is_not_beaten_in_latency_and_wer():
    assert plots.pareto_front([(3.0, 5.0), (1.0, 9.0), (2.0, 9.5), (4.0, 5.0), (2.5, 7.0)]) == [
        (1.0, 9.0),
        (2.5, 7.0),
        (3.0, 5.0),
    ]
    assert plots.pareto_front([]) == []


def test_seeds_are_drawn_at_their_mean_latency():
    one = make_record(seed=1, latency={"shown": Spread(9, 10.0, 1.0, 2.0, 3.0)})
    other = make_record(seed=2, latency={"shown": Spread(9, 20.0, 1.0, 2.0, 3.0)})
    assert plots.merged([one, other])[0].latency == {"shown": Spread(9, 15.0, 1.0, 2.0, 3.0)}
    assert plots.merged([one, replace(other, latency={})])[0].latency == {}


def test_plots_show_seeds_as_one_and_no_simulation_of_what_was_decoded_chunk_by_chunk():
    simulated, chunkwise = make_record(), make_record(mode="chunkwise", wer=10.0)
    other_seed = make_record(mode="chunkwise", wer=14.0, seed=7)
    only_simulated = make_record(chunk_ms=320)
    full = make_record(mode="full", chunk_ms=None, left_ms=None)
    assert plots.merged([full, simulated, chunkwise, other_seed, only_simulated]) == [
        full,
        replace(chunkwise, wer=12.0, interval=(12.0, 12.0)),  # they lack the errors of their utterances
        only_simulated,
    ]


def test_rates_of_words_and_of_characters_have_panels_of_their_own(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    records = [make_record(system=system, unit=unit) for unit in ("word", "char") for system in ("one", "two")]
    families = {system: Member(system, 0.0) for system in ("one", "two")}
    plots.plot_wers(records, plots.colours_of(list(families)), tmp_path / "wer.png")
    plots.plot_latencies(records, families, plots.colours_of(list(families)), tmp_path / "latency.png")
    bars, curves = drawn
    assert [axes.get_xlabel() for axes in bars.axes] == ["WER %, 95 % interval, 1 seed", "CER %, 95 % interval, 1 seed"]
    assert [axes.get_ylabel()[:5] for axes in curves.axes] == ["WER %", "CER %"]
    assert [len(axes.get_yticks()) for axes in bars.axes] == [2, 2]


def test_a_picture_of_measured_latencies_tells_the_algorithmic_ones_of_its_chunks(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    shown = {"shown": Spread(9, 150.0, 1.0, 2.0, 3.0)}
    timed = [
        make_record(chunk_ms=chunk, right_ms=right, latency_ms=latency, latency=shown)
        for chunk, right, latency in ((160, 160, 415), (320, 0, 416))
    ]
    for records in (timed, [replace(record, latency={}) for record in timed]):
        plots.plot_latencies(records, {"baseline": Member("baseline", 0.0)}, {"baseline": "C0"}, tmp_path / "l.png")
    measured, algorithmic = [[text.get_text() for text in figure.legends[0].get_texts()][1:] for figure in drawn]
    assert measured == ["chunk 160 + 160 ms: algorithmic 415 ms", "chunk 320 ms: algorithmic 416 ms"]
    assert algorithmic == ["chunk 160 + 160 ms", "chunk 320 ms"]  # their axis has it


def test_labels_stay_in_the_picture_beside_long_names(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    names = ["base", "best-mode-consistency, full context"]
    records = [make_record(system=name, seed=seed) for name in names for seed in range(1, 3 if name == "base" else 2)]
    with phone_style():
        plots.plot_wers(records, dict.fromkeys(names, "C0"), tmp_path / "wer.png")
    (figure,) = drawn
    figure.canvas.draw()
    label = figure.axes[0].xaxis.label
    assert label.get_text() == "WER %, 95 % interval, 1 to 2 seeds"
    assert figure.bbox.x0 <= label.get_window_extent().x0 and label.get_window_extent().x1 <= figure.bbox.x1


def test_whiskers_are_over_seeds_and_utterances():
    seeds = [trained("baseline", seed, noise) for seed, noise in ((1, 0.2), (2, 0.4), (3, 0.3))]
    (merged,) = plots.merged(seeds)
    assert merged.interval == bootstrap_wer(*(record.score for record in seeds if record.score))
    assert merged.interval[0] < min(record.interval[0] for record in seeds[1:]) < merged.wer < merged.interval[1]
