"""Sums of losses over frames, shown the way icefall shows them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

FRAMES, SECONDS = "frames", "seconds"
LABELLED_FRAMES = "labelled_frames"  # logged where other utterances have no tokens
OF_LABELLED = ("simple_loss", "pruned_loss", "ctc_loss", "full_context_loss")  # shown per labelled frame


def read_sums(batches: Sequence[Mapping[str, Tensor]], world_size: int = 1) -> list[MetricsTracker]:
    """Scalars by name of each batch, wherever they are, as numbers; the host waits once.

    world_size: with several processes, which have as many batches and the same names, their sum: one all-reduce.
    """
    if not batches:
        return []
    rows = torch.stack([torch.stack([value.double() for value in batch.values()]) for batch in batches])
    if world_size > 1:
        dist.all_reduce(rows)
    return [MetricsTracker(zip(batch, row, strict=True)) for batch, row in zip(batches, rows.tolist(), strict=True)]


class MetricsTracker(dict[str, float]):
    """Sums by name; every name but "frames" is shown divided by the sum of frames (output frames, 40 ms).

    Names must not contain "utt_": icefall's readers of log lines give that a meaning of its own.
    """

    def __add__(self, other: MetricsTracker) -> MetricsTracker:
        """Sums name by name; values of `other` that are not finite are left out."""
        total = MetricsTracker(self)
        for name, value in other.items():
            total[name] = total.get(name, 0.0) + (value if math.isfinite(value) else 0.0)
        return total

    def decayed(self, factor: float) -> MetricsTracker:
        return MetricsTracker({name: value * factor for name, value in self.items()})

    def means(self) -> Iterator[tuple[str, float]]:
        """(name, value per frame) pairs; without those of labelled frames where there are none."""
        for name, value in self.items():
            if name != FRAMES:
                labelled = name in OF_LABELLED and LABELLED_FRAMES in self
                frames = self.get(LABELLED_FRAMES if labelled else FRAMES, 0.0)
                if frames or not labelled:
                    yield name, value / frames if frames else float("nan")

    def mean(self, name: str = "loss") -> float:
        """`name` per frame; infinity when nothing has been counted yet."""
        frames = self.get(FRAMES, 0.0)
        return self[name] / frames if frames else math.inf

    def reduced(self, world_size: int, device: torch.device) -> MetricsTracker:
        """The sum over all processes, which must hold the same names."""
        if world_size == 1:
            return self
        names = sorted(self)
        values = torch.tensor([self[name] for name in names], dtype=torch.float64, device=device)
        dist.all_reduce(values)
        sums = dict(zip(names, values.tolist(), strict=True))
        return MetricsTracker({name: sums[name] for name in self})

    def write_summary(self, writer: Any, prefix: str, batch_idx: int) -> None:
        """Adds the values per frame to a TensorBoard writer, if any: as train/tot_loss for the prefix "train/tot_"."""
        if writer is not None:
            for name, value in self.means():
                writer.add_scalar(prefix + name, value, batch_idx)

    def __str__(self) -> str:
        means = "".join(f"{name}={value:.4g}, " for name, value in self.means())
        return f"{means}over {self.get(FRAMES, 0.0):.2f} frames. "
