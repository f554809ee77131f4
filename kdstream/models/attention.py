"""Attention: what its queries look at, and the Zipformer's, whose weights are computed once and used three times.

Names and arithmetic are icefall's; our layout is batch first.  Decoding and export trace a step: a size that `int`
converts becomes a constant of the traced graph, in which only the number of streams varies.

Shapes: N batch, T frames of x, K frames that are attended to (T, or left context + T), D model width,
H heads, d head width.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.models.linear import Linear, scaled_linear
from kdstream.models.positions import add_position_scores
from kdstream.models.scaling import Balancer, ScheduledFloat, Whiten, penalize_large_values
from kdstream.models.streaming import Cache, ChunkConfig
from kdstream.models.windows import Windows, merge_heads, split_heads, windows
from kdstream.models.zipformer_modules import prepend, whitening_schedule

QueryKeyValue = tuple[Tensor, Tensor, Tensor]
BLOCK = 32  # queries of a band in one product, or a few less or more


@dataclass(frozen=True)
class View:
    """What the queries of a layer look at: here all of them at all keys, of which some are blocked.

    A view turns frames into queries, keys and values, and what the queries gather back into frames.

    chunk: how far each query sees, in frames of the layer; None: as far as there are keys.
    right: frames at the end of a step that no later step sees.
    """

    chunk: ChunkConfig | None
    right: int = field(default=0, kw_only=True)

    def queries(self, x: Tensor, heads: int) -> Tensor:
        """(N, T, H * d) to (N, H, T, d)."""
        return split_heads(x, heads)

    def keys(self, x: Tensor, heads: int) -> Tensor:
        """(N, K, H * d) to (N, H, K, d); of values too."""
        return split_heads(x, heads)

    def frames(self, gathered: Tensor) -> Tensor:
        """(N, H, T, d) to (N, T, H * d)."""
        return merge_heads(gathered)

    def blocked(self, hidden: Tensor) -> Tensor:
        """What queries must not look at: bool, broadcasts to (N, 1, T, K).  hidden: (N, K), True: seen by nobody."""
        frames = torch.arange(hidden.size(1), device=hidden.device)
        hidden = hidden[:, None, None]
        return hidden if self.chunk is None else hidden | out_of_sight(frames, frames, self.chunk)

    def span(self, queries: int, keys: int) -> tuple[int, int]:
        """For how many queries and keys positions must be encoded, where a layer has so many frames."""
        return queries, keys

    def positions(self, encodings: Tensor) -> Tensor:
        """Those of the offsets key - query from 1 - K to T - 1, which the encodings have in their middle."""
        return encodings


@dataclass(frozen=True)
class Band(View):
    """Blocks of queries that look at their block and at the left context before it: all that one of them may see.

    So time and memory grow with the utterance and not with its square.  Blocks take the place of utterances: of queries
    and keys, N counts the blocks of all utterances, T is `reach` and K the left context and `reach`.

    chunk: with a limited left context.
    block: frames, a multiple of the chunk; with right context the chunk itself.
    right: right context, which follows each block in the frames of an utterance (see windows.py).
    total: frames of an utterance; zeros fill up its last block.
    """

    chunk: ChunkConfig
    block: int
    total: int

    @property
    def reach(self) -> int:
        """Frames of a block and of its right context."""
        return self.block + self.right

    def queries(self, x: Tensor, heads: int) -> Tensor:
        x = F.pad(x, (0, 0, 0, -self.total % self.reach))
        return split_heads(x.reshape(-1, self.reach, x.size(2)), heads)

    def keys(self, x: Tensor, heads: int) -> Tensor:
        return Windows.apply(x, heads, self.block, self.chunk.left, self.right)

    def frames(self, gathered: Tensor) -> Tensor:
        x = merge_heads(gathered)
        return x.reshape(-1, self.total + -self.total % self.reach, x.size(2))[:, : self.total]

    def blocked(self, hidden: Tensor) -> Tensor:
        seen = windows(hidden.unsqueeze(2), 1, self.block, self.chunk.left, self.right, outside=True)
        hidden = seen.transpose(2, 3)
        if self.right:  # a block is a chunk, and all of its frames see all that is in its window
            return hidden
        frames = torch.arange(-self.chunk.left, self.block, device=hidden.device)
        return hidden | out_of_sight(frames[self.chunk.left :], frames, self.chunk)

    def span(self, queries: int, keys: int) -> tuple[int, int]:
        seen = self.chunk.left + self.reach
        return (seen, seen) if self.right else (queries, keys)

    def positions(self, encodings: Tensor) -> Tensor:
        here, reach = encodings.size(0) // 2, self.reach - 1
        return encodings[here - self.chunk.left - reach : here + reach + 1]


def view_of(queries: int, keys: int, chunk: ChunkConfig | None) -> View:
    """The view that costs least: a band where the utterance is longer than what a block of its queries sees.

    Args:
      queries, keys: frames.  There are more keys in a step of a stream, whose cache holds what the chunk may see.
      chunk: in the same frames; None for full context.
    """
    if chunk is None:
        return View(None)
    if keys > queries:
        return View(None, right=chunk.right)
    if chunk.right:
        return Band(chunk, chunk.chunk, queries, right=chunk.right)
    blocks = math.ceil(queries / BLOCK)
    block = math.ceil(queries / (blocks * chunk.chunk)) * chunk.chunk
    return Band(chunk, block, queries) if chunk.is_limited and chunk.left < queries - block else View(chunk)


def out_of_sight(queries: Tensor, keys: Tensor, chunk: ChunkConfig) -> Tensor:
    """(T, K) bool, for the numbers of frames: True where the key lies in a later chunk or beyond the left context."""
    query_chunks, key_chunks = (torch.div(x, chunk.chunk, rounding_mode="floor") for x in (queries, keys))
    behind = query_chunks.unsqueeze(1) - key_chunks
    return (behind < 0) | (behind > chunk.left // chunk.chunk) if chunk.is_limited else behind < 0


@dataclass(frozen=True)
class FrameContext:
    """What all layers of a stack share in one forward.

    view: what queries look at; T and K of `blocked` are those of its queries and keys.
    blocked: bool, broadcasts to (N, 1, T, K); True where attention must not look.  None: everywhere it may.
    padding: (N, T) bool, True at padding frames; None where there are none.
    positions: (T + K - 1, pos_dim) encodings of the offsets key - query, from 1 - K to T - 1; see `View.span`.
    chunk: in frames of this stack; None for full context.
    """

    view: View
    blocked: Tensor | None
    padding: Tensor | None
    positions: Tensor
    chunk: ChunkConfig | None


def softmax(scores: Tensor) -> Tensor:
    """Attention weights (N, H, T, K) in the dtype of the scores.

    They are computed in float32 and rounded once.  Autocast on a GPU would return them in float32, and round them again
    for each use: three times the memory.
    """
    with torch.autocast(device_type=scores.device.type, enabled=False):
        return scores.softmax(dim=3)


class AttentionWeights(nn.Module):
    """Multi-head attention weights with relative positions, computed once per layer and used three times."""

    def __init__(self, dim: int, pos_dim: int, heads: int, query_head_dim: int, pos_head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_dim = heads * query_head_dim
        # the scale stands in for the usual d ** -0.5 on the scores
        self.in_proj = scaled_linear(dim, 2 * self.query_dim + heads * pos_head_dim, query_head_dim**-0.25)
        self.linear_pos = scaled_linear(pos_dim, heads * pos_head_dim, 0.05, bias=False)
        self.pos_emb_skip_rate = ScheduledFloat((0, 0.5), (4000, 0.0))
        self.whiten_keys = Whiten(heads, whitening_schedule(3.0), 0.025)
        # scores do not change when a constant is added to all keys; without this, rounding noise would move it
        self.balance_keys = Balancer(min_positive=0.4, max_positive=0.6, min_abs=0.0, max_abs=100.0, prob=0.025)

    def forward(
        self, x: Tensor, context: FrameContext, cached_key: Cache
    ) -> tuple[Tensor, Cache, tuple[Tensor, Tensor]]:
        """
        Args:
          x: (N, T, D); cached_key: (N, K - T, H * d) or None.
        Returns:
          weights (N, H, T, K), the new cache, and (query, key) of x, each (N, T, H * d).
        """
        query, key, pos_query = self.in_proj(x).split(
            [self.query_dim, self.query_dim, self.in_proj.out_features - 2 * self.query_dim], dim=2
        )
        key = self.whiten_keys(self.balance_keys(key))
        view = context.view
        all_keys, cached_key = prepend(cached_key, key, view.right)
        scores = view.queries(query, self.heads) @ view.keys(all_keys, self.heads).transpose(2, 3)  # (N, H, T, K)
        if not self.training or random.random() >= float(self.pos_emb_skip_rate):
            positions = view.positions(context.positions)
            encoded = self.linear_pos(positions).unflatten(1, (self.heads, -1)).permute(1, 2, 0)
            offsets = positions.size(0) if cached_key is None else None
            scores = add_position_scores(scores, view.queries(pos_query, self.heads), encoded, offsets)
        if context.blocked is not None:
            # -1000 and not -inf: padding frames may see nothing at all, and exp(-1000) is exactly 0 as well
            scores = scores.masked_fill_(context.blocked, -1000.0)
        if self.training and random.random() < 0.1:
            scores = penalize_large_values(scores, limit=25.0, penalty=1e-4)
        return softmax(scores), cached_key, (query, key)


class SelfAttention(nn.Module):
    """Values weighted by given attention weights."""

    def __init__(self, dim: int, heads: int, value_head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = Linear(dim, heads * value_head_dim)
        self.out_proj = scaled_linear(heads * value_head_dim, dim, 0.05)
        self.whiten = Whiten(1, whitening_schedule(7.5, 3.0), 0.01)

    def forward(self, x: Tensor, weights: Tensor, view: View, cached_value: Cache) -> tuple[Tensor, Cache, Tensor]:
        """x (N, T, D), weights (N, H, T, K) to (N, T, D), the new cache and the values of x (N, T, H * d)."""
        value = self.in_proj(x)
        all_values, cached_value = prepend(cached_value, value, view.right)
        x = self.out_proj(view.frames(weights @ view.keys(all_values, self.heads)))
        return self.whiten(x), cached_value, value


class NonlinAttention(nn.Module):
    """Gated features, averaged over time with one head's attention weights and gated again."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.in_proj = Linear(dim, hidden * 3)
        self.balancer = Balancer(
            min_positive=ScheduledFloat((0, 0.25), (20000, 0.05)),
            max_positive=ScheduledFloat((0, 0.75), (20000, 0.95)),
            min_abs=0.5,
            max_abs=5.0,
        )
        self.out_proj = scaled_linear(hidden, dim, 0.05)
        self.whiten1 = Whiten(1, whitening_schedule(5.0), 0.01)
        self.whiten2 = Whiten(1, whitening_schedule(5.0, 3.0), 0.01)

    def forward(self, x: Tensor, weights: Tensor, view: View, cache: Cache) -> tuple[Tensor, Cache]:
        """x (N, T, D), weights (N, 1, T, K), cache (N, K - T, hidden) to (N, T, D) and the new cache."""
        gate, x, out_gate = self.in_proj(x).chunk(3, dim=2)
        x = self.whiten1(x) * self.balancer(gate).tanh()
        x, cache = prepend(cache, x, view.right)
        x = view.frames(weights @ view.keys(x, 1)) * out_gate
        return self.whiten2(self.out_proj(x)), cache
