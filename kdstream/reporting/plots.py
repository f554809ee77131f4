"""The report's plots: panels below each other, which suits a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from itertools import cycle
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from kdstream.evaluation.compare import by_seeds, interval_label, mean_interval, mean_wer
from kdstream.evaluation.latency import SHOWN, Spread
from kdstream.evaluation.records import Measure, Record
from kdstream.evaluation.tables import chunk_alone_shown, rate_shown
from kdstream.reporting.relations import TEACHER, Relations
from kdstream.reporting.sources import PHASES, TOTAL, Curves, Member, Similarity, losses_in
from kdstream.reporting.style import COLOURS, WIDTH, save

MODE_SHADES = {"full": 0.35, "simulated": 0.65, "chunkwise": 1.0}
PHASE_STYLES = {"training": {"linestyle": "-"}, "validation": {"linestyle": "--", "marker": "o", "markersize": 4}}
LATENCY_AXES = {False: "chunk + look-ahead, ms", True: "word shown after its end, mean, ms"}  # by: is it measured
LETTERS = 60  # of a legend, that fit in it
MANY = 8  # layers; a heat map of more has no room for numbers

Colours = dict[str, str]  # by system
Point = tuple[float, float]


def colours_of(systems: Sequence[str]) -> Colours:
    return {system: COLOURS[i % len(COLOURS)] for i, system in enumerate(systems)}


def plot_losses(curves: dict[str, Curves], colours: Colours, path: Path) -> None:
    """One small panel per loss, one line per system, training and validation; curves are by system."""
    losses = losses_in(curves)
    rows = math.ceil(len(losses) / 2)
    figure, panels = plt.subplots(rows, 2, figsize=(WIDTH, 2.6 * rows + 0.3), layout="constrained", squeeze=False)
    for axes in panels.flat[len(losses) :]:
        axes.remove()
    for axes, loss in zip(panels.flat, losses, strict=False):  # the last panel may be empty
        drawn = [
            axes.plot(*zip(*curve, strict=True), color=colours[system], linewidth=2, **PHASE_STYLES[phase])
            for system, of_system in curves.items()
            for phase, curve in of_system.get(loss, {}).items()
        ]
        values = np.concatenate([line.get_ydata() for (line,) in drawn])
        axes.set_title("weighted sum" if loss == TOTAL else loss.removesuffix("_loss").replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(lambda batch, _: f"{batch / 1000:g}k" if batch >= 10_000 else f"{batch:g}")
        _log_axis(axes, values)
        axes.grid(alpha=0.3)
    figure.supxlabel("batch", fontsize=15)
    present = {phase for of_system in curves.values() for loss in of_system.values() for phase in loss}
    handles = {system: Line2D([], [], color=colours[system], linewidth=4) for system in curves if curves[system]}
    for phase in PHASES.values():
        if phase in present:
            handles[phase] = Line2D([], [], color="#555555", linewidth=2, **PHASE_STYLES[phase])
    _legend(figure, list(handles.values()), list(handles))
    save(figure, path)


def _log_axis(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic axis, where the values span enough for it."""
    if np.nanmin(values) <= 0 or np.nanmax(values) < 5 * np.nanmin(values):
        return
    decades = math.log10(np.nanmax(values) / np.nanmin(values))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if decades < 1 else (1, 3) if decades < 2.5 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def plot_wers(records: Sequence[Record], colours: Colours, path: Path) -> None:
    """Horizontal bars, one panel per measure."""

    def draw(axes: Axes, drawn: Sequence[Record]) -> None:
        for place, record in enumerate(drawn):
            style = {"color": colours[record.system], "alpha": MODE_SHADES[record.mode]}
            axes.barh(place, record.wer, xerr=_whiskers([record]), error_kw={"capsize": 4, "linewidth": 1.6}, **style)
            axes.text(max(record.wer, record.interval[1]), place, f"  {record.wer:.1f}", va="center")
        axes.set_yticks(range(len(drawn)), [_bar_label(record) for record in drawn])
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        axes.set_xlim(0, 1.15 * max(record.interval[1] for record in drawn) or 1.0)
        # ends where the axis ends: beside long names the axis is shorter than its label
        axes.set_xlabel(f"{rate_shown(drawn)} %, {interval_label(records)}", loc="right")

    save(_panel_per_measure(records, draw, lambda drawn: 1.3 + 0.62 * len(drawn)), path)


