"""The Conformer encoder (arXiv 2005.08100), streaming and not, with one forward for all modes.

One stack at 40 ms: two 20 ms frames of the front end, side by side, are one frame of the model's width.
A layer is feed-forward, attention, convolution, feed-forward around one residual path.  Feed-forwards,
convolution, balancers and the bypass that skips layers in training are those of the Zipformer.

Positions are relative, by rotation (arXiv 2104.09864): query and key are turned by angles in proportion
to their places, so that a score depends on the offset between the two alone.  Unlike a bias for each
offset this leaves the scores to torch's fused scaled_dot_product_attention in training too, where
on a CPU a bias that is learned rules it out.

The convolution of a streaming model sees the past alone, that of a full-context one both sides.

Shapes: N batch, T frames (40 ms unless said otherwise), K frames that are attended to (T, or left context
+ T), D model width, H heads, d head width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.config.sections import ModelConfig
from kdstream.models.attention import QueryKeyValue, View, view_of
from kdstream.models.checkpointing import CheckpointedLayer
from kdstream.models.linear import Linear, scaled_linear
from kdstream.models.on_cpu import DepthwiseConv1d, by_products, shifted_kernels, sum_of_products
from kdstream.models.scaling import Balancer, BiasNorm, FloatLike, ScheduledFloat, Whiten
from kdstream.models.streaming import OUTPUT_DOWNSAMPLING, Cache, ChunkConfig, StreamingEncoder, TapRecorder, frames_of
from kdstream.models.windows import in_steps, own_frames, record_layer
from kdstream.models.zipformer_modules import (
    Bypass,
    CentredDepthwiseConv1d,
    Convolution,
    FeedForward,
    convolve_past,
    let_in_one_by_one,
    prepend,
    whitening_schedule,
    with_past,
)

WARMUP_BATCHES = 4000.0  # over which the front end learns and layers are let in, from the bottom up
LAYER_SKIP_RATE = 0.05  # after that
SHORTEST_TABLE = 1024  # frames for which angles are computed together
LONGEST_TRACED = 2**14  # frames of a traced whole utterance, eleven minutes: sherpa-onnx has no cosine in float64
SLOWEST_TURN = 10000.0  # frames per radian of the slowest rotation
FULL_CONTEXT_CONVOLUTION = re.compile(r"conv_module\.depthwise_conv\.weight$")


@dataclass(frozen=True)
class LayerContext:
    """What all layers share in one forward.

    view: what queries look at.
    mask: broadcasts to (N, 1, T, K) of its queries and keys, added to attention scores.
    padding: (N, T) bool, True at padding frames; None where there are none.
    chunk: in frames of 40 ms; None for full context.
    cos, sin: (K, d / 2) of the angles of the attended frames; the last T are those of x.
    """

    view: View
    mask: Tensor
    padding: Tensor | None
    chunk: ChunkConfig | None
    cos: Tensor
    sin: Tensor


def rotations(frames: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (frames, head_dim / 2) of the angles of successive frames, of the type and device of `like`."""
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        if isinstance(frames, int):  # the graph holds what it needs, as constants
            return _rotations(frames, head_dim, like.dtype, like.device)
        cos, sin = _rotations(LONGEST_TRACED, head_dim, like.dtype, like.device)
        return cos[:frames], sin[:frames]
    longest = max(SHORTEST_TABLE, 2 ** (frames - 1).bit_length())
    cos, sin = rotation_table(longest, head_dim, like.dtype, like.device)
    return cos[:frames], sin[:frames]


