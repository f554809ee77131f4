"""Relative positions in the Zipformer's attention: their encoding, and what they add to the scores.

Shapes: N batch, H heads, T queries, K keys, d width of a head's positional part.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

QUERIES_TOGETHER = 32  # measured at 70 to 1200 frames: 16 costs more calls, 64 more memory


def relative_positions(queries: int, keys: int, dim: int, device: torch.device) -> Tensor:
    """Encodings (T + K - 1, dim) of the offsets key - query from 1 - K to T - 1.

    Offsets are compressed logarithmically, then mapped by atan to an interval whose Fourier basis is the
    encoding: near offsets are told apart exactly, far ones roughly.  The last channel is a constant 1.
    """
    offset = torch.arange(1 - keys, queries, device=device, dtype=torch.float32).unsqueeze(1)
    length = math.sqrt(dim)
    compressed = length * offset.sign() * ((offset.abs() + length).log() - math.log(length))
    angle = (compressed * (2 * math.pi / dim)).atan()
    angles = angle * (1 + torch.arange(dim // 2, device=device))  # (T + K - 1, dim / 2)
    encoding = torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1)
    return F.pad(encoding[:, :-1], (0, 1), value=1.0)  # not in place, which a traced step would do over and over


def add_position_scores(scores: Tensor, queries: Tensor, encoded: Tensor, offsets: int | None = None) -> Tensor:
    """Adds the product of each query's positional part with the encoding of each key's offset.

    Args:
      scores: (N, H, T, K); its memory may be used for the result.
      queries: (N, H, T, d); encoded: (H, d, T + K - 1), of the offsets from 1 - K to T - 1.
      offsets: T + K - 1 of a whole utterance, where T = K; exported files leave it open.  None in a step of a stream.
    Returns:
      (N, H, T, K).
    """
    if torch.onnx.is_in_onnx_export():
        return scores + _by_key_without_strides(queries @ encoded, offsets)
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if scores.device.type == "cpu" and not tracing and scores.size(2) >= 2 * QUERIES_TOGETHER:
        return _AddInBlocks.apply(scores, queries, encoded)
    return scores + by_key(queries @ encoded, int(scores.size(3)))


def by_key(by_offset: Tensor, keys: int) -> Tensor:
    """Scores of offsets (N, H, T, T + K - 1) as those of keys (N, H, T, K): row t begins at offset -t."""
    batch, heads, queries = by_offset.size(0), *map(int, by_offset.shape[1:3])
    n, h, t, o = by_offset.stride()
    return by_offset.as_strided((batch, heads, queries, keys), (n, h, t - o, o), o * (queries - 1))


def _by_key_without_strides(by_offset: Tensor, offsets: int | None) -> Tensor:
    """The same by reshaping, as ONNX knows no strides; its gradient would cost more."""
    if offsets is None:
        queries, offsets = map(int, by_offset.shape[2:])
    else:  # torch has lost by now that they vary
        queries = (offsets + 1) // 2
    if queries == 1:
        return by_offset
    rows = by_offset.flatten(2)[:, :, queries - 1 : queries * offsets - 1]
    return rows.reshape(-1, int(by_offset.size(1)), queries, offsets - 1)[..., : offsets - queries + 1]


class _AddInBlocks(torch.autograd.Function):
    """The same for some queries at a time: of the offsets of a whole utterance each query needs half alone.

    In full context, 20 utterances of 6 s, forward and backward take about half of the time.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, queries: Tensor, encoded: Tensor) -> Tensor:
        ctx.save_for_backward(queries, encoded)
        ctx.mark_dirty(scores)
        for some, begin, window in _blocks(queries, encoded):
            scores[:, :, begin : begin + some.size(2)] += by_key(some @ window, scores.size(3))
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        queries, encoded = ctx.saved_tensors
        grad_queries, grad_encoded = torch.empty_like(queries), torch.zeros_like(encoded)
        offsets = grad.new_zeros(0)
        for some, begin, window in _blocks(queries, encoded):
            size = (*some.shape[:3], window.size(2))
            if offsets.shape != size:  # what lies between the rows stays 0 from block to block
                offsets = grad.new_zeros(size)
            by_key(offsets, grad.size(3)).copy_(grad[:, :, begin : begin + some.size(2)])
            grad_queries[:, :, begin : begin + some.size(2)] = offsets @ window.transpose(1, 2)
            end = encoded.size(2) - begin
            grad_encoded[:, :, end - window.size(2) : end] += (some.transpose(2, 3) @ offsets).sum(dim=0)
        return grad, grad_queries, grad_encoded


def _blocks(queries: Tensor, encoded: Tensor):
    """(N, H, B, d) of `queries`, the number of the first of them, and (H, d, B + K - 1) of the offsets they need."""
    keys = encoded.size(2) - queries.size(2) + 1
    begin = 0
    for some in queries.split(QUERIES_TOGETHER, dim=2):
        end = encoded.size(2) - begin
        yield some, begin, encoded[:, :, end - (some.size(2) + keys - 1) : end]
        begin += some.size(2)
