"""The plot of streaming speed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

from kdstream.reporting.style import COLOURS, WIDTH, phone_style, save


def plot_speed(rows: Sequence[dict[str, Any]], chunk_ms: int, path: Path) -> None:
    """Latency of a step, with p99 above p50, and the cost of a stream, over the number of streams."""
    with phone_style():
        figure, (above, below) = plt.subplots(2, 1, figsize=(WIDTH, 8.6), layout="constrained", sharex=True)
        names = list(dict.fromkeys(row["runtime"] for row in rows))
        for (name, threads), group in groupby(rows, key=lambda row: (row["runtime"], row["threads"])):
            group = list(group)
            streams, p50, p99, cost = (
                [row[key] for row in group] for key in ("streams", "p50 ms", "p99 ms", "real time %")
            )
            style = dict(color=COLOURS[names.index(name)], linestyle="-" if threads == 1 else "--", marker="o")
            above.plot(streams, p50, label=f"{name}, {threads} thread{'s' * (threads > 1)}", **style)
            above.fill_between(streams, p50, p99, color=style["color"], alpha=0.15, linewidth=0)
            below.plot(streams, cost, **style)
        above.axhline(chunk_ms, color="#888888", linewidth=1)
        above.text(min(row["streams"] for row in rows), chunk_ms, "real time", va="bottom", fontsize=12)
        above.set(ylabel="ms per chunk, p50 to p99", yscale="log", xscale="log")
        below.set(ylabel="% of real time per stream", xlabel="streams", yscale="log")
        counts = sorted({row["streams"] for row in rows})
        below.set_xticks(counts, [str(count) for count in counts])
        for axes in (above, below):
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=12, columnspacing=1)
        save(figure, path)
