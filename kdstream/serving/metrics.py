"""Counters in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path

STATM = Path("/proc/self/statm")  # of Linux: the process's memory in pages, all of it and what is resident
BOUNDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)  # seconds


class Histogram:
    """How many seconds something took, each time."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


def family(name: str, kind: str, text: str, label: str, values: Mapping[str, float | Histogram]) -> str:
    """One metric.

    Args:
      kind: gauge, counter or histogram.
      text: what it counts.
      label: of which each of `values` is one.
    """
    lines = [f"# HELP kdstream_{name} {text}", f"# TYPE kdstream_{name} {kind}"]
    for key, value in values.items():
        shown = key.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        labels = f'{label}="{shown}"'
        if not isinstance(value, Histogram):
            lines.append(f"kdstream_{name}{{{labels}}} {value:.15g}")  # all digits that a float surely has
            continue
        total = 0
        for bound, count in zip((*BOUNDS, "+Inf"), value.counts, strict=True):
            total += count
            lines.append(f'kdstream_{name}_bucket{{{labels},le="{bound}"}} {total}')
        lines += [f"kdstream_{name}_sum{{{labels}}} {value.sum:.6f}", f"kdstream_{name}_count{{{labels}}} {total}"]
    return "\n".join(lines) + "\n"


def process() -> str:
    """What this process uses, by the names of Prometheus' own client libraries; memory on Linux alone."""
    metrics = [("cpu_seconds_total", "counter", "CPU time of the process.", f"{time.process_time():.2f}")]
    if STATM.is_file():
        resident = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        metrics.append(("resident_memory_bytes", "gauge", "Memory of the process.", str(resident)))
    return "".join(
        f"# HELP process_{name} {text}\n# TYPE process_{name} {kind}\nprocess_{name} {value}\n"
        for name, kind, text, value in metrics
    )
