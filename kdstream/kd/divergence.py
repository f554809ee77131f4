"""Divergences between the posteriors of two models, or of one model in two ways, summed over weighted cells.

A cell is whatever has posteriors over the vocabulary: one of a transducer's lattice, or a frame of a CTC head.

Shapes: ... the cells, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdstream.kd.losses import float32
from kdstream.models.in_blocks import at_least_float32

BLOCK_ELEMENTS = 2**17  # of logits in work at a time on a CPU: half a MB, several of which a core's cache holds
IMPOSSIBLE = -30.0  # log-probability of a class that a cell lacks, the same for both: adds exactly 0 to a divergence


def divergence(
    teacher: Tensor, student: Tensor, weights: Tensor, symbols: Tensor | None, blank: int, temperature: float = 1.0
) -> Tensor:
    """sum_c weights_c KL(P_c || Q_c), a scalar, of posteriors P of the teacher and Q of the student.

    Args:
      teacher, student: (..., V) logits; only the student's get a gradient.
      weights: (...).
      symbols: (...), next symbols: of three classes, see `collapse`; None: over the vocabulary.
      temperature: divides both logits.
    """
    with float32(student):
        teacher, student = at_least_float32(teacher.detach()), at_least_float32(student)
        if student.device.type == "cpu" and symbols is None:
            return _Divergence.apply(teacher, student, weights, None, temperature)
        p, q = (log_posteriors(logits, symbols, blank, temperature) for logits in (teacher, student))
        return (weights * F.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)).sum()


def mutual_divergence(
    first: Tensor, second: Tensor, v: Tensor, w: Tensor, symbols: Tensor | None = None, blank: int = 0
) -> Tensor:
    """sum_c (v_c KL(P_c || Q_c) + w_c KL(Q_c || P_c)) / 2, a scalar, of the posteriors P of `first` and Q of `second`.

    In each divergence its first side is held fixed: each learns from the other.

    Args:
      first, second: (..., V) logits.
      v, w: (...).
      symbols: as in `divergence`.
    """
    if first.device.type == "cpu" and symbols is None:
        with float32(first):
            return _Divergence.apply(at_least_float32(first), at_least_float32(second), v, w, 1.0) / 2
    taught = divergence(first, second, v, symbols, blank), divergence(second, first, w, symbols, blank)
    return torch.stack(taught).sum() / 2


class _Divergence(torch.autograd.Function):
    """sum_c (v_c KL(P_c || Q_c) + w_c KL(Q_c || P_c)) of the softmax P of first / temperature, and Q of second / ... .

    The first divergence teaches Q alone, the second P alone; where w is None there is no second one.

    For a CPU: cells go through all steps block by block, in its cache, and those without a weight through none.  As the
    gradients are known at once, v (Q - P) / temperature for the logits of Q and w (P - Q) / temperature for those of P,
    they are computed in the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, v: Tensor, w: Tensor | None, temperature: float) -> Tensor:
        V = second.size(-1)
        sides = [logits.reshape(-1, V) for logits in (first, second)]
        learns = ctx.needs_input_grad[0] and w is not None, ctx.needs_input_grad[1]
        of_p, of_q = (torch.zeros_like(x) if learning else None for x, learning in zip(sides, learns, strict=True))
        total = sides[1].new_zeros(())
        v = v.reshape(-1, 1).to(total.dtype) / temperature
        w = w if w is None else w.reshape(-1, 1).to(total.dtype) / temperature
        cells = (v if w is None else v + w).flatten().nonzero().squeeze(1)
        for block in cells.split(max(1, BLOCK_ELEMENTS // V)):
            log_p, log_q = (x.index_select(0, block).div_(temperature).log_softmax(dim=1) for x in sides)
            p, forth = log_p.exp(), v.index_select(0, block)
            difference, q = log_p.sub_(log_q), log_q.exp_()
            taught = p * forth
            if w is not None:
                back = w.index_select(0, block)
                taught.addcmul_(q, back, value=-1)
                if of_p is not None:
                    of_p.index_copy_(0, block, (p - q).mul_(back))
            total += difference.mul_(taught).sum()
            if of_q is not None:
                of_q.index_copy_(0, block, q.sub_(p).mul_(forth))
        ctx.save_for_backward(*(x if x is None else x.view_as(second) for x in (of_p, of_q)))
        return total * temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        of_p, of_q = (x if x is None else x * scale for x in ctx.saved_tensors)
        return of_p, of_q, None, None, None


def log_posteriors(logits: Tensor, symbols: Tensor | None, blank: int, temperature: float) -> Tensor:
    """Logits (..., V) as log-probabilities: (..., V), or with `symbols` (...) those of three classes (..., 3)."""
    log_probs = (logits / temperature).log_softmax(dim=-1)
    return log_probs if symbols is None else collapse(log_probs, symbols, blank)


def collapse(log_probs: Tensor, symbols: Tensor, blank: int) -> Tensor:
    """log P of the next symbol, of blank and of all the rest: (..., V) to (..., 3).

    Where no symbol is left (its place in `symbols` (...) holds blank), that class is IMPOSSIBLE.
    """
    symbol = log_probs.gather(-1, symbols.unsqueeze(-1)).masked_fill((symbols == blank).unsqueeze(-1), IMPOSSIBLE)
    rest = log_probs.scatter(-1, symbols.unsqueeze(-1), float("-inf"))
    rest = torch.cat([rest[..., :blank], rest[..., blank + 1 :]], dim=-1).logsumexp(dim=-1, keepdim=True)
    return torch.cat([symbol, log_probs[..., blank : blank + 1], rest], dim=-1)