def _bar_label(record: Record) -> str:
    decoding = "full context" if record.chunk_ms is None else f"{record.mode} {chunk_alone_shown(record)} ms"
    return f"{record.system}\n{decoding}"


def plot_latencies(records: Sequence[Record], families: dict[str, Member], colours: Colours, path: Path) -> None:
    """WER over latency, one panel per measure and one curve per family; full context as a line across.

    Latency is the mean time from the end of a word to its display where that was measured for all records, else the
    algorithmic latency.  A curve joins the Pareto front of its family: the points that no other one beats in both
    latency and WER.  Other points are hollow.  Shapes stand for chunks, with their algorithmic latency where the axis
    has the measured one, and numbers beside points for delay penalties other than 0.
    """
    streaming = [record for record in _drawn(records) if record.latency_ms is not None]
    measured = all(SHOWN in record.latency for record in streaming)
    chunks = {(record.chunk_ms or 0, record.right_ms): chunk_alone_shown(record) for record in streaming}
    algorithmic = {chunk_alone_shown(record): record.latency_ms for record in streaming}
    shapes = dict(zip([chunks[sizes] for sizes in sorted(chunks)], cycle("os^Dv")))

    def latency(record: Record) -> float:
        assert record.latency_ms is not None  # as of all records in `streaming`
        return record.latency[SHOWN].mean if measured else record.latency_ms

    reached = list(map(latency, streaming))

    def draw(axes: Axes, drawn: Sequence[Record]) -> None:
        for family in dict.fromkeys(families[record.system].family for record in drawn):
            members = [record for record in drawn if families[record.system].family == family]
            points = {(latency(record), record.wer): record for record in members if record.latency_ms is not None}
            colour, front = colours[family], pareto_front(list(points))
            if front:
                axes.plot(*zip(*front, strict=True), color=colour, linewidth=2.2, label=family)
            for point, record in points.items():
                axes.errorbar(
                    *point, _whiskers([record]), color=colour, marker=shapes[chunk_alone_shown(record)], markersize=9,
                    markerfacecolor=colour if point in front else "white", capsize=4, elinewidth=1.2,
                )  # fmt: skip
                if penalty := families[record.system].delay_penalty:
                    place = {"xytext": (4, -6), "textcoords": "offset points", "rotation": -40, "va": "top"}
                    axes.annotate(f"{penalty:g}", point, fontsize=11, color=colour, **place)
            for record in members:
                if record.mode == "full":
                    label = f"{record.system}, full context"
                    axes.axhline(record.wer, color=colours[record.system], linestyle="--", label=label)
        axes.set(xlabel=LATENCY_AXES[measured], ylabel=f"{rate_shown(drawn)} %, {interval_label(records)}")
        axes.set_xlim(min([0, *reached]), 1.15 * max(reached, default=1))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)

    figure = _panel_per_measure(records, draw, lambda _: 4.2)
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for chunk, shape in shapes.items():
        label = f"chunk {chunk} ms{f': algorithmic {algorithmic[chunk]} ms' if measured else ''}"
        handles[label] = Line2D([], [], color="#555555", marker=shape, markersize=9, linestyle="")
    _legend(figure, list(handles.values()), list(handles))
    save(figure, path)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points (latency, WER) of which no other one is better in one and no worse in the other, by latency."""
    front: list[Point] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _panel_per_measure(
    records: Sequence[Record],
    draw: Callable[[Axes, Sequence[Record]], None],
    height: Callable[[Sequence[Record]], float],
) -> Figure:
    """A panel for each test set and what was counted on it, below each other.

    Args:
      draw: fills a panel.
      height: its inches.
    """
    by_measure: dict[Measure, list[Record]] = {}
    for record in _drawn(records):
        by_measure.setdefault(record.measure, []).append(record)
    heights = [height(drawn) for drawn in by_measure.values()]
    figure, panels = plt.subplots(
        len(by_measure),
        1,
        figsize=(WIDTH, sum(heights)),
        layout="constrained",
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    for axes, ((test_set, _), drawn) in zip(panels[:, 0], by_measure.items(), strict=True):
        draw(axes, drawn)
        axes.set_title(f"{test_set}, {drawn[0].search.replace('_', ' ')}")
    return figure


def _drawn(records: Sequence[Record]) -> list[Record]:
    """The records to draw: those of the first search method, for a phone has no room for more."""
    return [record for record in merged(records) if record.search == records[0].search]


def merged(records: Sequence[Record]) -> list[Record]:
    """One record for each system and chunk, which is what plots have room for.

    Where a system was decoded chunk by chunk, its simulation with the same chunks is left out.  Several seeds become
    one record with their mean WER and their mean latency; its interval is over seeds and utterances.  It has no width
    where `mean_interval` has none.
    """
    chunkwise = {(r.system, replace(r, mode="simulated").setting) for r in records if r.mode == "chunkwise"}
    kept = []
    for seeds in by_seeds(records):
        first, latencies = seeds[0], [record.latency for record in seeds]
        if (first.system, first.setting) in chunkwise:
            continue
        if len(seeds) > 1:
            latency = {
                name: Spread(*np.mean([astuple(of_seed[name]) for of_seed in latencies], axis=0).tolist())
                for name in set.intersection(*map(set, latencies))
            }
            wer = mean_wer(seeds)
            first = replace(first, wer=wer, interval=mean_interval(seeds) or (wer, wer), latency=latency)
        kept.append(first)
    return kept


def _whiskers(records: Sequence[Record]) -> list[list[float]]:
    """How far the intervals reach below and above."""
    below = [max(0.0, record.wer - record.interval[0]) for record in records]
    return [below, [max(0.0, record.interval[1] - record.wer) for record in records]]


def _legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Above all panels, in as many columns as there is room for; the figure grows by as much."""
    columns = max(1, min(3, LETTERS // (max(map(len, labels)) + 7)))
    figure.set_figheight(figure.get_figheight() + 0.32 * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def plot_relations(relations: Relations, path: Path) -> None:
    """Rows Q, K and V; columns teacher, branch and student; darker is more, on one scale per row."""
    columns = list(dict.fromkeys(whose for whose, _ in relations.maps))
    names = list(dict.fromkeys(name for _, name in relations.maps))
    figure, panels = plt.subplots(
        len(names), len(columns), figsize=(WIDTH, 8.1), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    figure.suptitle(fill(relations.text, 62), fontsize=13)
    for row, name in zip(panels, names, strict=True):
        strongest = np.percentile(np.stack([relations.maps[whose, name].numpy() for whose in columns]), 99.8)
        for axes, whose in zip(row, columns, strict=True):
            relation = relations.maps[whose, name]
            milliseconds = relations.frame_ms * relation.size(0)
            axes.imshow(
                relation.numpy(),
                cmap="Blues",
                norm=PowerNorm(0.5, 0, strongest, clip=True),
                extent=(0, milliseconds, milliseconds, 0),
                interpolation="nearest",
            )
            divergence = relations.divergences.get((whose, name))
            axes.set_title(f"{name}: KL {divergence:.2f}" if whose != TEACHER else name, fontsize=14)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(3, integer=True))
            axes.tick_params(labelsize=12)
    for axes, whose in zip(panels[0], columns, strict=True):
        axes.set_title(f"{whose}\n{axes.get_title()}", fontsize=14)
    figure.supxlabel("attended to, ms", fontsize=14)
    figure.supylabel("attending, ms", fontsize=14)
    save(figure, path)


def plot_similarity(similarity: Similarity, title: str, path: Path) -> None:
    """A heat map of CKA: rows are student layers, columns teacher layers; with numbers where there is room."""
    students, teachers = similarity.student_layers, similarity.teacher_layers
    figure, axes = plt.subplots(figsize=(WIDTH, 2.2 + 0.55 * min(len(students), 12)), layout="constrained")
    image = axes.imshow(similarity.cka, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(teachers)), teachers, rotation=90 if len(teachers) > MANY else 0)
    axes.set_yticks(range(len(students)), students)
    axes.set(title=title, xlabel="teacher layer", ylabel="student layer")
    if max(similarity.cka.shape) <= MANY:
        for (row, column), value in np.ndenumerate(similarity.cka):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    figure.colorbar(image, label="CKA")
    save(figure, path)
