"""The pruned transducer loss on a CPU, a few utterances at a time: no tensor of the whole batch has V columns.

It is the loss of `rnnt_loss.py`, whose logits of encoder (N, T, V) and joiner (N, T, R, V) each have companions of
their size in autograd, which a CPU writes to memory and reads back.  Here a group of utterances has its logits, its
sums over paths and its gradients, before the logits of the next group take their place.  Padded frames have none.

Shapes: N batch (G of a group), T frames (40 ms), S symbols, R symbols kept at a frame, V vocabulary, D encoder width,
J joiner width, C cells (a frame with a kept symbol).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdstream.models.in_blocks import at_least_float32
from kdstream.models.rnnt_loss import (
    LossSettings,
    RnntLosses,
    backend,
    do_rnnt_pruning,
    get_rnnt_prune_ranges,
    lattice_boundary,
    next_symbols,
    path_loss,
    unpruned,
)

GROUP_ELEMENTS = 2**23  # of a group's logits: 32 MB in float32; a group has one utterance at least
BLOCK_ELEMENTS = 2**18  # of logits between one step and the next: 1 MB, which a core's own cache holds

GroupLoss = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]


def can_be_grouped(device: torch.device, settings: LossSettings) -> bool:
    """Whether `losses_in_groups` is for this device, and computes the loss of these settings.

    The encoder-only term averages over the predictor's logits of the whole batch, so that no group can do without the
    others.  k2 has its own functions, and a GPU is faster at all utterances at once.
    """
    return device.type == "cpu" and settings.am_scale == 0.0 and backend(settings.backend, device) == "torch"


def losses_in_groups(
    encoder_out: Tensor,
    lm_simple: Tensor,
    encoder_proj: Tensor,
    decoder_proj: Tensor,
    simple_am: nn.Linear,
    output: nn.Linear,
    tokens: Tensor,
    encoder_lens: Tensor,
    token_lens: Tensor,
    settings: LossSettings,
    *,
    blank_id: int = 0,
) -> RnntLosses:
    """The simple and the pruned loss, summed over the batch, in float32 whatever autocast says; without the logits.

    Args:
      encoder_out: (N, T, D).
      lm_simple: (N, S+1, V) logits of the predictor alone.
      encoder_proj, decoder_proj: (N, T, J) and (N, S+1, J), which the joiner adds.
      simple_am: from encoder_out to the logits of the encoder alone.
      output: the joiner's last layer, from J to V.
      tokens, encoder_lens, token_lens: as in `rnnt_loss.transducer_losses`.
      settings: such that they `can_be_grouped`.
    """
    boundary = lattice_boundary(encoder_lens, token_lens)
    V, T = output.out_features, encoder_out.size(1)
    lattice = (settings.rnnt_type, settings.delay_penalty)
    dtype = encoder_proj.dtype  # in which autocast has linear layers

    def simple_loss(*group: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        encoder_out, lm, symbols, boundary, weight, bias = group
        frames = encoder_out[:, : int(boundary[:, 3].max())]
        px, py = smoothed_log_probs(frames.to(dtype), weight, bias, lm, symbols, blank_id, settings.lm_scale)
        loss, occupation = path_loss(px, py, boundary, *lattice, "sum", return_grad=True)
        return loss, tuple(F.pad(x, (0, T - frames.size(1))) for x in occupation or ())

    def pruned_loss(*group: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        encoder, decoder, ranges, symbols, boundary, weight, bias = group
        frames = int(boundary[:, 3].max())
        hidden = torch.add(*do_rnnt_pruning(encoder[:, :frames], decoder, ranges[:, :frames])).tanh_()  # (G, T, R, J)
        following = next_symbols(symbols, ranges[:, :frames], blank_id)
        cells = linear_transition_log_probs(hidden, weight, bias, following, blank_id)
        px, py = unpruned(*cells, ranges[:, :frames], symbols.size(1))
        return path_loss(px, py, boundary, *lattice, "sum")[0], ()

    simple, px_grad, py_grad = summed_over_groups(
        simple_loss,
        (encoder_out, at_least_float32(lm_simple), tokens, boundary),
        (simple_am.weight, simple_am.bias),
        group_size(T * V),
    )
    ranges = get_rnnt_prune_ranges(px_grad, py_grad, boundary, settings.prune_range)
    (pruned,) = summed_over_groups(
        pruned_loss,
        (encoder_proj, decoder_proj, ranges, tokens, boundary),
        (output.weight, output.bias),
        group_size(ranges[0].numel() * V),
    )
    return RnntLosses(simple, pruned, ranges, None)


def group_size(elements: int) -> int:
    """Utterances of a group, whose logits have so many elements each."""
    return max(1, GROUP_ELEMENTS // elements)


def summed_over_groups(
    loss_of: GroupLoss, rows: tuple[Tensor, ...], shared: tuple[Tensor, ...], size: int
) -> tuple[Tensor, ...]:
    """A loss that is the sum over groups of `size` utterances.  No two groups' graphs are there at a time.

    Args:
      loss_of: called as loss_of(*rows of a group, *shared); returns the group's loss, and tensors with a row for each
        of its utterances, which have no gradient.
      rows: tensors with a row for each utterance.
      shared: tensors that all groups read.
    Returns:
      The loss, and the tensors.
    """
    tensors = (*rows, *shared)
    wanted = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
    with torch.autocast("cpu", enabled=False):
        return _SummedOverGroups.apply(loss_of, size, len(rows), wanted, *tensors)


class _SummedOverGroups(torch.autograd.Function):
    """The gradients are there as soon as the loss is; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, loss_of: GroupLoss, size: int, rows: int, wanted: list[bool], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        losses: list[Tensor] = []
        others: list[tuple[Tensor, ...]] = []
        gradients: list[list[Tensor]] = [[] for _ in tensors]  # of each group, or for a shared tensor their sum
        for first in range(0, len(tensors[0]), size):
            group = [x[first : first + size] for x in tensors[:rows]] + list(tensors[rows:])
            leaves = [x.detach().requires_grad_(needed) for x, needed in zip(group, wanted, strict=True)]
            with torch.set_grad_enabled(any(wanted)):
                loss, other = loss_of(*leaves)
            losses.append(loss.detach())
            others.append(other)
            if any(wanted):
                indices = [index for index, needed in enumerate(wanted) if needed]
                for index, grad in zip(indices, torch.autograd.grad(loss, [leaves[i] for i in indices]), strict=True):
                    earlier = gradients[index]
                    gradients[index] = [earlier[0] + grad] if earlier and index >= rows else [*earlier, grad]
        ctx.save_for_backward(*(torch.cat(grads) if grads else None for grads in gradients))
        together = tuple(torch.cat(of_groups) for of_groups in zip(*others, strict=True))
        ctx.mark_non_differentiable(*together)
        return torch.stack(losses).sum(), *together

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *(grad if grad is None else grad * scale for grad in ctx.saved_tensors)


