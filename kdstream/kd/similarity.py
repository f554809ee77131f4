"""Similarity of layers: linear centred kernel alignment (Kornblith et al., arXiv 1905.00414, equation 5).

    CKA(X, Y) = ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F),   columns of X (frames, D) and Y (frames, D') centred

It is 1 for features that are equal up to rotation and scale, so layers of different width compare.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdstream.kd.taps import Tap, padding_mask


class LayerSimilarity:
    """Gathers, batch by batch, what the CKA of every layer of one model with every layer of another needs.

    Frames of all layers are brought to the slowest rate among them.
    """

    def __init__(self) -> None:
        self._moments: Tensor | None = None  # (1 + D + D', 1 + D + D') over all layers, with a constant as first
        self._widths: list[int] = []

    def add(self, ours: dict[str, Tap], theirs: dict[str, Tap]) -> None:
        """Adds one batch.  The layers of both models by name, the same ones each time."""
        taps = [*ours.values(), *theirs.values()]
        stride = max(tap.stride for tap in taps)
        slow = [tap.at_stride(stride) for tap in taps]
        frames = min(tap.features.size(1) for tap in slow)
        valid = ~padding_mask(slow[0].lens, frames)  # (N, T)
        columns = [valid.new_ones(int(valid.sum()), 1).double()]
        columns += [tap.features[:, :frames][valid].double() for tap in slow]
        x = torch.cat(columns, dim=1)
        self._widths = [column.size(1) for column in columns[1:]]
        self._moments = x.T @ x + (0 if self._moments is None else self._moments)

    def cka(self, rows: int) -> Tensor:
        """(rows, layers - rows): of the first `rows` layers with the others.  ValueError where no batch was added."""
        moments = self._moments
        if moments is None:
            raise ValueError("no batch was added")
        mean = moments[:1, 1:] / moments[0, 0]
        covariance = moments[1:, 1:] - moments[0, 0] * mean.T @ mean
        blocks = [row.split(self._widths, dim=1) for row in covariance.split(self._widths)]
        norms = [block[i].norm() for i, block in enumerate(blocks)]
        values = [
            [blocks[i][j].square().sum() / (norms[i] * norms[j]) for j in range(rows, len(blocks))] for i in range(rows)
        ]
        return torch.tensor(values, dtype=torch.float64)
