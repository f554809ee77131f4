"""The parts of a Zipformer layer: attention, convolution, feed-forward, bypass and resampling.

The Conformer uses some of them too.  Every part has one forward.  A part that needs the past (attention,
convolution) takes the cached frames of a stream, or None for whole utterances, and returns the new cache beside its
output.
Names and arithmetic are icefall's; our layout is batch first.  Decoding and export trace a step: a size that `int`
converts becomes a constant of the traced graph, in which only the number of streams varies.

Shapes: N batch, T frames of x, K frames that are attended to (T, or left context + T), D model width,
H heads, d head width.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.models.on_cpu import DepthwiseConv1d, by_products, convolve_chunk, depthwise_conv
from kdstream.models.scaling import (
    ActivationDropoutAndLinear,
    Balancer,
    FloatLike,
    ScheduledFloat,
    SwooshL,
    SwooshR,
    Whiten,
    limit_parameter,
    penalize_large_values,
    scaled_linear,
)
from kdstream.models.streaming import Cache

QueryKeyValue = tuple[Tensor, Tensor, Tensor]
FULL_CONTEXT_CONVOLUTION = re.compile(r"conv_module[12]\.depthwise_conv\.(weight|bias)$")


@dataclass(frozen=True)
class FrameContext:
    """What all layers of a stack share in one forward.

    blocked: bool, broadcasts to (N, 1, T, K); True where attention must not look.  None: everywhere it may.
    padding: (N, T) bool, True at padding frames; None where there are none.
    positions: (T + K - 1, pos_dim) encodings of the offsets key - query, from 1 - K to T - 1.
    chunk: frames per chunk at this stack's rate; None for full context.
    """

    blocked: Tensor | None
    padding: Tensor | None
    positions: Tensor
    chunk: int | None


def prepend(cache: Cache, x: Tensor) -> tuple[Tensor, Cache]:
    """(N, K, D) with the cached frames before x, and the new cache: its last frames.  Nothing without a cache."""
    if cache is None:
        return x, None
    x = torch.cat([cache, x], dim=1)
    frames = int(cache.size(1))
    return x, x.narrow(1, int(x.size(1)) - frames, frames)


def with_past(cache: Cache, x: Tensor, frames: int) -> tuple[Tensor, Cache]:
    """(N, frames + T, D): x after the `frames` frames of the cache, or after zeros; and the new cache, if any."""
    return (F.pad(x, (0, 0, frames, 0)), None) if cache is None else prepend(cache, x)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, T, H * d) to (N, H, T, d)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(N, H, T, d) to (N, T, H * d)."""
    return x.transpose(1, 2).flatten(2)


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


def whitening_schedule(limit: float, ratio: float = 2.0) -> ScheduledFloat:
    return ScheduledFloat((0, limit), (20000, ratio * limit))


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
        all_keys, cached_key = prepend(cached_key, key)
        scores = split_heads(query, self.heads) @ split_heads(all_keys, self.heads).transpose(2, 3)  # (N, H, T, K)
        if not self.training or random.random() >= float(self.pos_emb_skip_rate):
            scores = scores + self.position_scores(pos_query, context.positions, int(scores.size(3)))
        if self.training and random.random() < 0.1:
            scores = penalize_large_values(scores, limit=25.0, penalty=1e-4)
        if context.blocked is not None:
            # -1000 and not -inf: padding frames may see nothing at all, and exp(-1000) is exactly 0 as well
            scores = scores.masked_fill(context.blocked, -1000.0)
        return scores.softmax(dim=3), cached_key, (query, key)

    def position_scores(self, pos_query: Tensor, positions: Tensor, keys: int) -> Tensor:
        """(N, H, T, K): product of each query's positional part with the encoding of each key's offset."""
        encoded = self.linear_pos(positions).unflatten(1, (self.heads, -1)).permute(1, 2, 0)  # (H, d, T + K - 1)
        by_offset = split_heads(pos_query, self.heads) @ encoded  # (N, H, T, T + K - 1)
        # row t begins at offset -t: step one column less per row
        batch, heads, queries, offsets = by_offset.size(0), self.heads, *map(int, by_offset.shape[2:])
        if torch.onnx.is_in_onnx_export():  # which knows no strides; the same by reshaping, whose gradient costs more
            if queries == 1:
                return by_offset
            rows = by_offset.flatten(2)[:, :, queries - 1 : queries * offsets - 1]
            return rows.unflatten(2, (queries, offsets - 1))[..., :keys]
        n, h, t, o = by_offset.stride()
        return by_offset.as_strided((batch, heads, queries, keys), (n, h, t - o, o), o * (queries - 1))


