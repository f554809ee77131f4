#!/usr/bin/env python3
"""Compares trained systems: report.md with a table of word error rates, and plots.

    python local/report.py --exp-root egs/librispeech/exp --systems teacher,baseline,distilled --baseline baseline

reads the results.json and the TensorBoard files of EXP_ROOT/teacher and so on, and writes EXP_ROOT/report/ with
report.md, loss.png, wer.png and latency.png.  With --publish egs/librispeech/results/NAME it also writes NAME.json
(the records) and NAME-reduction.json, which local/render_results.py turns into tables of RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdstream import cli
from kdstream.config import UserError
from kdstream.decoding.results import (
    MODES,
    Record,
    commands_block,
    compare,
    load_records,
    rows_table,
    wer_table,
    write_json,
)

RESULTS_JSON = "results.json"
CURVES = {
    "training": ("train/tot_pruned_loss", "train/tot_loss"),
    "validation": ("train/valid_pruned_loss", "train/valid_loss"),
}
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#c77800", "#4a4a4a")
MODE_SHADES = {"full": 0.35, "simulated": 0.65, "chunkwise": 1.0}
PHONE = {"font.size": 15, "axes.titlesize": 16, "figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}
WIDTH = 7.2  # inches; 720 pixels, a phone's width

Runs = Dict[Path, List[Record]]  # by results JSON
Curve = List[Tuple[int, float]]  # (batch, loss)


def read_runs(exp_root: Path, systems: Sequence[str]) -> Runs:
    """The records of each system's experiment.  Raises UserError if a system has none."""
    runs = {}
    for system in systems:
        path = exp_root / system / RESULTS_JSON
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; run decode.py --exp-dir {path.parent}, or leave {system} out of --systems"
            )
        runs[path] = load_records(path)
    return runs


def read_curves(exp_dir: Path) -> Dict[str, Curve]:
    """By kind, the first of its tags in the TensorBoard files; a batch that a resumed run repeats counts once."""
    folder = exp_dir / "tensorboard"
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    present = set(events.Tags()["scalars"])
    found = {kind: next((tag for tag in tags if tag in present), None) for kind, tags in CURVES.items()}
    return {kind: sorted({e.step: e.value for e in events.Scalars(tag)}.items()) for kind, tag in found.items() if tag}


def plot_losses(curves: Dict[str, Dict[str, Curve]], colours: Dict[str, str], path: Path) -> None:
    """One panel per kind of curve, one line per system."""
    kinds = [kind for kind in CURVES if any(kind in of_system for of_system in curves.values())]
    if not kinds:
        return
    figure, panels = plt.subplots(len(kinds), 1, figsize=(WIDTH, 3.6 * len(kinds)), squeeze=False)
    for axes, kind in zip(panels[:, 0], kinds):
        for system, of_system in curves.items():
            if kind in of_system:
                batches, losses = zip(*of_system[kind])
                marker = "o" if len(batches) < 30 else None
                axes.plot(batches, losses, color=colours[system], label=system, linewidth=2.2, marker=marker)
        axes.set(title=f"{kind} transducer loss per 40 ms frame", xlabel="batch", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def plot_wers(records: Sequence[Record], colours: Dict[str, str], path: Path) -> None:
    """Horizontal bars with intervals, one panel per test set."""

    def draw(axes: Axes, of_set: Sequence[Record]) -> None:
        for place, record in enumerate(of_set):
            low, high = record.interval
            error = [[max(0.0, record.wer - low)], [max(0.0, high - record.wer)]]
            colour, shade = colours[record.system], MODE_SHADES[record.mode]
            axes.barh(
                place, record.wer, color=colour, alpha=shade, xerr=error, error_kw={"capsize": 4, "linewidth": 1.6}
            )
            axes.text(high, place, f"  {record.wer:.1f}", va="center")
        axes.set_yticks(range(len(of_set)), [_bar_label(record) for record in of_set])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max(record.interval[1] for record in of_set) or 1.0)
        axes.set_xlabel("WER %, 95 % interval")

    _panel_per_test_set(records, draw, lambda of_set: 1.3 + 0.62 * len(of_set), path)


def _bar_label(record: Record) -> str:
    chunk = "full context" if record.chunk_ms is None else f"{record.mode} {record.chunk_ms} ms"
    return f"{record.system}\n{chunk}"


