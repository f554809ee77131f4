"""Token distillation: the teacher's posteriors on the student's pruned lattice.

Both joiners give logits at the cells (frame t, s symbols emitted) that the student's pruned loss
keeps.  Three forms, from all of the posterior to one path:

    full       KL(P_teacher || P_student) over the vocabulary, mean over a frame's cells
    collapsed  the same with three classes: the next symbol, blank, and all the rest (arXiv 2011.06110)
    one-best   over the vocabulary, at the cells of the teacher's likeliest path alone

A loss is summed over output frames (40 ms), so that it stands beside the transducer loss.  A streaming
student emits later than its teacher, who has heard what comes: with a `shift` its frame t is compared
with the teacher's frame t - shift; token_shift.py has the teacher's logits for it.

Shapes: N batch, T output frames, S symbols, R symbols kept at a frame, V vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdstream.kd.divergence import divergence
from kdstream.kd.losses import float32
from kdstream.kd.taps import Lattice, padding_mask
from kdstream.models.in_blocks import at_least_float32
from kdstream.models.rnnt_lattice import best_path
from kdstream.models.rnnt_loss import (
    closed_after_last_frame,
    lattice_boundary,
    next_symbols,
    unpruned_log_probs,
)

Shift = int | Tensor  # output frames, of all utterances or (N,) of each


def token_loss(
    teacher: Tensor, student: Tensor, lattice: Lattice, blank: int, form: str, temperature: float, shift: Shift
) -> Tensor:
    """The divergence of the student's posteriors from the teacher's, a scalar, summed over the batch's output frames.

    Args:
      teacher, student: (N, T, R, V) logits at lattice.ranges; the teacher's already delayed by `shift`.
      form: one of kdstream.config.distillation.TOKEN_FORMS.
      temperature: divides both logits; the loss is multiplied by its square, so that gradients keep their size.
      shift: frames at the beginning for which there is no teacher.
    """
    with float32(student):
        if form == "one-best":
            weights = path_weights(at_least_float32(teacher), lattice, blank, shift)
        else:
            weights = cell_weights(lattice, shift)
    symbols = next_symbols(lattice.tokens, lattice.ranges, blank) if form == "collapsed" else None
    return temperature**2 * divergence(teacher, student, weights, symbols, blank, temperature)


def before_shift(lattice: Lattice, shift: Shift) -> Tensor:
    """(1, T) or (N, T) bool: the first frames, for which there is no teacher."""
    frames = torch.arange(lattice.ranges.size(1), device=lattice.ranges.device).unsqueeze(0)
    return frames < (shift if isinstance(shift, int) else shift.unsqueeze(1))


def cell_weights(lattice: Lattice, shift: Shift) -> Tensor:
    """(N, T, R) float32: equal over a frame's valid cells and 1 in sum; 0 before `shift` and in padding."""
    invalid = lattice.ranges > lattice.token_lens.view(-1, 1, 1)  # (N, T, R)
    padding = padding_mask(lattice.encoder_lens, lattice.ranges.size(1))
    invalid = invalid | (padding | before_shift(lattice, shift)).unsqueeze(2)
    weights = (~invalid).float()
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=1.0)


def path_weights(teacher: Tensor, lattice: Lattice, blank: int, shift: Shift) -> Tensor:
    """(N, T, R) float32: equal over the cells of the teacher's likeliest path, in sum the utterance's frames.

    The cells before `shift` are left out without making up for them, as in `cell_weights`.
    """
    px, py = unpruned_log_probs(teacher, lattice.tokens, lattice.ranges, blank)
    px = closed_after_last_frame(px, lattice.encoder_lens.unsqueeze(1))
    path = best_path(px, py, lattice_boundary(lattice.encoder_lens, lattice.token_lens))  # (N, S + 1, T + 1)
    on_path = path[:, :, :-1].transpose(1, 2).gather(2, lattice.ranges)  # (N, T, R)
    on_path = on_path & ~before_shift(lattice, shift).unsqueeze(2)
    lens = lattice.encoder_lens.float()
    return on_path * (lens / (lens + lattice.token_lens)).view(-1, 1, 1)