class SelfAttention(nn.Module):
    """Values weighted by given attention weights."""

    def __init__(self, dim: int, heads: int, value_head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(dim, heads * value_head_dim)
        self.out_proj = scaled_linear(heads * value_head_dim, dim, 0.05)
        self.whiten = Whiten(1, whitening_schedule(7.5, 3.0), 0.01)

    def forward(self, x: Tensor, weights: Tensor, cached_value: Cache) -> tuple[Tensor, Cache, Tensor]:
        """x (N, T, D), weights (N, H, T, K) to (N, T, D), the new cache and the values of x (N, T, H * d)."""
        value = self.in_proj(x)
        all_values, cached_value = prepend(cached_value, value)
        x = self.out_proj(merge_heads(weights @ split_heads(all_values, self.heads)))
        return self.whiten(x), cached_value, value


class NonlinAttention(nn.Module):
    """Gated features, averaged over time with one head's attention weights and gated again."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, hidden * 3)
        self.balancer = Balancer(
            min_positive=ScheduledFloat((0, 0.25), (20000, 0.05)),
            max_positive=ScheduledFloat((0, 0.75), (20000, 0.95)),
            min_abs=0.5,
            max_abs=5.0,
        )
        self.out_proj = scaled_linear(hidden, dim, 0.05)
        self.whiten1 = Whiten(1, whitening_schedule(5.0), 0.01)
        self.whiten2 = Whiten(1, whitening_schedule(5.0, 3.0), 0.01)

    def forward(self, x: Tensor, weights: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """x (N, T, D), weights (N, 1, T, K), cache (N, K - T, hidden) to (N, T, D) and the new cache."""
        gate, x, out_gate = self.in_proj(x).chunk(3, dim=2)
        x = self.whiten1(x) * self.balancer(gate).tanh()
        x, cache = prepend(cache, x)
        x = (weights.squeeze(1) @ x) * out_gate
        return self.whiten2(self.out_proj(x)), cache


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: FloatLike) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, hidden)
        self.hidden_balancer = Balancer(min_positive=0.3, max_positive=1.0, min_abs=0.75, max_abs=5.0)
        self.out_proj = ActivationDropoutAndLinear(hidden, dim, SwooshL(), dropout, initial_scale=0.1)
        self.out_whiten = Whiten(1, whitening_schedule(7.5), 0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_whiten(self.out_proj(self.hidden_balancer(self.in_proj(x))))


class CentredDepthwiseConv1d(DepthwiseConv1d):
    """Depthwise convolution that sees equally far into the past and into the future."""

    def forward(self, x: Tensor, chunk: int | None, cache: Cache) -> tuple[Tensor, Cache]:
        """x (N, T, D) to (N, T, D); it runs on whole utterances, so there is no cache."""
        return depthwise_conv(x.unsqueeze(1), self, self.kernel_size[0] // 2).squeeze(1), cache


class ChunkCausalDepthwiseConv1d(nn.Module):
    """Depthwise convolution that sees the past and its own chunk, but no later chunk.

    The sum of a causal convolution of half the width and one confined to the chunk, the latter scaled
    by the position in the chunk to make up for the taps that its borders cut off.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.causal_conv = DepthwiseConv1d(channels, (kernel + 1) // 2)
        self.chunkwise_conv = DepthwiseConv1d(channels, kernel)
        self.chunkwise_conv_scale = nn.Parameter(torch.zeros(2, channels, kernel))
        with torch.no_grad():
            self.causal_conv.bias.uniform_(-0.1, 0.1)

    def forward(self, x: Tensor, chunk: int | None, cache: Cache) -> tuple[Tensor, Cache]:
        """x (N, T, D), cache (N, kernel // 2, D) or None to (N, T, D) and the new cache; T need not fill chunks."""
        frames = int(x.size(1))
        past, new_cache = with_past(cache, x, self.kernel // 2)
        if cache is not None and by_products(int(past.size(1)), frames, self.causal_conv.groups):
            scale = self.chunk_scale(frames)
            return convolve_chunk(past, frames, self.causal_conv, self.chunkwise_conv, scale), new_cache
        chunk = frames if chunk is None or chunk > frames else chunk
        if frames % chunk:
            x = F.pad(x, (0, 0, 0, -frames % chunk))
        within = depthwise_conv(x.unflatten(1, (-1, chunk)), self.chunkwise_conv, self.kernel // 2)
        within = (within * self.chunk_scale(chunk)).flatten(1, 2)[:, :frames]
        return depthwise_conv(past.unsqueeze(1), self.causal_conv, 0).squeeze(1) + within, new_cache

    def chunk_scale(self, chunk: int) -> Tensor:
        """(chunk, D): 1 plus a learned correction near the left and one near the right border."""
        from_left, from_right = self.chunkwise_conv_scale.transpose(1, 2)  # (kernel, D) each
        if chunk < self.kernel:
            return 1.0 + from_left[:chunk] + from_right[self.kernel - chunk :]
        inner = chunk - self.kernel
        return 1.0 + F.pad(from_left, (0, 0, 0, inner)) + F.pad(from_right, (0, 0, inner, 0))


def streaming_parameters(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a full-context encoder as those of a streaming one.

    Over one endless chunk the two give the same output: the taps of the past go to the causal
    convolution, those of the future to the one within the chunk, half of the bias to each.
    """
    converted = dict(state_dict)
    for name in [name for name in state_dict if FULL_CONTEXT_CONVOLUTION.search(name)]:
        prefix, kind = name.rsplit(".", 1)
        value = converted.pop(name)
        if kind == "bias":
            past = future = value / 2
        else:
            middle = value.size(2) // 2  # (D, 1, kernel)
            past, future = value[:, :, : middle + 1].clone(), value.clone()
            future[:, :, : middle + 1] = 0.0
            converted[f"{prefix}.chunkwise_conv_scale"] = value.new_zeros(2, value.size(0), value.size(2))
        converted[f"{prefix}.causal_conv.{kind}"] = past
        converted[f"{prefix}.chunkwise_conv.{kind}"] = future
    return converted


class Convolution(nn.Module):
    """Gated linear unit, depthwise convolution over time, bottleneck.

    Args:
      depthwise: makes the convolution over time of (dim, kernel); see ChunkCausalDepthwiseConv1d.
    """

    def __init__(self, dim: int, kernel: int, depthwise: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.balancer1 = Balancer(
            min_positive=ScheduledFloat((0, 0.05), (8000, 0.025)),
            max_positive=1.0,
            min_abs=1.5,
            max_abs=ScheduledFloat((0, 5.0), (8000, 10.0)),
        )
        self.depthwise_conv = depthwise(dim, kernel)
        self.balancer2 = Balancer(
            min_positive=ScheduledFloat((0, 0.1), (8000, 0.05)),
            max_positive=1.0,
            min_abs=ScheduledFloat((0, 0.2), (20000, 0.5)),
            max_abs=10.0,
        )
        self.whiten = Whiten(1, whitening_schedule(7.5), 0.01)
        self.out_proj = ActivationDropoutAndLinear(dim, dim, SwooshR(), 0.0, initial_scale=0.05)

    def forward(self, x: Tensor, padding: Tensor | None, chunk: int | None, cache: Cache) -> tuple[Tensor, Cache]:
        """
        Args:
          x: (N, T, D).
          padding: (N, T) bool, True at padding frames; None where there are none.
          chunk: frames per chunk; None for full context.
          cache: of the convolution over time, or None for whole utterances.
        Returns:
          (N, T, D) and the new cache.
        """
        x, gate = self.in_proj(x).chunk(2, dim=2)
        x = x * self.balancer1(gate).sigmoid()
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(2), 0.0)
        x, cache = self.depthwise_conv(x, chunk, cache)
        return self.out_proj(self.whiten(self.balancer2(x))), cache


class Bypass(nn.Module):
    """Interpolates between a module's input and its output with one learned weight per channel.

    Args:
      skip_rate: chance, per utterance, to skip the module altogether while training.
    """

    def __init__(self, dim: int, skip_rate: FloatLike = 0.0) -> None:
        super().__init__()
        self.bypass_scale = nn.Parameter(torch.full((dim,), 0.5))
        self.skip_rate = skip_rate
        self.scale_min = ScheduledFloat((0, 0.9), (20000, 0.2))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """(N, T, D) each."""
        scale = self.bypass_scale
        if self.training:
            scale = limit_parameter(scale, float(self.scale_min), 1.0, True)
            if float(self.skip_rate) > 0:
                keep = torch.rand(before.size(0), 1, 1, device=before.device) > float(self.skip_rate)
                scale = scale * keep  # (N, 1, D)
        return before + (after - before) * scale.to(after.dtype)


def let_in_one_by_one(bypasses: Sequence[Bypass], begin: float, end: float, final: float) -> None:
    """Schedules how often layers are skipped in training.

    Between the counts of batches `begin` and `end` each layer in order has its turn: until then it is skipped at a
    rate of 0.5, which falls to `final` during its turn.

    Args:
      bypasses: one around each layer.
    """
    turn = (end - begin) / len(bypasses)
    for i, bypass in enumerate(bypasses):
        start = begin + i * turn
        bypass.skip_rate = ScheduledFloat((start, 0.5), (start + turn, final))


class SimpleDownsample(nn.Module):
    """Weighted mean of groups of `factor` frames; a last partial group repeats its last frame."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.bias = nn.Parameter(torch.zeros(factor))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) to (N, ceil(T / factor), D)."""
        missing = -int(x.size(1)) % self.factor
        if missing:
            x = torch.cat([x, x[:, -1:].expand(-1, missing, -1)], dim=1)
        weights = self.bias.softmax(dim=0).to(x.dtype)
        return (x.unflatten(1, (-1, self.factor)) * weights.unsqueeze(1)).sum(dim=2)


def upsample(x: Tensor, factor: int, frames: int) -> Tensor:
    """Repeats every frame of (N, T, D) `factor` times, cut to `frames`."""
    return x.repeat_interleave(factor, dim=1)[:, :frames]
