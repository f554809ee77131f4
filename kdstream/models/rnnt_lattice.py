"""The transducer lattice in pure torch: path sums, occupation probabilities, best paths, transition log-probabilities.

`rnnt_loss.py` beside this file says what the transitions are; this file sums over them.  A lattice has nodes
(s, t): s symbols emitted, t frames consumed.  `px` weighs the edge that emits a symbol, `py` the edge that emits
blank, with k2's shapes and names (k2.mutual_information_recursion), and logarithms throughout.

Shapes: N batch, T frames, S symbols, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# An edge that is not there.  -inf itself would turn the differences of running sums below into nan.  A million per
# missing edge is far below any real path, and 2000 of them in one float64 running sum still leave 1e-6 of accuracy.
_NO_EDGE = -1.0e6


def lattice_scores(
    px: Tensor, py: Tensor, boundary: Tensor | None = None, return_grad: bool = False
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Log-sum over all paths of every lattice in the batch; k2.mutual_information_recursion's definition.

    Args:
      px: (N, S, T+1) log-weights of symbol edges that stay on their frame, or (N, S, T) of symbol edges that also
        consume it ("modified").  -inf where there is no edge.
      py: (N, S+1, T) log-weights of blank edges.
      boundary: (N, 4) int64 [s_begin, t_begin, s_end, t_end]; None means [0, 0, S, T].
      return_grad: also return the occupation probabilities, d scores / d (px, py).

    Returns:
      scores (N,), -inf where no path exists, and (px_grad, py_grad) or None.
    """
    if boundary is None:
        boundary = px.new_tensor([0, 0, px.shape[1], py.shape[2]], dtype=torch.int64).expand(px.shape[0], 4)
    scores, px_grad, py_grad = _PathSum.apply(px, py, boundary)
    return scores, (px_grad, py_grad) if return_grad else None