def linear_transition_log_probs(
    x: Tensor, weight: Tensor, bias: Tensor, symbols: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `symbols` (...) and of blank under the softmax of the logits weight x + bias.

    Args:
      x: (..., J), in the dtype in which weight (V, J) and bias (V,) are to be multiplied.
    """
    cells = _LinearTransitions.apply(x.flatten(0, -2), weight, bias, symbols.reshape(-1, 1), blank)
    return cells[0].view_as(symbols), cells[1].view_as(symbols)


class _LinearTransitions(torch.autograd.Function):
    """The logits of a block of cells are there for as long as they become exponentials, which backward reads."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, symbols: Tensor, blank: int
    ) -> tuple[Tensor, Tensor]:
        C, V = len(x), len(weight)
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        exps = torch.addmm(bias, x, weight.t())  # logits, which become exponentials block by block
        sums, symbol, blank_ = (at_least_float32(x.new_empty(C, 1)) for _ in range(3))
        for cells in blocks(C, V):
            logits = at_least_float32(exps[cells])
            largest = logits.amax(1, keepdim=True)
            symbol[cells], blank_[cells] = logits.gather(1, symbols[cells]), logits[:, blank : blank + 1]
            sums[cells] = logits.sub_(largest).exp_().sum(1, keepdim=True)
            if logits.dtype != exps.dtype:
                exps[cells] = logits
            normalizer = sums[cells].log().add_(largest)
            symbol[cells] -= normalizer
            blank_[cells] -= normalizer
        ctx.save_for_backward(x, weight, symbols, exps, sums, symbol, blank_)
        ctx.blank = blank
        return symbol, blank_

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_symbol: Tensor, grad_blank: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, symbols, exps, sums, symbol, blank = ctx.saved_tensors
        # The gradient by the logits is scale * (exps with two entries changed): the large factor stays as it is.
        grad = grad_symbol + grad_blank  # (C, 1)
        scale = -grad / sums
        share = (grad_symbol / grad).nan_to_num_(0.0, 0.0, 0.0)
        at_symbol = sums * (symbol.exp() - share)
        at_blank = sums * (blank.exp() - (1.0 - share)) - (symbols == ctx.blank) * sums * share
        exps.scatter_(1, symbols, at_symbol.to(exps.dtype))
        exps[:, ctx.blank] = at_blank.squeeze(1)
        grad_x = ((exps @ weight) * scale).to(x.dtype)
        scaled = (x * scale).to(exps.dtype)
        grad_weight = scaled.t() @ exps  # (J, V): several times as fast as exps.t() @ x
        grad_bias = scale.to(exps.dtype).t() @ exps
        grad_linear = (at_least_float32(grad_weight.t()), at_least_float32(grad_bias.squeeze(0)))
        return grad_x, *grad_linear, None, None


