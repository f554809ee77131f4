"""The three losses between layers (arXiv 2308.16415), free of any module or configuration.

With the teacher's features h, the auxiliary layer's output z and the predictor's output r:

    feature   sum_t w_t dist(h_t, z_t)
    APC       sum_t w_t dist(h_{t+n}, r_t)                                         t < T - n
    relation  sum_X sum_t w_t mean_heads KL(A_X^teacher || A_X^auxiliary)_t        X in {Q, K, V}
              A_X = softmax(X X^T / sqrt(d_R)) over the valid keys

The weights w_t of an utterance's valid frames are equal and add up to its output frames (40 ms),
so that an utterance's loss is the mean over its tap frames times its output frames.  Thus a tap
weighs the same at any frame rate, padding weighs nothing, the loss of a batch is the sum of its
utterances' losses, and divided by the output frames it stands beside the transducer loss.

Everything here runs in float32 (float64 if given that).
Shapes: N batch, T tap frames, D width, R relation heads, d_R relation head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstream.kd.taps import padding_mask
from kdstream.models.in_blocks import at_least_float32

MASKED = -1e30  # score of padded keys: exp gives exactly 0, and unlike with -inf so does 0 * (A - B)
# Of relation maps in work at a time: on a CPU 1 MB, which a core's own cache holds; on a GPU enough to fill it.
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}


def frame_weights(lens: Tensor, frames: int, output_frames: Tensor) -> Tensor:
    """w: (N, T) float32, output_frames / lens at each of an utterance's `lens` first frames, else 0.

    Args:
      lens: (N,) valid tap frames; an utterance with none (or fewer) weighs nothing.
      frames: T.
      output_frames: (N,) output frames (40 ms) of the utterances.
    """
    weights = output_frames.to(torch.float32) / lens.clamp(min=1)
    return weights.unsqueeze(1).masked_fill(padding_mask(lens, frames), 0.0)


def l1_cosine(h: Tensor, z: Tensor) -> Tensor:
    """||h_t - z_t||_1 / D - log sigmoid(cos(h_t, z_t)): (N, T)."""
    return (h - z).abs().mean(dim=-1) - F.logsigmoid(F.cosine_similarity(h, z, dim=-1))


def l2(h: Tensor, z: Tensor) -> Tensor:
    """||h_t - z_t||_2^2 / D: (N, T)."""
    return (h - z).square().mean(dim=-1)


def cosine(h: Tensor, z: Tensor) -> Tensor:
    """1 - cos(h_t, z_t): (N, T)."""
    return 1.0 - F.cosine_similarity(h, z, dim=-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1_cosine": l1_cosine, "l2": l2, "cosine": cosine}


def feature_loss(h: Tensor, z: Tensor, weights: Tensor, distance: str) -> Tensor:
    """sum_t w_t dist(h_t, z_t), a scalar.

    Args:
      h, z: (N, T, D), teacher and auxiliary layer.
      weights: (N, T), see `frame_weights`.
      distance: a key of DISTANCES.
    """
    with float32(z):
        return (weights * DISTANCES[distance](at_least_float32(h), at_least_float32(z))).sum()


def apc_loss(h: Tensor, r: Tensor, lens: Tensor, output_frames: Tensor, shift: int, distance: str) -> Tensor:
    """sum_{t < T - n} w_t dist(h_{t+n}, r_t), a scalar; autoregressive predictive coding, n = `shift` tap frames.

    Args:
      h, r: (N, T, D), teacher and predictor.
      lens, output_frames: (N,), see `frame_weights`; utterances of at most n frames give 0.
    """
    frames = max(h.size(1) - shift, 0)
    weights = frame_weights(lens - shift, frames, output_frames)
    return feature_loss(h[:, shift:], r[:, :frames], weights, distance)


def relation_loss(teacher: Sequence[Tensor], auxiliary: Sequence[Tensor], weights: Tensor, heads: int) -> Tensor:
    """The divergences of self-attention relations, summed over Q, K and V: a scalar.

    This is MiniLMv2's form (arXiv 2012.15828, section 3): concatenated heads are split anew into
    `heads` relation heads, so the two models may differ in head counts and widths.

    Args:
      teacher, auxiliary: (query, key, value), each (N, T, a width that `heads` divides).
      weights: (N, T), 0 exactly at padding: padded frames are neither queries nor keys.
    """
    with float32(weights):
        divergences = (
            RelationDivergence.apply(_split(x_teacher, heads), _split(x_auxiliary, heads), weights)
            for x_teacher, x_auxiliary in zip(teacher, auxiliary, strict=True)
        )
        return reduce(torch.add, divergences)


class RelationDivergence(torch.autograd.Function):
    """sum_t w_t mean_R KL(P || Q)_t with P = softmax(Y Y^T / sqrt(d_Y)), Q = softmax(X X^T / sqrt(d_X)).

    Y (N, R, T, d_Y) is the teacher's and gets no gradient; X is (N, R, T, d_X).  With the scores
    A = Y Y^T / sqrt(d_Y) and B = X X^T / sqrt(d_X), row t gives

        KL_t = sum_j P_tj (A_tj - B_tj) - logsumexp_j A_tj + logsumexp_j B_tj
        dKL_t / dB_t = Q_t - P_t,     dX = (dB + dB^T) X / sqrt(d_X)

    Autograd would keep several (N, R, T, T) maps for the backward pass.  As the gradient is known
    at once, it is computed in the forward pass, and no map outlives its block of heads.
    """

    @staticmethod
    def forward(ctx, teacher: Tensor, auxiliary: Tensor, weights: Tensor) -> Tensor:
        N, R, T, d = auxiliary.shape
        keys = auxiliary.new_zeros(N, 1, T).masked_fill(weights.unsqueeze(1) == 0, MASKED)
        of_heads = [x.repeat_interleave(R, dim=0) for x in (keys, weights.unsqueeze(2) / R)]
        maps = [x.flatten(0, 1) for x in (teacher, auxiliary)] + of_heads  # N * R each
        total, gradients = auxiliary.new_zeros(()), []
        elements = BLOCK_ELEMENTS["cpu" if auxiliary.device.type == "cpu" else "cuda"]
        block = max(1, elements // max(1, T * T))
        for y, x, keys, w in zip(*(of_all.split(block) for of_all in maps), strict=True):
            a, p, a_logsumexp = _relations(y, keys)
            b, q, b_logsumexp = _relations(x, keys)
            kl = a.sub_(b).mul_(p).sum(dim=-1, keepdim=True) - a_logsumexp + b_logsumexp  # (maps, T, 1)
            total += (kl * w).sum()
            if ctx.needs_input_grad[1]:
                db = q.sub_(p).mul_(w)  # (maps, T, T)
                gradients.append(torch.bmm(db, x).baddbmm_(db.transpose(1, 2), x).div_(math.sqrt(d)))
        gradient = torch.cat(gradients).view_as(auxiliary) if gradients else None
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        (gradient,) = ctx.saved_tensors
        return None, gradient * grad_output, None


def _relations(x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores x x^T / sqrt(d), their softmax, both (maps, T, T), and their logsumexp (maps, T, 1).

    x: (maps, T, d), a head of an utterance each; keys: (maps, 1, T), 0 or, where no score may count, MASKED.
    """
    scores = torch.baddbmm(keys, x, x.transpose(1, 2), alpha=1.0 / math.sqrt(x.size(2)))
    softmax = scores.softmax(dim=-1)
    # log softmax = score - logsumexp holds for any key; the strongest one's softmax is far from 0
    logsumexp = scores.amax(dim=-1, keepdim=True) - softmax.amax(dim=-1, keepdim=True).log()
    return scores, softmax, logsumexp


def _split(x: Tensor, heads: int) -> Tensor:
    """(N, T, R * d) -> (N, R, T, d)."""
    return at_least_float32(x).unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()


def float32(x: Tensor) -> torch.autocast:
    """Switches autocast off on the device of x."""
    return torch.autocast(device_type=x.device.type, enabled=False)