class _PathSum(torch.autograd.Function):
    """Forward-backward over the lattice.  Both directions run in forward, because pruning wants the occupation
    probabilities before any gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        N, S, px_frames = px.shape
        T = py.shape[2]
        step = 0 if px_frames == T + 1 else 1  # frames that a symbol edge consumes

        # The backward scores are the forward scores of the lattice turned by 180 degrees: one scan does both.
        ends_left = torch.stack((S - boundary[:, 2], T - boundary[:, 3]), dim=1)  # (N, 2)
        px64, py64 = px.double(), py.double().clamp(min=_NO_EDGE)
        prefix = _prefix_scores(
            torch.cat((px64, px64.flip(1, 2))),  # (2N, S, T+1 or T)
            torch.cat((py64, py64.flip(1, 2))),  # (2N, S+1, T)
            torch.cat((boundary[:, :2], ends_left)),  # (2N, 2)
            step,
        )
        alpha, beta = prefix[:N], prefix[N:].flip(1, 2)  # (N, S+1, T+1)

        ends = boundary[:, 2] * (T + 1) + boundary[:, 3]  # (N,)
        scores = alpha.flatten(1).gather(1, ends.unsqueeze(1)).squeeze(1)
        reachable = scores > _NO_EDGE / 2
        total = scores.where(reachable, torch.zeros_like(scores)).view(N, 1, 1)
        px_grad = (alpha[:, :-1, : T + 1 - step] + px64).add_(beta[:, 1:, step:]).sub_(total).exp_()
        py_grad = (alpha[:, :, :-1] + py64).add_(beta[:, :, 1:]).sub_(total).exp_()
        if px.device.type != "cpu" or not bool(reachable.all()):  # elsewhere the host would wait for the answer
            scores = scores.masked_fill(scores <= _NO_EDGE / 2, float("-inf"))
            unreachable = ~reachable.view(N, 1, 1)
            px_grad.masked_fill_(unreachable, 0.0)
            py_grad.masked_fill_(unreachable, 0.0)

        px_grad, py_grad = px_grad.to(px.dtype), py_grad.to(py.dtype)
        ctx.save_for_backward(px_grad, py_grad)
        ctx.mark_non_differentiable(px_grad, py_grad)
        return scores.to(px.dtype), px_grad, py_grad

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, None]:
        px_grad, py_grad = ctx.saved_tensors
        grad = grad.view(-1, 1, 1)
        return px_grad * grad, py_grad * grad, None


@torch.no_grad()
def best_path(px: Tensor, py: Tensor, boundary: Tensor) -> Tensor:
    """The nodes that the likeliest path of each lattice leaves by a symbol or a blank: (N, S+1, T+1) bool.

    Args: as in `lattice_scores`, with symbol edges that stay on their frame.
    """
    N, S, _ = px.shape
    T = py.shape[2]
    px, py = px.double(), py.double().clamp(min=_NO_EDGE)
    scores = _prefix_scores(px, py, boundary[:, :2], 0, lambda row, dim: row.cummax(dim).values)  # (N, S+1, T+1)
    by_symbol = torch.nn.functional.pad(scores[:, :-1] + px, (0, 0, 1, 0), value=float("-inf"))  # into (s, t)
    by_blank = torch.nn.functional.pad(scores[:, :, :-1] + py, (1, 0), value=float("-inf"))
    symbol_is_better = by_symbol > by_blank  # (N, S+1, T+1)
    utterances = torch.arange(N, device=px.device)
    begin, (s, t) = boundary[:, 0] + boundary[:, 1], boundary[:, 2:].unbind(1)  # (N,) each
    path = torch.zeros(N, S + 1, T + 1, dtype=torch.bool, device=px.device)
    for _ in range(S + T):
        moves = s + t > begin
        back = symbol_is_better[utterances, s, t]
        s, t = s - (moves & back).long(), t - (moves & ~back).long()
        path[utterances, s, t] |= moves
    return path


def _prefix_scores(
    px: Tensor, py: Tensor, starts: Tensor, step: int, scan: Callable[[Tensor, int], Tensor] = torch.logcumsumexp
) -> Tensor:
    """Log-sum of all paths from `starts` (N, 2) = (s, t) to every node: (N, S+1, T+1), float64.

    With a running maximum as `scan`: the score of the best path instead.

    Row by row: along one row only blanks move, so with Y the running sum of py,
    p[s, t] - Y[s, t] is the running log-sum of what enters the row at t minus Y[s, t].
    S scans of length T, against T + S steps along anti-diagonals.
    """
    N, S, _ = px.shape
    T = py.shape[2]
    running = torch.nn.functional.pad(py.cumsum(2), (1, 0))  # (N, S+1, T+1)
    entering = torch.full_like(running, float("-inf"))
    entering[torch.arange(N, device=px.device), starts[:, 0], starts[:, 1]] = 0.0
    entering -= running
    scores = torch.empty_like(running)
    symbol = None
    for s in range(S + 1):
        row = entering[:, s]  # (N, T+1)
        if symbol is not None:
            row[:, step:] = torch.maximum(row[:, step:], symbol - running[:, s, step:])
        torch.add(scan(row, 1), running[:, s], out=scores[:, s])
        if s < S:
            symbol = scores[:, s, : T + 1 - step] + px[:, s]  # what enters row s + 1
    return scores


class _TransitionLogProbs(torch.autograd.Function):
    """log softmax of the joiner's logits, read at each cell's symbol and at blank, in two passes over the logits.

    Autograd's own log_softmax, gather and select would build three more tensors of the logits' size.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, symbols: Tensor, blank: int) -> tuple[Tensor, Tensor]:
        log_probs = logits.log_softmax(-1)
        ctx.save_for_backward(log_probs, symbols)
        ctx.blank = blank
        return log_probs.gather(-1, symbols.unsqueeze(-1)).squeeze(-1), log_probs[..., blank].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_symbol: Tensor, grad_blank: Tensor) -> tuple[Tensor, None, None]:
        log_probs, symbols = ctx.saved_tensors
        grad = log_probs.exp().mul_(-(grad_symbol + grad_blank).unsqueeze(-1))
        grad.scatter_add_(-1, symbols.unsqueeze(-1), grad_symbol.unsqueeze(-1))
        grad[..., ctx.blank] += grad_blank
        return grad, None, None


def transition_log_probs(logits: Tensor, symbols: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `symbols` (...) and of `blank` under softmax over the last axis of `logits` (..., V)."""
    return _TransitionLogProbs.apply(logits, symbols, blank)