def _rotations(frames: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """`rotations`, computed by numpy, and in float64: only differences of angles matter, and float32 would round away
    those of late frames."""
    pairs = head_dim // 2
    speed = SLOWEST_TURN ** -(np.arange(pairs) / pairs)
    angles = np.outer(np.arange(frames), speed)
    with torch.inference_mode(False):  # a table that decoding has made may serve training
        cos, sin = (torch.from_numpy(values).to(device, dtype) for values in (np.cos(angles), np.sin(angles)))
    return cos, sin


rotation_table = lru_cache(maxsize=16)(_rotations)  # on a GPU nothing is sent for a length that has been there


def rotate(x: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """(N, T, H * d): the halves of each head are coordinates of d / 2 points that turn by the angles (T, d / 2)."""
    a, b = x.unflatten(2, (heads, 2, -1)).unbind(3)  # (N, T, H, d / 2) each
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=3).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d) + mask) V for (N, H, T or K, d); mask broadcasts to (N, H, T, K)."""
    # torch 1.13, which k2's PyPI wheel needs, knows no fused attention, nor does the ONNX opset that we export
    if hasattr(F, "scaled_dot_product_attention") and not torch.onnx.is_in_onnx_export():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = query @ key.transpose(2, 3) / math.sqrt(int(query.size(3))) + mask
    return scores.softmax(dim=3) @ value


class RotarySelfAttention(nn.Module):
    """Multi-head self-attention with relative positions by rotation.

    Queries, keys and values have one width per head, without which torch fuses nothing on a CPU.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = heads * head_dim
        self.in_proj = Linear(dim, 3 * self.width)
        self.balance_keys = Balancer(min_positive=0.4, max_positive=0.6, min_abs=0.0, max_abs=100.0, prob=0.025)
        self.whiten_keys = Whiten(heads, whitening_schedule(3.0), 0.025)
        self.out_proj = scaled_linear(self.width, dim, 0.05)
        self.whiten = Whiten(1, whitening_schedule(7.5, 3.0), 0.01)

    def forward(self, x: Tensor, context: LayerContext, cache: Cache) -> tuple[Tensor, Cache, QueryKeyValue]:
        """
        Args:
          x: (N, T, D).
          cache: (N, K - T, 2 H * d), keys and values of the left context before rotation; None for whole utterances.
        Returns:
          (N, T, D); the new cache; query, key and value of x, each (N, T, H * d), before rotation.
        """
        query, key, value = self.in_proj(x).chunk(3, dim=2)
        key = self.whiten_keys(self.balance_keys(key))
        cos, sin, view = context.cos, context.sin, context.view
        own = slice(None) if cache is None else slice(-int(x.size(1)), None)
        key_value, cache = prepend(cache, torch.cat([key, value], dim=2), view.right)
        keys, values = key_value.chunk(2, dim=2)
        turned_query = rotate(query, self.heads, cos[own], sin[own])
        turned_keys = rotate(keys, self.heads, cos, sin)
        attended = attend(
            view.queries(turned_query, self.heads),
            view.keys(turned_keys, self.heads),
            view.keys(values, self.heads),
            context.mask,
        )
        x = self.out_proj(view.frames(attended))
        return self.whiten(x), cache, (query, key, value)


class CausalDepthwiseConv1d(DepthwiseConv1d):
    """Depthwise convolution that sees a frame and those before it."""

    def forward(self, x: Tensor, chunk: ChunkConfig | None, cache: Cache) -> tuple[Tensor, Cache]:
        """x (N, T, D), cache (N, kernel - 1, D) or None to (N, T, D) and the new cache; of the chunk, only its right
        context makes a difference."""
        before = self.kernel_size[0] - 1
        past, new_cache = with_past(cache, x, before, chunk)
        seen, frames = frames_of(past, cache), frames_of(x, cache)
        if cache is not None and by_products(seen, frames, self.groups):
            return sum_of_products(past, shifted_kernels(self.weight, frames, seen), self.bias), new_cache
        return convolve_past(past, self, before if cache is None else 0), new_cache


class ConformerLayer(CheckpointedLayer):
    """Attention and convolution between two feed-forwards, and a bypass around all of it."""

    num_caches = 2

    def __init__(self, config: ModelConfig, dropout: FloatLike) -> None:
        super().__init__()
        (dim,), (hidden,), (heads,) = config.encoder_dim, config.feedforward_dim, config.num_heads
        (head_dim,), (kernel,) = config.query_head_dim, config.cnn_module_kernel
        depthwise = CausalDepthwiseConv1d if config.causal else CentredDepthwiseConv1d
        self.feed_forward1 = FeedForward(dim, hidden, dropout)
        self.self_attn = RotarySelfAttention(dim, heads, head_dim)
        self.conv_module = Convolution(dim, kernel, depthwise)
        self.feed_forward2 = FeedForward(dim, hidden, dropout)
        self.balancer1 = Balancer(0.45, 0.55, 0.2, 4.0)
        self.norm = BiasNorm(dim)
        self.bypass = Bypass(dim)
        self.balancer2 = Balancer(0.45, 0.55, 0.1, 4.0)
        self.whiten = Whiten(1, whitening_schedule(4.0, 3.0), 0.01)

    def forward(
        self, x: Tensor, context: LayerContext, caches: Sequence[Cache] | None
    ) -> tuple[Tensor, list[Cache], QueryKeyValue]:
        """x (N, T, D), the layer's `num_caches` tensors or None to the same; and query, key and value of x."""
        attention_cache, conv_cache = caches or [None] * self.num_caches
        before = x
        x = x + self.feed_forward1(x)
        attended, attention_cache, query_key_value = self.self_attn(x, context, attention_cache)
        x = x + attended
        convolved, conv_cache = self.conv_module(x, context.padding, context.chunk, conv_cache)
        x = x + convolved
        x = x + self.feed_forward2(x)
        x = self.bypass(before, self.norm(self.balancer1(x)))
        return self.whiten(self.balancer2(x)), [attention_cache, conv_cache], query_key_value


