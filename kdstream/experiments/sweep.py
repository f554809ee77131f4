"""Runs a grid of flags over training, decoding or both, and draws the word error rate as a map.

    python local/sweep.py --exp-root egs/librispeech/exp/sweep-scales --seeds 1,2 --jobs 2 \
        --grid kd-feature-scale=0.3,1,3 --grid kd-apc-scale=0,0.5 \
        --train-flags "--causal 1 --num-epochs 8 --teacher-exp-dir exp/teacher" --decode-flags "--avg 3"

trains one student per point of the grid and seed, and decodes it.  Values that hold commas are separated by |:
--grid "kd-layers=2.0,3.1|1.0".  --decode-grid chunk-size=8,16,32 decodes each student in several ways.  With
--one-at-a-time 1 every flag is varied by itself, the others staying at their first value, and a cell is named after the
flag that was varied: kd-apc-scale-0, or `first` where none was.  Experiments that are there already are only decoded:

    python local/sweep.py --exp-root egs/librispeech/exp/sweep-chunks --decode-flags "--epoch 30 --avg 9" \
        --exp-dirs egs/librispeech/exp/baseline,egs/librispeech/exp/distilled --decode-grid chunk-size=8,16,32

Writes EXP_ROOT/sweep.json, comparison.json (word error rates over the seeds, and relative reductions against the first
point with their 95 % intervals, paired bootstrap over utterances), sweep.md (both as tables, and the commands of every
cell) and sweep-<test set>.png: a line over one flag, else heat maps of the first two flags, one for each setting of the
others.  What is finished is not done again.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from kdstream.config.flags import parser_of, str2bool
from kdstream.errors import UserError
from kdstream.evaluation.compare import compare_seeds
from kdstream.evaluation.records import write_json
from kdstream.evaluation.scoring import mean_and_deviation
from kdstream.evaluation.tables import rows_table
from kdstream.experiments.cells import Cell, add_runner_flags, as_typed, report_failures, run_cells, seen_from
from kdstream.reporting.style import COLOURS, WIDTH, phone_style, save

SCRIPTS = {"simulated": "decode.py", "chunkwise": "streaming_decode.py"}
EXP_DIR_AXIS = "exp-dir"
FIRST = "first"  # the name of a point at which no flag is varied
DECODE = "decode "  # what tells a decoding flag's axis from that of a training flag

Point = tuple[str, ...]  # one value of each axis
Wers = dict[Point, list[float]]  # of the seeds


class Axis(NamedTuple):
    """A flag, without its dashes, and the values it takes."""

    name: str
    values: tuple[str, ...]


def parse_axis(text: str) -> Axis:
    """kd-apc-shift=1,2,4 or kd-layers=2.0,3.1|1.0"""
    name, _, values = text.partition("=")
    axis = Axis(name.lstrip("-"), tuple(value.strip() for value in values.split("|" if "|" in values else ",")))
    if not axis.name or "" in axis.values or len(set(axis.values)) < max(2, len(axis.values)):
        raise argparse.ArgumentTypeError(
            f"{text}: wants a flag and two or more different values, as in kd-apc-shift=1,2,4"
        )
    return axis


def points(axes: Sequence[Axis], one_at_a_time: bool) -> Iterator[Point]:
    """All combinations, or those in which at most one axis is away from its first value."""
    for point in product(*(axis.values for axis in axes)):
        moved = sum(value != axis.values[0] for axis, value in zip(axes, point, strict=True))
        if not one_at_a_time or moved <= 1:
            yield point


def first_of(axes: Sequence[Axis]) -> Point:
    return tuple(axis.values[0] for axis in axes)


def flags_of(axes: Sequence[Axis], point: Point) -> list[str]:
    return [word for axis, value in zip(axes, point, strict=True) for word in (f"--{axis.name}", value)]


def name_of(axes: Sequence[Axis], point: Point, one_at_a_time: bool) -> str:
    """A point as the name of a file: kd-feature-scale-0.3_kd-apc-scale-0, or what is away from the first values."""
    shown = [
        f"{a.name}-{value}" for a, value in zip(axes, point, strict=True) if not one_at_a_time or value != a.values[0]
    ]
    return re.sub(r"[^\w.,+-]", "-", "_".join(shown)) or FIRST


class Sweep:
    """The cells of a grid, and which point of it each training and each decoding belongs to."""

    def __init__(self, args: argparse.Namespace) -> None:
        train_axes, self.decode_axes = args.grid, args.decode_grid
        if args.exp_dirs and train_axes:
            raise UserError("--exp-dirs and --grid: experiments that are there already are not trained; leave one out")
        if args.exp_dirs and args.train_flags:
            raise UserError("--exp-dirs and --train-flags: experiments that are there already are not trained")
        existing = tuple(seen_from(args.recipe, Path(exp_dir)) for exp_dir in args.exp_dirs)
        self.train_axes = [Axis(EXP_DIR_AXIS, existing)] if existing else train_axes
        self.axes = self.train_axes + [Axis(DECODE + axis.name, axis.values) for axis in self.decode_axes]
        if not train_axes + self.decode_axes:
            raise UserError("nothing to sweep; give --grid or --decode-grid")
        names = [axis.name for axis in self.axes]
        if len(set(names)) < len(names):
            raise UserError("--grid, --decode-grid: a flag is given twice; put all of its values into one")
        if "seed" in names:
            raise UserError("--grid seed: every point is trained with each seed of --seeds")
        self.args = args
        self.cells: dict[Cell, list[Point]] = {}  # the points of its decodings
        by_training: dict[Point, list[Point]] = {}
        for point in points(self.axes, args.one_at_a_time):
            by_training.setdefault(point[: len(self.train_axes)], []).append(point)
        for trained, decoded in by_training.items():
            decodings = tuple(map(self._decoding, decoded))
            self.cells.update((cell, decoded) for cell in self._cells(trained, decodings))

    def name(self, point: Point) -> str:
        return name_of(self.axes, point, self.args.one_at_a_time)

    def _decoding(self, point: Point) -> tuple[str, ...]:
        args = self.args
        flags = [*args.decode_flags, *flags_of(self.decode_axes, point[len(self.train_axes) :])]
        flags += ["--system", self.name(point)]  # keeps records apart that differ in --avg, say
        if args.exp_dirs:
            flags += ["--results-json", seen_from(args.recipe, args.exp_root / "decoded.json")]
        return SCRIPTS[args.mode], *flags

    def _cells(self, trained: Point, decodings: tuple[tuple[str, ...], ...]) -> list[Cell]:
        args = self.args
        if args.exp_dirs:
            return [Cell(args.recipe, trained[0], None, decodings)]
        cells = []
        for seed in args.seeds:
            name = f"{name_of(self.train_axes, trained, args.one_at_a_time)}_seed-{seed}"
            flags = (*args.train_flags, *flags_of(self.train_axes, trained), "--seed", str(seed))
            cells.append(Cell(args.recipe, seen_from(args.recipe, args.exp_root / name), flags, decodings))
        return cells

    def rows(self) -> list[dict[str, Any]]:
        """A flat record per point, seed and test set that has been scored."""
        rows = []
        for cell, decoded in self.cells.items():
            training = [] if cell.train_flags is None else [as_typed(cell.train_command())]
            for point, command in zip(decoded, cell.decode_commands(), strict=True):
                for record in cell.records(command):
                    row: dict[str, Any] = {axis.name: value for axis, value in zip(self.axes, point, strict=True)}
                    row.update({"seed": record.seed, "test set": record.test_set, "WER %": record.wer})
                    row["interval"] = "[{:.2f}, {:.2f}]".format(*record.interval)
                    rows.append({**row, "command": " && ".join([*training, as_typed(command)])})
        return rows

    def comparison(self) -> list[dict[str, Any]]:
        """A flat record per point, against the first one."""
        records = [record for cell in self.cells for record in cell.all_records()]
        return compare_seeds(records, self.name(first_of(self.axes)), (), column="point")

    def draw(self, rows: Sequence[dict[str, Any]]) -> list[Path]:
        """A PNG for each test set."""
        by_set: dict[str, Wers] = {}
        for row in rows:
            point = tuple(row[axis.name] for axis in self.axes)
            by_set.setdefault(row["test set"], {}).setdefault(point, []).append(row["WER %"])
        plots = [self.args.exp_root / f"sweep-{test_set}.png" for test_set in by_set]
        for path, (test_set, wers) in zip(plots, by_set.items(), strict=True):
            draw_panels(panels(self.axes, wers, self.args.one_at_a_time), f"{test_set} WER %", path)
        return plots


class Panel(NamedTuple):
    """One drawing: a line over one axis or a map over two."""

    title: str
    axes: Sequence[Axis]
    wers: Wers  # by values of these axes


def panels(axes: Sequence[Axis], wers: Wers, one_at_a_time: bool) -> list[Panel]:
    """One per axis, or one per setting of all but the first two axes."""
    if one_at_a_time:
        first = first_of(axes)
        return [
            Panel("", [in_order(axis)], {(v,): wers.get((*first[:n], v, *first[n + 1 :]), []) for v in axis.values})
            for n, axis in enumerate(axes)
        ]
    shown, rest = axes[:2], axes[2:]
    return [
        Panel(
            ", ".join(f"{axis.name} {value}" for axis, value in zip(rest, setting, strict=True)),
            [in_order(axis) for axis in shown],
            {point: wers.get((*point, *setting), []) for point in points(shown, False)},
        )
        for setting in points(rest, False)
    ]


def in_order(axis: Axis) -> Axis:
    """Numbers from the lowest to the highest; other values as they were given."""
    with suppress(ValueError):
        return Axis(axis.name, tuple(sorted(axis.values, key=float)))
    return axis


def draw_panels(drawings: Sequence[Panel], title: str, path: Path) -> None:
    """Panels below each other, of one scale; where seeds are several, their mean and standard deviation."""
    heights = [1.6 + 0.9 * len(panel.axes[0].values) if len(panel.axes) == 2 else 3.8 for panel in drawings]
    means = [float(np.mean(wers)) for panel in drawings for wers in panel.wers.values() if wers]
    with phone_style():
        figure, places = plt.subplots(
            len(drawings),
            1,
            figsize=(WIDTH, sum(heights)),
            layout="constrained",
            squeeze=False,
            sharey=all(len(panel.axes) == 1 for panel in drawings),
            gridspec_kw={"height_ratios": heights},
        )
        for place, panel in zip(places[:, 0], drawings, strict=True):
            place.set_title(", ".join(filter(None, [title, panel.title])))
            if len(panel.axes) == 2:
                draw_heat_map(place, panel, min(means), max(means))
            else:
                draw_line(place, panel)
        save(figure, path)


def draw_line(place: Axes, panel: Panel) -> None:
    (axis,) = panel.axes
    found = [(n, *mean_and_deviation(panel.wers[value,])) for n, value in enumerate(axis.values) if panel.wers[value,]]
    for n, mean, deviation in found:
        place.errorbar(n, mean, yerr=deviation, marker="o", capsize=5, color=COLOURS[0])
        place.annotate(f"{mean:.1f}", (n, mean), xytext=(8, 4), textcoords="offset points")
    place.plot([n for n, _, _ in found], [mean for _, mean, _ in found], color=COLOURS[0], linewidth=2.2)
    place.set(xlabel=axis.name, ylabel="WER %", xlim=(-0.3, len(axis.values) - 0.4))
    place.grid(alpha=0.3)
    name_columns(place, axis)


def draw_heat_map(place: Axes, panel: Panel, lowest: float, highest: float) -> None:
    down, across = panel.axes
    table = np.full((len(down.values), len(across.values)), np.nan)
    for row, column in np.ndindex(table.shape):
        wers = panel.wers[down.values[row], across.values[column]]
        text = "-"
        if wers:
            table[row, column], deviation = mean_and_deviation(wers)
            text = f"{table[row, column]:.1f}" + (f"\n± {deviation:.1f}" if deviation is not None else "")
        dark = table[row, column] > (lowest + highest) / 2
        place.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    place.imshow(table, cmap="viridis_r", vmin=lowest, vmax=highest, aspect="auto")
    place.set(xlabel=across.name, ylabel=down.name)
    place.set_yticks(range(len(down.values)), down.values)
    name_columns(place, across)


def name_columns(place: Axes, axis: Axis) -> None:
    place.set_xticks(range(len(axis.values)), axis.values)
    if sum(map(len, axis.values)) > 30:  # letters that fit beside each other
        plt.setp(place.get_xticklabels(), rotation=30, ha="right")


def page(rows: Sequence[dict[str, Any]], comparison: Sequence[dict[str, Any]], plots: Sequence[Path]) -> str:
    """sweep.md."""
    table = rows_table([{name: cell for name, cell in row.items() if name != "command"} for row in rows])
    commands = "\n".join(dict.fromkeys(row["command"] for row in rows))
    images = "".join(f"![{plot.stem}]({plot.name})\n\n" for plot in plots)
    tables = f"{rows_table(comparison)}\n{table}"
    return f"# Sweep\n\n{images}{tables}\nThe commands of each cell:\n\n```bash\n{commands}\n```\n"


def get_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    add_runner_flags(parser, seeds="1")
    add = parser.add_argument
    for name, what in (("--grid", "A flag of train.py and its values"), ("--decode-grid", "The same for decoding")):
        add(name, type=parse_axis, action="append", default=[], metavar="FLAG=A,B", help=what)
    add("--one-at-a-time", type=str2bool, default=False, help="No combinations, see above (default: 0)")
    add("--exp-dirs", type=lambda text: text.split(","), default=[], help="Decode these, train nothing")
    add("--mode", choices=SCRIPTS, default="simulated", help="How to decode (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    args.exp_root.mkdir(parents=True, exist_ok=True)
    sweep = Sweep(args)
    failures = run_cells(list(sweep.cells), args.jobs)
    rows = sweep.rows()
    if rows:
        write_json(args.exp_root / "sweep.json", rows)
        comparison = sweep.comparison()
        write_json(args.exp_root / "comparison.json", comparison)
        (args.exp_root / "sweep.md").write_text(page(rows, comparison, sweep.draw(rows)), encoding="utf8")
        print(f"sweep: {args.exp_root / 'sweep.md'}")
    report_failures(failures)
