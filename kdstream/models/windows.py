"""The frames that a block of frames may see, side by side: what attention and convolutions of whole utterances run on.

With right context the frames of an utterance lie in steps, as a stream computes them: each chunk, then its right
context, which the next chunk repeats.  `in_steps` lays them out so, and `own_frames` drops the right contexts again.

Shapes: N batch, T frames, D model width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstream.models.streaming import ChunkConfig, TapRecorder


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, T, H * d) to (N, H, T, d)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(N, H, T, d) to (N, T, H * d)."""
    return x.transpose(1, 2).flatten(2)


def in_steps(x: Tensor, chunk: ChunkConfig | None) -> Tensor:
    """Whole utterances and their right context (N, T + right, D) as (N, steps * step, D); as they are without any."""
    if chunk is None or not chunk.right:
        return x
    steps = -(-(x.size(1) - chunk.right) // chunk.chunk)
    places = chunk.places(steps * chunk.step, x.device)
    return F.pad(x, (0, 0, 0, steps * chunk.chunk + chunk.right - x.size(1))).index_select(1, places)


def own_frames(x: Tensor, chunk: ChunkConfig | None, frames: int) -> Tensor:
    """The chunks of steps (N, steps * step, D), one after the other, cut to `frames`: the inverse of `in_steps`."""
    if chunk is None or not chunk.right:
        return x
    return x.unflatten(1, (-1, chunk.step))[:, :, : chunk.chunk].flatten(1, 2)[:, :frames]


def record_layer(
    taps: TapRecorder,
    name: str,
    inputs_and_outputs: Iterable[Tensor],
    chunk: ChunkConfig | None,
    frames: int,
    lens: Tensor,
    stride: int,
) -> None:
    """Shows a layer to `taps`, without right contexts.

    Args:
      inputs_and_outputs: its inputs, features, query, key and value, each (N, T, D); see `TapRecorder.record`.
      chunk: in frames of the layer, of which an utterance has `frames`.
    """
    own = (own_frames(x, chunk, frames) for x in inputs_and_outputs)
    tensors = dict(zip(("inputs", "features", "query", "key", "value"), own, strict=True))
    taps.record(name, **tensors, lens=lens, stride=stride)


def windows(x: Tensor, heads: int, block: int, left: int, right: int = 0, outside: float = 0.0) -> Tensor:
    """The `left` frames before each block and the block: (N, T, H * d) to (N * blocks, H, left + block + right, d).

    Args:
      right: frames that follow each block in x and belong to its window alone; where there are any, blocks are whole.
      outside: what stands before the first frame and after the last.
    """
    batch, _, width = x.shape
    ahead = None
    if right:
        steps = x.unflatten(1, (-1, block + right)).unflatten(3, (heads, -1))
        x, ahead = steps[:, :, :block].flatten(3).flatten(1, 2), steps[:, :, block:].transpose(2, 3)
    frames = x.size(1)
    blocks = -(-frames // block)
    x = F.pad(x, (0, 0, left, blocks * block - frames), value=outside)
    n, t, d = x.stride()
    shape = batch, blocks, heads, left + block, width // heads
    seen = x.as_strided(shape, (n, block * t, width // heads * d, t, d))
    return (seen if ahead is None else torch.cat([seen, ahead], dim=3)).flatten(0, 1)


class Windows(torch.autograd.Function):
    """`windows`, with a gradient of a few sums; torch's own adds frame by frame."""

    @staticmethod
    def forward(ctx, x: Tensor, heads: int, block: int, left: int, right: int = 0) -> Tensor:
        ctx.sizes = x.size(0), x.size(1), block, left, right
        return windows(x, heads, block, left, right)

    @staticmethod
    def backward(ctx, grad: Tensor):
        batch, frames, block, left, right = ctx.sizes
        grad = grad.unflatten(0, (batch, -1)).transpose(1, 2)  # (N, H, blocks, left + block + right, d)
        rows, starts = grad.size(2) * block, range(0, left + block, block)
        total = grad.new_zeros(batch, grad.size(1), rows + starts[-1], grad.size(4))
        for start in starts:  # the parts of all windows that begin there do not overlap
            part = grad[:, :, :, start : min(start + block, left + block)]
            total[:, :, start : start + rows].unflatten(2, (-1, block))[:, :, :, : part.size(3)] += part
        own = total[:, :, left : left + (rows if right else frames)]
        if right:
            own = torch.cat([own.unflatten(2, (-1, block)), grad[:, :, :, left + block :]], dim=3).flatten(2, 3)
        return merge_heads(own), None, None, None, None
