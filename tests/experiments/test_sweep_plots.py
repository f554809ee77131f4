"""The plots of a sweep: what stands in them, and that they fit a phone."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from kdstream.evaluation.compare import mean_interval
from kdstream.evaluation.records import Record
from kdstream.experiments import sweep_plots
from kdstream.experiments.grid import Axis
from kdstream.experiments.sweep import points
from kdstream.experiments.sweep_plots import Panel, panels
from support.records import make_record, trained

SCALES, SHIFTS, LAYERS = Axis("scale", ("0", "1", "3")), Axis("shift", ("1", "2")), Axis("layers", ("2.0,3.1", "1.0"))


def of_wers(*wers: float) -> list[Record]:
    """A training for each WER, which counted no utterances."""
    return [make_record(wer=wer, seed=seed, interval=(wer - 1, wer + 3)) for seed, wer in enumerate(wers)]


def scored_over(axes: list[Axis], seeds: int) -> dict[tuple[str, ...], list[Record]]:
    rng = np.random.default_rng(0)
    return {point: of_wers(*rng.uniform(5, 40, seeds)) for point in points(axes, False)}


@pytest.mark.slow
@pytest.mark.parametrize("axes, count", [([SCALES], 1), ([SCALES, SHIFTS], 1), ([SCALES, SHIFTS, LAYERS], 2)])
@pytest.mark.parametrize("seeds", [1, 3])
def test_maps_are_drawn_and_fit_a_phone(tmp_path, axes, count, seeds):
    scored = scored_over(axes, seeds)
    del scored[tuple(axis.values[0] for axis in axes)]  # a cell that failed
    drawings = panels(axes, scored, False)
    assert len(drawings) == count
    sweep_plots.draw_panels(drawings, "test WER %", tmp_path / "map.png")
    image = imread(tmp_path / "map.png")
    assert image.shape[1] == 720 and len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20


def test_a_map_holds_the_mean_and_deviation_of_the_seeds_at_its_place():
    figure, place = sweep_plots.plt.subplots()
    wers = {("0", "1"): (10.0, 12.0), ("0", "2"): (), ("1", "1"): (20.0, 20.0), ("1", "2"): (30.0, 40.0)}
    scored = {point: of_wers(*of_seeds) for point, of_seeds in wers.items()}
    sweep_plots.draw_heat_map(place, Panel("", [Axis("scale", ("0", "1")), SHIFTS], scored), 11.0, 35.0)
    shown = {text.get_position(): text.get_text() for text in place.texts}
    assert shown == {(0, 0): "11.0\n± 1.4", (1, 0): "-", (0, 1): "20.0\n± 0.0", (1, 1): "35.0\n± 7.1"}
    assert [label.get_text() for label in place.get_yticklabels()] == ["0", "1"] and place.get_xlabel() == "shift"
    (image,) = place.images
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), -1), [[11, -1], [20, 35]])
    sweep_plots.plt.close(figure)


def test_a_line_holds_the_mean_of_the_seeds_and_its_interval():
    figure, place = sweep_plots.plt.subplots()
    seeds = [trained("point", seed, noise) for seed, noise in ((1, 0.2), (2, 0.4))]
    mean, interval = np.mean([record.wer for record in seeds]), mean_interval(seeds)
    sweep_plots.draw_line(place, Panel("", [SCALES], {("0",): seeds, ("1",): [], ("3",): of_wers(20.0)}))
    np.testing.assert_allclose(place.lines[-1].get_xydata(), [[0, mean], [2, 20]])
    bars = [segment for bar in place.containers for segment in bar.lines[2][0].get_segments()]
    assert interval is not None
    np.testing.assert_allclose(bars, [[[0, low], [0, high]] for low, high in [interval]] + [[[2, 19], [2, 23]]])
    assert place.get_ylabel() == "WER %, 95 % interval, 1 to 2 seeds"
    sweep_plots.plt.close(figure)


def test_numbers_are_drawn_from_the_lowest_to_the_highest():
    mixed = Axis("scale", ("1", "0.3", "3"))
    for axes in ([mixed], [mixed, SHIFTS]):
        (panel,) = panels(axes, {}, one_at_a_time=False)
        assert panel.axes[0].values == ("0.3", "1", "3")


def test_a_star_is_drawn_as_one_line_per_flag():
    axes = [SCALES, Axis("shift", ("2", "10", "1")), LAYERS]
    scored = {point: of_wers(float(n)) for n, point in enumerate(points(axes, True))}
    over_scale, over_shift, over_layers = panels(axes, scored, True)
    assert over_scale.scored == {("0",): of_wers(0.0), ("1",): of_wers(4.0), ("3",): of_wers(5.0)}
    assert over_shift.scored == {("2",): of_wers(0.0), ("10",): of_wers(2.0), ("1",): of_wers(3.0)}
    assert over_shift.axes == [Axis("shift", ("1", "2", "10"))]  # numbers in order, names as they are
    assert over_layers.axes == [LAYERS]
    assert over_layers.scored == {("2.0,3.1",): of_wers(0.0), ("1.0",): of_wers(1.0)}