def smoothed_log_probs(
    x: Tensor, weight: Tensor, bias: Tensor, lm: Tensor, symbols: Tensor, blank: int, lm_only: float
) -> tuple[Tensor, Tensor]:
    """(px, py) of the simple loss, (N, S, T) and (N, S+1, T): log-probabilities of symbols and blanks.

    Args:
      x: (N, T, D), in the dtype of the product; the logits of the encoder alone are weight x + bias.
      lm: (N, S+1, V) logits of the predictor alone.
      lm_only: weight of the predictor's own log-probabilities, which the joint ones are interpolated with.
    """
    px, py = _JointLogProbs.apply(x, weight, bias, lm, symbols, blank)
    if lm_only == 0.0:
        return px, py
    lm_log_probs = lm.log_softmax(2)
    lm_symbol = lm_log_probs[:, :-1].gather(2, symbols.unsqueeze(2))  # (N, S, 1)
    lm_blank = lm_log_probs[:, :, blank : blank + 1]  # (N, S+1, 1)
    return px * (1.0 - lm_only) + lm_symbol * lm_only, py * (1.0 - lm_only) + lm_blank * lm_only


class _JointLogProbs(torch.autograd.Function):
    """Under softmax(am + lm) over V, where am = weight x + bias: (px, py), (N, S, T) and (N, S+1, T)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, lm: Tensor, symbols: Tensor, blank: int
    ) -> tuple[Tensor, Tensor]:
        N, T, D = x.shape
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        am = at_least_float32(torch.addmm(bias, x.reshape(N * T, D), weight.t())).view(N, T, -1)
        symbol = am.gather(2, symbols.unsqueeze(1).expand(-1, T, -1)).transpose(1, 2)  # (N, S, T)
        symbol = symbol + lm[:, :-1].gather(2, symbols.unsqueeze(2))
        blanks = am[:, :, blank].unsqueeze(1) + lm[:, :, blank].unsqueeze(2)  # (N, S+1, T)
        am_max, lm_max = am.amax(2, keepdim=True), lm.amax(2, keepdim=True)
        am_exp, lm_exp = am.sub_(am_max).exp_(), (lm - lm_max).exp_()
        sums = torch.bmm(lm_exp, am_exp.transpose(1, 2)) + torch.finfo(am.dtype).tiny  # (N, S+1, T)
        both = sums.log().add_(lm_max).add_(am_max.transpose(1, 2))
        ctx.save_for_backward(x, weight, symbols, am_exp, lm_exp, sums)
        ctx.blank = blank
        return symbol - both[:, :-1], blanks - both

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_px: Tensor, grad_py: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, symbols, am_exp, lm_exp, sums = ctx.saved_tensors
        N, T, D = x.shape
        ratio = grad_py + F.pad(grad_px, (0, 0, 0, 1))
        ratio = ratio.div_(sums).neg_()  # (N, S+1, T), by the sums
        grad_lm = torch.bmm(ratio, am_exp).mul_(lm_exp)
        grad_lm[:, :-1].scatter_add_(2, symbols.unsqueeze(2), grad_px.sum(2, keepdim=True))
        grad_lm[:, :, ctx.blank] += grad_py.sum(2)
        grad_am = torch.bmm(ratio.transpose(1, 2).contiguous(), lm_exp).mul_(am_exp)
        grad_am.scatter_add_(2, symbols.unsqueeze(1).expand(-1, T, -1), grad_px.transpose(1, 2))
        grad_am[:, :, ctx.blank] += grad_py.sum(1)
        grad_am = grad_am.view(N * T, -1).to(x.dtype)
        grad_weight = x.reshape(N * T, D).t() @ grad_am  # (D, V): see above
        grad_linear = (at_least_float32(grad_weight.t()), at_least_float32(grad_am.sum(0)))
        return (grad_am @ weight).view_as(x), *grad_linear, grad_lm, None, None


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Blocks of rows that a core's own cache holds."""
    size = max(1, BLOCK_ELEMENTS // columns)
    return (slice(first, first + size) for first in range(0, rows, size))
