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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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

BLOCK_ELEMENTS = 2**17  # of logits in work at a time on a CPU: half a MB, several of which a core's cache holds
Shift = int | Tensor  # output frames, of all utterances or (N,) of each
IMPOSSIBLE = -30.0  # log-probability of a class that a cell lacks, the same for both: adds exactly 0 to a divergence


def token_loss(
    teacher: Tensor, student: Tensor, lattice: Lattice, blank: int, form: str, temperature: float, shift: Shift
) -> Tensor:
    """The divergence of the student's posteriors from the teacher's, a scalar, summed over the batch's output frames.

    Args:
      teacher, student: (N, T, R, V) logits at lattice.ranges; the teacher's already delayed by `shift`.
      form: one of kdstream.config.TOKEN_FORMS.
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


def divergence(
    teacher: Tensor, student: Tensor, weights: Tensor, symbols: Tensor | None, blank: int, temperature: float = 1.0
) -> Tensor:
    """sum_c weights_c KL(P_c || Q_c), a scalar, of posteriors P of the teacher and Q of the student.

    Args:
      teacher, student: (N, T, R, V) logits; only the student's get a gradient.
      weights: (N, T, R).
      symbols: (N, T, R), next symbols: of three classes, see `collapse`; None: over the vocabulary.
      temperature: divides both logits.
    """
    with float32(student):
        teacher, student = at_least_float32(teacher.detach()), at_least_float32(student)
        if student.device.type == "cpu" and symbols is None:
            return _WeightedDivergence.apply(teacher, student, weights, temperature)
        p, q = (log_posteriors(logits, symbols, blank, temperature) for logits in (teacher, student))
        return (weights * F.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)).sum()


class _WeightedDivergence(torch.autograd.Function):
    """sum_c weights_c KL(P_c || Q_c), where P, Q = softmax(teacher / temperature), softmax(student / temperature).

    For a CPU: cells go through all steps block by block, in its cache, and those without a weight through none.  As the
    gradient is known at once, (Q - P) weights / temperature, it is computed in the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, weights: Tensor, temperature: float) -> Tensor:
        V = student.size(-1)
        teacher, rows = teacher.reshape(-1, V), student.reshape(-1, V)
        gradient = torch.zeros_like(rows) if ctx.needs_input_grad[1] else None
        total = rows.new_zeros(())
        cells = weights.flatten().nonzero().squeeze(1)
        for block in cells.split(max(1, BLOCK_ELEMENTS // V)):
            weight = weights.flatten().index_select(0, block).unsqueeze(1).to(rows.dtype)
            log_p, log_q = ((x.index_select(0, block) / temperature).log_softmax(dim=1) for x in (teacher, rows))
            p = log_p.exp()
            total += (log_p.sub_(log_q).mul_(p).sum(dim=1, keepdim=True) * weight).sum()
            if gradient is not None:
                gradient.index_copy_(0, block, log_q.exp_().sub_(p).mul_(weight / temperature))
        ctx.save_for_backward(None if gradient is None else gradient.view_as(student))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[None, Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * scale, None, None


def log_posteriors(logits: Tensor, symbols: Tensor | None, blank: int, temperature: float) -> Tensor:
    """Logits (..., V) as log-probabilities: (..., V), or with `symbols` (...) those of three classes (..., 3)."""
    log_probs = (logits / temperature).log_softmax(dim=-1)
    return log_probs if symbols is None else collapse(log_probs, symbols, blank)


def unheard(lattice: Lattice, shift: Shift) -> Tensor:
    """(1, T) or (N, T) bool: the first frames, for which there is no teacher."""
    frames = torch.arange(lattice.ranges.size(1), device=lattice.ranges.device).unsqueeze(0)
    return frames < (shift if isinstance(shift, int) else shift.unsqueeze(1))


def cell_weights(lattice: Lattice, shift: Shift) -> Tensor:
    """(N, T, R) float32: equal over a frame's valid cells and 1 in sum; 0 before `shift` and in padding."""
    invalid = lattice.ranges > lattice.token_lens.view(-1, 1, 1)  # (N, T, R)
    padding = padding_mask(lattice.encoder_lens, lattice.ranges.size(1))
    invalid = invalid | (padding | unheard(lattice, shift)).unsqueeze(2)
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
    on_path = on_path & ~unheard(lattice, shift).unsqueeze(2)
    lens = lattice.encoder_lens.float()
    return on_path * (lens / (lens + lattice.token_lens)).view(-1, 1, 1)


def collapse(log_probs: Tensor, symbols: Tensor, blank: int) -> Tensor:
    """log P of the next symbol, of blank and of all the rest: (N, T, R, V) to (N, T, R, 3).

    Where no symbol is left (its place in `symbols` (N, T, R) holds blank), that class is IMPOSSIBLE.
    """
    symbol = log_probs.gather(-1, symbols.unsqueeze(-1)).masked_fill((symbols == blank).unsqueeze(-1), IMPOSSIBLE)
    rest = log_probs.scatter(-1, symbols.unsqueeze(-1), float("-inf"))
    rest = torch.cat([rest[..., :blank], rest[..., blank + 1 :]], dim=-1).logsumexp(dim=-1, keepdim=True)
    return torch.cat([symbol, log_probs[..., blank : blank + 1], rest], dim=-1)
