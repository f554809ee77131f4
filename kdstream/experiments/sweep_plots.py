"""The plots of a sweep: lines over one flag, heat maps over two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from kdstream.evaluation.compare import interval_label, mean_interval, mean_wer
from kdstream.evaluation.records import Record
from kdstream.evaluation.scoring import mean_and_deviation
from kdstream.evaluation.tables import rate_shown
from kdstream.experiments.grid import Axis
from kdstream.experiments.sweep import Point, first_point, points
from kdstream.reporting.style import COLOURS, WIDTH, phone_style, save

Scored = dict[Point, list[Record]]  # of the seeds, on one test set


class Panel(NamedTuple):
    """One drawing: a line over one flag or a heat map over two."""

    title: str
    axes: Sequence[Axis]
    scored: Scored  # by values of these axes


def panels(axes: Sequence[Axis], scored: Scored, one_at_a_time: bool) -> list[Panel]:
    """One per axis, or one per setting of all but the first two axes."""
    if one_at_a_time:
        first = first_point(axes)
        return [
            Panel("", [in_order(axis)], {(v,): scored.get((*first[:n], v, *first[n + 1 :]), []) for v in axis.values})
            for n, axis in enumerate(axes)
        ]
    shown, rest = axes[:2], axes[2:]
    return [
        Panel(
            ", ".join(f"{axis.name} {value}" for axis, value in zip(rest, setting, strict=True)),
            [in_order(axis) for axis in shown],
            {point: scored.get((*point, *setting), []) for point in points(shown, False)},
        )
        for setting in points(rest, False)
    ]


def in_order(axis: Axis) -> Axis:
    """Numbers from the lowest to the highest; other values as they were given."""
    with suppress(ValueError):
        return Axis(axis.name, tuple(sorted(axis.values, key=float)))
    return axis


def draw_panels(drawings: Sequence[Panel], title: str, path: Path) -> None:
    """Panels below each other, of one scale; where seeds are several, their mean.

    Lines have 95 % intervals over seeds and utterances, maps have the standard deviation of the seeds.
    """
    heights = [1.6 + 0.9 * len(panel.axes[0].values) if len(panel.axes) == 2 else 3.8 for panel in drawings]
    means = [mean_wer(seeds) for panel in drawings for seeds in panel.scored.values() if seeds]
    with phone_style():
        figure, canvases = plt.subplots(
            len(drawings),
            1,
            figsize=(WIDTH, sum(heights)),
            layout="constrained",
            squeeze=False,
            sharey=all(len(panel.axes) == 1 for panel in drawings),
            gridspec_kw={"height_ratios": heights},
        )
        for canvas, panel in zip(canvases[:, 0], drawings, strict=True):
            canvas.set_title(", ".join(filter(None, [title, panel.title])))
            if len(panel.axes) == 2:
                draw_heat_map(canvas, panel, min(means), max(means))
            else:
                draw_line(canvas, panel)
        save(figure, path)


def draw_line(canvas: Axes, panel: Panel) -> None:
    (axis,) = panel.axes
    found = {n: panel.scored[value,] for n, value in enumerate(axis.values) if panel.scored[value,]}
    means = {n: mean_wer(seeds) for n, seeds in found.items()}
    for n, seeds in found.items():
        low, high = mean_interval(seeds) or (means[n], means[n])
        reach = [[max(0.0, means[n] - low)], [max(0.0, high - means[n])]]
        canvas.errorbar(n, means[n], yerr=reach, marker="o", capsize=5, color=COLOURS[0])
        canvas.annotate(f"{means[n]:.1f}", (n, means[n]), xytext=(8, 4), textcoords="offset points")
    canvas.plot(list(means), list(means.values()), color=COLOURS[0], linewidth=2.2)
    records = [record for seeds in found.values() for record in seeds]
    label = f"{rate_shown(records)} %, {interval_label(records)}" if found else "error rate %"
    canvas.set(xlabel=axis.name, ylabel=label, xlim=(-0.3, len(axis.values) - 0.4))
    canvas.grid(alpha=0.3)
    name_columns(canvas, axis)


def draw_heat_map(canvas: Axes, panel: Panel, lowest: float, highest: float) -> None:
    down, across = panel.axes
    table = np.full((len(down.values), len(across.values)), np.nan)
    for row, column in np.ndindex(table.shape):
        wers = [record.wer for record in panel.scored[down.values[row], across.values[column]]]
        text = "-"
        if wers:
            table[row, column], deviation = mean_and_deviation(wers)
            text = f"{table[row, column]:.1f}" + (f"\n± {deviation:.1f}" if deviation is not None else "")
        dark = table[row, column] > (lowest + highest) / 2
        canvas.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    canvas.imshow(table, cmap="viridis_r", vmin=lowest, vmax=highest, aspect="auto")
    canvas.set(xlabel=across.name, ylabel=down.name)
    canvas.set_yticks(range(len(down.values)), down.values)
    name_columns(canvas, across)


def name_columns(canvas: Axes, axis: Axis) -> None:
    canvas.set_xticks(range(len(axis.values)), axis.values)
    if sum(map(len, axis.values)) > 30:  # letters that fit beside each other
        plt.setp(canvas.get_xticklabels(), rotation=30, ha="right")


def draw_sweep(
    scored: Iterable[tuple[Point, Record]], axes: Sequence[Axis], one_at_a_time: bool, folder: Path
) -> list[Path]:
    """Draws FOLDER/sweep-<test set>.png for each test set of a sweep's records, and returns their paths."""
    by_set: dict[str, Scored] = {}
    for point, record in scored:
        by_set.setdefault(record.test_set, {}).setdefault(point, []).append(record)
    plots = [folder / f"sweep-{test_set}.png" for test_set in by_set]
    for path, (test_set, of_set) in zip(plots, by_set.items(), strict=True):
        rate = rate_shown([record for seeds in of_set.values() for record in seeds])
        draw_panels(panels(axes, of_set, one_at_a_time), f"{test_set} {rate} %", path)
    return plots
