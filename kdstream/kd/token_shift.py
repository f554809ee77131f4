"""Token shift: by how many output frames (40 ms) the student is later than its teacher, --kd-token-shift.

A number holds for all utterances.  With "auto:M" each utterance has the shift among 0 .. M at which the posteriors of
the two agree best; no gradient passes through the choice.  The cells of the teacher that some shift brings to a cell of
the student overlap: over all shifts and frames they are T * R + M * (S + 1 - R) at most.  So the teacher's joiner runs
on each of them once, and a shift is a choice of them.  All sizes follow from shapes: a GPU is never waited for.

Shapes: N batch, T output frames, S symbols, R symbols kept at a frame, K cells of the teacher, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdstream.kd.divergence import log_posteriors
from kdstream.kd.losses import float32
from kdstream.kd.taps import Lattice
from kdstream.kd.token_losses import Shift, cell_weights
from kdstream.models.in_blocks import at_least_float32
from kdstream.models.rnnt_loss import next_symbols

AUTO = "auto:"

LogitsAt = Callable[[Tensor, Tensor], Tensor]  # encoder output (N, C, D), symbols (N, C, R) to logits (N, C, R, V)


def largest_shift(shift: int | str) -> int | None:
    """M of --kd-token-shift auto:M; None where the shift is a number."""
    return int(shift.removeprefix(AUTO)) if isinstance(shift, str) else None


def shifted_logits(
    logits_at: LogitsAt,
    encoder_out: Tensor,
    lattice: Lattice,
    shift: int | str,
    blank: int,
    collapsed: bool,
    temperature: float = 1.0,
) -> tuple[Tensor, Shift]:
    """The teacher's logits at the student's cells, (N, T, R, V), and the shift, a number or (N,) of each utterance.

    Args:
      logits_at: the teacher's joiner.
      encoder_out: (N, at least T, D), the teacher's.
      lattice: the student's.
      shift: --kd-token-shift.
      collapsed, temperature: of the posteriors that are to agree; see `divergence.log_posteriors`.
    """
    encoder_out, largest = encoder_out[:, : lattice.ranges.size(1)], largest_shift(shift)
    if largest is None:
        assert isinstance(shift, int)
        return logits_at(delayed(encoder_out, shift), lattice.ranges), shift
    cells = HeardCells(lattice, largest)
    logits = logits_at(rows(encoder_out, cells.frames), cells.symbols.unsqueeze(2)).squeeze(2)  # (N, K, V)
    best = best_shift(logits, cells, lattice, blank, collapsed, temperature)
    return rows(logits, cells.index(best)), best


def delayed(encoder_out: Tensor, shift: int) -> Tensor:
    """(N, T, D): frame t holds what was at t - shift; the first frames repeat frame 0."""
    frames = torch.arange(encoder_out.size(1), device=encoder_out.device)
    return encoder_out.index_select(1, (frames - shift).clamp(min=0))


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Row index[n, ...] of x[n]: (N, K, D) and (N, ...) to (N, ..., D)."""
    first = x.size(1) * torch.arange(x.size(0), device=x.device)
    return x.flatten(0, 1).index_select(0, (index.flatten(1) + first.unsqueeze(1)).flatten()).view(*index.shape, -1)


class HeardCells:
    """The cells (frame, symbols emitted) of the teacher that a shift of 0 .. largest brings to cells of the student.

    Frame by frame they are consecutive: at frame t from the first symbol that the student keeps at t to the last one
    that it keeps at t + largest.

    frames, symbols: (N, K); beyond an utterance's last cell they repeat what is valid.
    """

    def __init__(self, lattice: Lattice, largest: int) -> None:
        N, T, R = lattice.ranges.shape
        S, device = lattice.tokens.size(1), lattice.ranges.device
        self.starts = lattice.ranges[:, :, 0]  # (N, T), never falling
        frames = torch.arange(T, device=device)
        self.widths = self.starts[:, (frames + largest).clamp(max=T - 1)] - self.starts + R
        ends = self.widths.cumsum(1)
        self.offsets = ends - self.widths - self.starts  # cell (t, s) is number offsets[t] + s
        number = torch.arange(T * R + largest * (S + 1 - R), device=device).expand(N, -1).contiguous()
        self.frames = torch.searchsorted(ends, number, right=True).clamp(max=T - 1)  # (N, K)
        self.symbols = (number - self.offsets.gather(1, self.frames)).clamp(max=S)
        self.ranges, self.largest = lattice.ranges, largest

    def index(self, shift: Shift) -> Tensor:
        """(N, T, R): which cell of the teacher is compared with each of the student's."""
        frames = torch.arange(self.ranges.size(1), device=self.ranges.device).unsqueeze(0)
        heard = (frames - (shift if isinstance(shift, int) else shift.unsqueeze(1))).clamp(min=0)  # (1 or N, T)
        return self.offsets.gather(1, heard.expand(len(self.offsets), -1)).unsqueeze(2) + self.ranges


@torch.no_grad()
def best_shift(
    teacher: Tensor, cells: HeardCells, lattice: Lattice, blank: int, collapsed: bool, temperature: float
) -> Tensor:
    """(N,): the shift at which the mean over an utterance's frames of KL(P_teacher || P_student) is smallest.

    A frame's divergence is the mean over its cells.  The first frames, for which a shift leaves no teacher, do not
    count.

    Args:
      teacher: (N, K, V) logits at `cells`.
    """
    with float32(teacher):
        symbols = [
            next_symbols(lattice.tokens, s, blank) if collapsed else None for s in (cells.symbols, lattice.ranges)
        ]
        log_p, log_q = (
            log_posteriors(at_least_float32(logits), following, blank, temperature)
            for logits, following in zip((teacher, lattice.logits), symbols, strict=True)
        )
        p = log_p.exp()
        entropy = -(p * log_p).sum(dim=2)  # (N, K)
        means = []
        for shift in range(cells.largest + 1):
            index, weights = cells.index(shift), cell_weights(lattice, shift)
            cross = -(rows(p, index) * log_q).sum(dim=3)  # (N, T, R)
            divergence = cross - entropy.gather(1, index.flatten(1)).view_as(cross)
            frames = weights.sum(dim=(1, 2))
            mean = (weights * divergence).sum(dim=(1, 2)) / frames
            means.append(mean.masked_fill(frames == 0, float("inf")))
        return torch.stack(means).argmin(dim=0)


def mean_shift(name: str, shift: Shift, output_frames: Tensor) -> dict[str, Tensor]:
    """The shifts that were chosen for the utterances, summed over their output frames (N,), to be logged as `name`.

    Divided by the frames, as all that is logged, it is the mean shift.  Nothing where the shift is a number.
    """
    return {} if isinstance(shift, int) else {name: (shift * output_frames).sum()}