def plot_latencies(records: Sequence[Record], colours: Dict[str, str], path: Path) -> None:
    """WER over algorithmic latency, one panel per test set; full context as a line across."""

    def draw(axes: Axes, of_set: Sequence[Record]) -> None:
        for system in dict.fromkeys(record.system for record in of_set):
            mine = [record for record in of_set if record.system == system]
            # one point per chunk: decoding chunk by chunk where it was run, else its simulation
            by_chunk = {r.chunk_ms: r for r in sorted(mine, key=lambda r: r.mode == "chunkwise") if r.mode != "full"}
            streaming = sorted(by_chunk.values(), key=lambda record: record.latency_ms)
            if streaming:
                wers = [record.wer for record in streaming]
                error = [
                    [r.wer - min(r.wer, r.interval[0]) for r in streaming],
                    [r.interval[1] - r.wer for r in streaming],
                ]
                latencies = [record.latency_ms for record in streaming]
                axes.errorbar(
                    latencies,
                    wers,
                    yerr=error,
                    marker="o",
                    capsize=4,
                    color=colours[system],
                    label=system,
                    linewidth=2.2,
                )
            for record in mine:
                if record.mode == "full":
                    axes.axhline(record.wer, color=colours[system], linestyle="--", label=f"{system}, full context")
        axes.set(xlabel="chunk + look-ahead, ms", ylabel="WER %")
        axes.set_xlim(0, 1.15 * max(record.latency_ms or 1 for record in of_set))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()

    _panel_per_test_set(records, draw, lambda _: 4.2, path)


def _panel_per_test_set(
    records: Sequence[Record],
    draw: Callable[[Axes, Sequence[Record]], None],
    height: Callable[[Sequence[Record]], float],
    path: Path,
) -> None:
    """Panels below each other, of the first search method that there is: a phone has no room for more."""
    search = records[0].search
    by_set: Dict[str, List[Record]] = {}
    for record in records:
        if record.search == search:
            by_set.setdefault(record.test_set, []).append(record)
    heights = [height(of_set) for of_set in by_set.values()]
    figure, panels = plt.subplots(
        len(by_set), 1, figsize=(WIDTH, sum(heights)), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes, (test_set, of_set) in zip(panels[:, 0], by_set.items()):
        draw(axes, of_set)
        axes.set_title(f"{test_set}, {search.replace('_', ' ')}")
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def report_text(records: Sequence[Record], reductions: Sequence[dict], baseline: str, plots: Sequence[Path]) -> str:
    """report.md."""
    parts = [
        "# Report\n",
        "WER in per cent, in brackets its 95 % interval (bootstrap over utterances).\n",
        wer_table(records),
    ]
    if reductions:
        parts += [
            f"## Relative reduction of the WER against {baseline}\n",
            "The interval (95 %) is paired: both systems on the same resampled utterances.\n",
            rows_table(reductions),
        ]
    parts += [f"![{plot.stem}]({plot.name})\n" for plot in plots if plot.exists()]
    return "\n".join([*parts, "## Commands\n", commands_block(records)])


def publish(records: Sequence[Record], reductions: Sequence[dict], name: Path) -> None:
    """NAME.json and NAME-reduction.json; recogs files stay where they are."""
    name.parent.mkdir(parents=True, exist_ok=True)
    write_json(name.with_name(f"{name.name}.json"), [asdict(replace(record, recogs="")) for record in records])
    write_json(name.with_name(f"{name.name}-reduction.json"), reductions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp-root", type=Path, required=True, help="Directory of the experiment directories.")
    parser.add_argument("--systems", default="teacher,baseline,distilled", help="Their names (default: %(default)s)")
    parser.add_argument("--baseline", default="baseline", help="What to compare with (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="Directory to write to (default: EXP_ROOT/report)")
    parser.add_argument("--publish", type=Path, help="Where to write the JSON files, without .json (default: nowhere)")
    args = parser.parse_args()
    systems = [system for system in args.systems.split(",") if system]
    output = args.output or args.exp_root / "report"

    runs = read_runs(args.exp_root, systems)
    records = [record for of_system in runs.values() for record in of_system]
    if not records:
        raise UserError(f"{args.exp_root}: no results yet; run decode.py and streaming_decode.py first")
    names = list(dict.fromkeys([record.system for record in records] + systems))
    records.sort(key=lambda r: (names.index(r.system), MODES.index(r.mode), r.chunk_ms or 0))
    reductions = [reduction.row() for reduction in compare(runs, args.baseline)]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    curves = {system: read_curves(args.exp_root / system) for system in systems}

    output.mkdir(parents=True, exist_ok=True)
    plots = [output / name for name in ("loss.png", "wer.png", "latency.png")]
    with plt.rc_context(PHONE):
        plot_losses(curves, colours, plots[0])
        plot_wers(records, colours, plots[1])
        plot_latencies(records, colours, plots[2])
    (output / "report.md").write_text(report_text(records, reductions, args.baseline, plots), encoding="utf8")
    if args.publish:
        publish(records, reductions, args.publish)
    print(f"report: {output / 'report.md'}")


if __name__ == "__main__":
    cli.run(main)