class Conformer(StreamingEncoder):
    """Layers at 40 ms, named 0.0, 0.1 and so on to taps.

    Args:
      config: resolved; one stack.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, config.encoder_dim[0], OUTPUT_DOWNSAMPLING)
        dropout = ScheduledFloat((0, 0.3), (20000, 0.1))
        layers = [ConformerLayer(config, dropout) for _ in range(config.num_encoder_layers[0])]
        self.layers = nn.ModuleList(layers)
        let_in_one_by_one([layer.bypass for layer in layers], WARMUP_BATCHES / 2, WARMUP_BATCHES, LAYER_SKIP_RATE)

    @staticmethod
    def input_dim(config: ModelConfig) -> int:
        return config.encoder_dim[0] // OUTPUT_DOWNSAMPLING

    @staticmethod
    def streaming_parameters(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The taps of the past keep their places; what those of the future would see, the present frame stands in for.

        Where nothing changes over time the two convolutions agree.
        """
        converted = dict(state_dict)
        for name in filter(FULL_CONTEXT_CONVOLUTION.search, state_dict):
            weight = state_dict[name]  # (D, 1, kernel)
            middle = weight.size(2) // 2
            causal = F.pad(weight[:, :, : middle + 1], (middle, 0))
            causal[:, :, -1] += weight[:, :, middle + 1 :].sum(dim=2)
            converted[name] = causal
        return converted

    def forward(
        self,
        x: Tensor,
        x_lens: Tensor,
        chunk: ChunkConfig | None = None,
        caches: list[Tensor] | None = None,
        processed: Tensor | None = None,
        taps: TapRecorder | None = None,
    ) -> tuple[Tensor, Tensor, list[Cache]]:
        """See StreamingEncoder."""
        frames = (frames_of(x, caches) - (0 if chunk is None else chunk.right) + 1) // OUTPUT_DOWNSAMPLING
        if caches is None:
            x = in_steps(x, chunk)
        hidden = self.hidden(x, x_lens, chunk, processed)
        x, chunk = side_by_side(x), None if chunk is None else chunk.downsampled(OUTPUT_DOWNSAMPLING)
        context = self.layer_context(hidden[:, ::OUTPUT_DOWNSAMPLING], chunk, x, caches)
        lens = torch.div(x_lens + 1, OUTPUT_DOWNSAMPLING, rounding_mode="floor")
        new_caches: list[Cache] = []
        for i, layer in enumerate(self.layers):
            size = ConformerLayer.num_caches
            layer_caches = caches[i * size : (i + 1) * size] if caches else None
            inputs = x
            x, layer_caches, query_key_value = layer(x, context, layer_caches)
            new_caches += layer_caches
            name = f"0.{i}"
            if taps is not None and taps.wants(name):
                shown = (inputs, x, *query_key_value)
                record_layer(taps, name, shown, chunk, frames, lens, OUTPUT_DOWNSAMPLING)
        return own_frames(x, chunk, frames), lens, new_caches

    def layer(self, name: str) -> nn.Module:
        """See StreamingEncoder."""
        return self.layers[int(name.split(".")[1])]

    def run_layer(self, layer: nn.Module, x: Tensor, lens: Tensor) -> tuple[Tensor, QueryKeyValue]:
        """See StreamingEncoder."""
        x, _, query_key_value = layer(x, self.layer_context(self.hidden(x, lens, None, None), None, x, None), None)
        return x, query_key_value

    def layer_context(
        self, hidden: Tensor, chunk: ChunkConfig | None, x: Tensor, caches: list[Tensor] | None
    ) -> LayerContext:
        """hidden: (N, K) bool, of the frames of x (N, T, D) and of those that are cached; chunk: in frames of x."""
        queries, keys = frames_of(x, caches), frames_of(hidden, caches)
        view = view_of(queries, keys, chunk)
        blocked = view.blocked(hidden)
        # -1000 and not -inf: padding frames may see nothing at all, and exp(-1000) is exactly 0 as well
        mask = torch.zeros_like(blocked, dtype=x.dtype).masked_fill(blocked, -1000.0)
        cos, sin = rotations(keys, self.config.query_head_dim[0], x)
        if chunk is not None and chunk.right and keys == queries:
            places = chunk.places(keys, x.device)
            cos, sin = cos[places], sin[places]
        return LayerContext(view, mask, hidden if keys == queries else None, chunk, cos, sin)

    def cache_shapes(self, chunk: ChunkConfig) -> list[tuple[int, int]]:
        """Per layer: keys and values, each H * d wide; inputs of the convolution over time."""
        config = self.config
        attention = chunk.left // OUTPUT_DOWNSAMPLING, 2 * config.num_heads[0] * config.query_head_dim[0]
        convolution = config.cnn_module_kernel[0] - 1, config.encoder_dim[0]
        return [attention, convolution] * config.num_encoder_layers[0]


def side_by_side(x: Tensor) -> Tensor:
    """(N, T, D / 2) of 20 ms frames to (N, ceil(T / 2), D) of 40 ms; an odd last frame stands beside itself."""
    if int(x.size(1)) % OUTPUT_DOWNSAMPLING:
        x = torch.cat([x, x[:, -1:]], dim=1)
    return x.unflatten(1, (-1, OUTPUT_DOWNSAMPLING)).flatten(2)
