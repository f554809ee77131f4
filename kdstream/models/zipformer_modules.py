"""The parts of a Zipformer layer but attention: convolution, feed-forward, bypass and resampling.

The Conformer uses some of them too.  Every part has one forward.  The convolution takes the cached frames of a stream,
or None for whole utterances, and returns the new cache beside its output.
Names and arithmetic are icefall's; our layout is batch first.  Decoding and export trace a step: a size that `int`
converts becomes a constant of the traced graph, in which only the number of streams varies (see `frames_of`).

Shapes: N batch, T frames of x, K cached frames and those of x, D model width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.models.linear import ActivationDropoutAndLinear, Linear
from kdstream.models.on_cpu import DepthwiseConv1d, by_products, convolve_chunk, depthwise_conv
from kdstream.models.scaling import (
    Balancer,
    FloatLike,
    ScheduledFloat,
    SwooshL,
    SwooshR,
    Whiten,
    limit_parameter,
    working_dtype,
)
from kdstream.models.streaming import Cache, ChunkConfig, frames_of
from kdstream.models.windows import Windows

FULL_CONTEXT_CONVOLUTION = re.compile(r"conv_module[12]\.depthwise_conv\.(weight|bias)$")


def prepend(cache: Cache, x: Tensor, right: int) -> tuple[Tensor, Cache]:
    """(N, K, D) with the cached frames before x, and the new cache: its last frames before the `right` frames of right
    context.  Nothing without a cache."""
    if cache is None:
        return x, None
    x = torch.cat([cache, x], dim=1)
    frames = int(cache.size(1))
    return x, x.narrow(1, int(x.size(1)) - right - frames, frames)


def with_past(cache: Cache, x: Tensor, frames: int, chunk: ChunkConfig | None) -> tuple[Tensor, Cache]:
    """What a convolution over `frames` past frames and the frame itself runs on, and the new cache, if any.

    x (N, T, D) after the frames of the cache: (N, frames + T, D).  Whole utterances are x itself, after which
    `convolve_past` sees zeros.  With right context they are in steps: (N, steps, frames + step, D), each step after the
    frames before it.
    """
    right = 0 if chunk is None else chunk.right
    if cache is not None:
        return prepend(cache, x, right)
    if chunk is None or not right:
        return x, None
    return Windows.apply(x, 1, chunk.chunk, frames, right).squeeze(1).unflatten(0, (x.size(0), -1)), None


def convolve_past(past: Tensor, conv: DepthwiseConv1d, zeros: int) -> Tensor:
    """A convolution that sees a frame and the k - 1 before it: `with_past(..., k - 1, ...)` to (N, T, D).

    zeros: frames of zeros before a whole utterance that is not in steps.
    """
    if past.dim() == 4:
        return depthwise_conv(past, conv, 0, 0).flatten(1, 2)
    return depthwise_conv(past.unsqueeze(1), conv, zeros, 0).squeeze(1)


def whitening_schedule(limit: float, ratio: float = 2.0) -> ScheduledFloat:
    return ScheduledFloat((0, limit), (20000, ratio * limit))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: FloatLike) -> None:
        super().__init__()
        self.in_proj = Linear(dim, hidden)
        self.hidden_balancer = Balancer(min_positive=0.3, max_positive=1.0, min_abs=0.75, max_abs=5.0)
        self.out_proj = ActivationDropoutAndLinear(hidden, dim, SwooshL(), dropout, initial_scale=0.1)
        self.out_whiten = Whiten(1, whitening_schedule(7.5), 0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_whiten(self.out_proj(self.hidden_balancer(self.in_proj(x))))


class CentredDepthwiseConv1d(DepthwiseConv1d):
    """Depthwise convolution that sees equally far into the past and into the future."""

    def forward(self, x: Tensor, chunk: ChunkConfig | None, cache: Cache) -> tuple[Tensor, Cache]:
        """x (N, T, D) to (N, T, D); it runs on whole utterances, so there is no cache."""
        half = self.kernel_size[0] // 2
        return depthwise_conv(x.unsqueeze(1), self, half, half).squeeze(1), cache


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

    def forward(self, x: Tensor, chunk: ChunkConfig | None, cache: Cache) -> tuple[Tensor, Cache]:
        """x (N, T, D), cache (N, kernel // 2, D) or None to (N, T, D) and the new cache; T need not fill chunks.

        Right context counts as part of its chunk.
        """
        frames, half = frames_of(x, cache), self.kernel // 2
        past, new_cache = with_past(cache, x, half, chunk)
        if cache is not None and by_products(int(past.size(1)), frames, self.causal_conv.groups):
            scale = self.chunk_scale(frames)
            return convolve_chunk(past, frames, self.causal_conv, self.chunkwise_conv, scale), new_cache
        step = frames if chunk is None or chunk.step > frames else chunk.step
        if frames % step:
            x = F.pad(x, (0, 0, 0, -frames % step))
        if cache is None and past.dim() == 3:  # of one tensor that both convolutions keep for their gradients
            past = x
        rows = x.unsqueeze(1) if chunk is None else x.unflatten(1, (-1, step))
        within = depthwise_conv(rows, self.chunkwise_conv, half, half)
        within = (within * self.chunk_scale(step)).flatten(1, 2)
        causal = convolve_past(past, self.causal_conv, half if cache is None else 0)
        return (causal[:, :frames] + within[:, :frames]).to(x.dtype), new_cache

    def chunk_scale(self, chunk: int) -> Tensor:
        """(chunk, D): 1 plus a learned correction near the left and one near the right border."""
        from_left, from_right = self.chunkwise_conv_scale.transpose(1, 2)  # (kernel, D) each
        inner = chunk - self.kernel  # below 0, it cuts
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


def is_streaming(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether parameters are those of a streaming Zipformer."""
    return any("causal_conv" in name for name in state_dict)


class Convolution(nn.Module):
    """Gated linear unit, depthwise convolution over time, bottleneck.

    Args:
      depthwise: makes the convolution over time of (dim, kernel); see ChunkCausalDepthwiseConv1d.
    """

    def __init__(self, dim: int, kernel: int, depthwise: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.in_proj = Linear(dim, 2 * dim)
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

    def forward(
        self, x: Tensor, padding: Tensor | None, chunk: ChunkConfig | None, cache: Cache
    ) -> tuple[Tensor, Cache]:
        """
        Args:
          x: (N, T, D).
          padding: (N, T) bool, True at padding frames; None where there are none.
          chunk: in frames of x; None for full context.
          cache: of the convolution over time, or None for whole utterances.
        Returns:
          (N, T, D) and the new cache.
        """
        projected = self.in_proj(x)
        x, gate = projected.chunk(2, dim=2)
        balanced = self.balancer1(gate)
        x = F.glu(projected, dim=2) if balanced is gate else x * balanced.sigmoid()  # the same, in one pass if it may
        if padding is not None:
            x = x.masked_fill_(padding.unsqueeze(2), 0.0)
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
        scale = scale.to(after.dtype)
        return BypassFunction.apply(before, after, scale) if after.requires_grad else torch.lerp(before, after, scale)


class BypassFunction(torch.autograd.Function):
    """torch.lerp(before, after, scale); keeps the difference of the two alone, in the dtype of autocast."""

    @staticmethod
    def forward(ctx, before: Tensor, after: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward((after - before).to(working_dtype(after)), scale)
        return torch.lerp(before, after, scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        difference, scale = ctx.saved_tensors
        by_after = grad * scale
        return grad - by_after, by_after, (grad * difference).sum_to_size(scale.shape)


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
        groups = x.unflatten(1, (-1, self.factor))
        return GroupMeanFunction.apply(groups, weights) if x.requires_grad else group_mean(groups, weights)


def group_mean(groups: Tensor, weights: Tensor) -> Tensor:
    """(N, T, factor, D) by weights (factor,): (N, T, D)."""
    return (groups * weights.unsqueeze(1)).sum(dim=2)


class GroupMeanFunction(torch.autograd.Function):
    """`group_mean`; keeps the groups in the dtype of autocast."""

    @staticmethod
    def forward(ctx, groups: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(groups.to(working_dtype(groups)), weights)
        return group_mean(groups, weights)

    @staticmethod
    def backward(ctx, grad: Tensor):
        groups, weights = ctx.saved_tensors
        grad = grad.unsqueeze(2)
        return grad * weights.unsqueeze(1), (grad * groups).sum(dim=(0, 1, 3))


def upsample(x: Tensor, factor: int, frames: int) -> Tensor:
    """Repeats every frame of (N, T, D) `factor` times, cut to `frames`."""
    return x.repeat_interleave(factor, dim=1)[:, :frames]
