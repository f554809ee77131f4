"""The Zipformer encoder (arXiv 2310.11230), streaming and not, with one forward for all modes.

A sequence of stacks, each running at its own frame rate; `attention.py` and `zipformer_modules.py` hold
the parts of a layer.  Parameter names, shapes and arithmetic are those of icefall's `zipformer` recipe, so checkpoints
pass in both directions.

Shapes: N batch, T encoder frames (20 ms), D model width of a stack, H heads.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from kdstream.config.sections import ModelConfig
from kdstream.models.attention import (
    AttentionWeights,
    FrameContext,
    NonlinAttention,
    QueryKeyValue,
    SelfAttention,
    view_of,
)
from kdstream.models.checkpointing import CheckpointedLayer
from kdstream.models.positions import relative_positions
from kdstream.models.scaling import (
    Balancer,
    BiasNorm,
    FloatLike,
    ScheduledFloat,
    Whiten,
    convert_channels,
    full_width,
    working_dtype,
)
from kdstream.models.streaming import OUTPUT_DOWNSAMPLING, Cache, ChunkConfig, StreamingEncoder, TapRecorder, frames_of
from kdstream.models.windows import in_steps, own_frames, record_layer
from kdstream.models.zipformer_modules import (
    Bypass,
    CentredDepthwiseConv1d,
    ChunkCausalDepthwiseConv1d,
    Convolution,
    FeedForward,
    SimpleDownsample,
    let_in_one_by_one,
    streaming_parameters,
    upsample,
    whitening_schedule,
)

WARMUP_BATCHES = 4000.0  # over which layers are let in, stack after stack


class ZipformerLayer(CheckpointedLayer):
    """One layer: attention weights, three feed-forwards, two attentions and two convolutions between two bypasses."""

    num_caches = 6

    def __init__(self, config: ModelConfig, stack: int, dropout: FloatLike) -> None:
        super().__init__()
        dim = config.encoder_dim[stack]
        heads = config.num_heads[stack]
        feedforward = config.feedforward_dim[stack]
        kernel = config.cnn_module_kernel[stack]
        value_head_dim = config.value_head_dim[stack]
        depthwise = ChunkCausalDepthwiseConv1d if config.causal else CentredDepthwiseConv1d

        def skip_rate() -> ScheduledFloat:
            return ScheduledFloat((0, 0.2), (4000, 0.05), (16000, 0.0))

        self.bypass = Bypass(dim, ScheduledFloat((0, 0.5), (4000, 0.02)))
        self.bypass_mid = Bypass(dim)
        self.bypass_scale = nn.Parameter(torch.full((dim,), 0.5))  # used by nobody; icefall's checkpoints have it
        self.attention_skip_rate, self.conv_skip_rate = skip_rate(), skip_rate()
        self.ff2_skip_rate = ScheduledFloat((0, 0.1), (4000, 0.01), (50000, 0.0))
        self.ff3_skip_rate = ScheduledFloat((0, 0.1), (4000, 0.01), (50000, 0.0))
        self.const_attention_rate = ScheduledFloat((0, 0.25), (4000, 0.025))

        self.self_attn_weights = AttentionWeights(
            dim, config.pos_dim, heads, config.query_head_dim[stack], config.pos_head_dim[stack]
        )
        self.self_attn1 = SelfAttention(dim, heads, value_head_dim)
        self.self_attn2 = SelfAttention(dim, heads, value_head_dim)
        self.feed_forward1 = FeedForward(dim, feedforward * 3 // 4, dropout)
        self.feed_forward2 = FeedForward(dim, feedforward, dropout)
        self.feed_forward3 = FeedForward(dim, feedforward * 5 // 4, dropout)
        self.nonlin_attention = NonlinAttention(dim, 3 * dim // 4)
        self.conv_module1 = Convolution(dim, kernel, depthwise)
        self.conv_module2 = Convolution(dim, kernel, depthwise)
        self.norm = BiasNorm(dim)

        self.balancer1 = Balancer(0.45, 0.55, 0.2, 4.0)
        self.balancer2 = Balancer(0.45, 0.55, 0.1, 4.0)
        self.balancer_na = Balancer(0.3, 0.7, ScheduledFloat((0, 0.004), (4000, 0.02)), prob=0.05)
        self.balancer_ff2 = Balancer(0.3, 0.7, ScheduledFloat((0, 0.0), (4000, 0.1)), 2.0, prob=0.05)
        self.balancer_ff3 = Balancer(0.3, 0.7, ScheduledFloat((0, 0.0), (4000, 0.2)), 4.0, prob=0.05)
        self.whiten = Whiten(1, whitening_schedule(4.0, 3.0), 0.01)

    def forward(
        self, x: Tensor, context: FrameContext, caches: Sequence[Cache] | None
    ) -> tuple[Tensor, list[Cache], QueryKeyValue]:
        """
        Args:
          x: (N, T, D).
          caches: the layer's `num_caches` tensors, or None for whole utterances.
        Returns:
          (N, T, D); the new caches; query, key and first value of x, each (N, T, H * d).
        """
        caches = caches or [None] * self.num_caches
        key_cache, nonlin_cache, value1_cache, value2_cache, conv1_cache, conv2_cache = caches
        before, rounded = x, x.to(working_dtype(x))  # once for the two modules that read it
        weights, key_cache, (query, key) = self.self_attn_weights(rounded, context, key_cache)
        attention_keep = self.sequence_mask(x, self.attention_skip_rate)

        x = x + self.feed_forward1(rounded)
        na, nonlin_cache = self.nonlin_attention(x, self.nonlin_weights(weights[:, :1]), context.view, nonlin_cache)
        x = add_masked(x, self.balancer_na(na), attention_keep)
        attended, value1_cache, value = self.self_attn1(x, weights, context.view, value1_cache)
        x = add_masked(x, attended, attention_keep)
        convolved, conv1_cache = self.conv_module1(x, context.padding, context.chunk, conv1_cache)
        x = add_masked(x, convolved, self.sequence_mask(x, self.conv_skip_rate))
        x = add_masked(x, self.balancer_ff2(self.feed_forward2(x)), self.sequence_mask(x, self.ff2_skip_rate))
        x = self.bypass_mid(before, x)

        attended, value2_cache, _ = self.self_attn2(x, weights, context.view, value2_cache)
        x = add_masked(x, attended, attention_keep)
        convolved, conv2_cache = self.conv_module2(x, context.padding, context.chunk, conv2_cache)
        x = add_masked(x, convolved, self.sequence_mask(x, self.conv_skip_rate))
        x = add_masked(x, self.balancer_ff3(self.feed_forward3(x)), self.sequence_mask(x, self.ff3_skip_rate))
        x = self.bypass(before, self.norm(self.balancer1(x)))
        x = self.whiten(self.balancer2(x))
        return x, [key_cache, nonlin_cache, value1_cache, value2_cache, conv1_cache, conv2_cache], (query, key, value)

    def nonlin_weights(self, weights: Tensor) -> Tensor:
        """(N, 1, T, K) as given, or now and then in training a plain average over the frames that may be seen."""
        if self.training and random.random() < float(self.const_attention_rate):
            visible = (weights > 0).to(weights.dtype)
            return visible / visible.sum(dim=3, keepdim=True)
        return weights

    def sequence_mask(self, x: Tensor, rate: ScheduledFloat) -> Tensor | None:
        """(N, 1, 1): 0 for utterances that skip a module in this training step."""
        if not self.training or float(rate) == 0.0:
            return None
        return (torch.rand(x.size(0), 1, 1, device=x.device) > float(rate)).to(x.dtype)


def add_masked(x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """x + y * mask"""
    return x + y if mask is None else torch.addcmul(x, y, mask)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


@dataclass(frozen=True)
class StackTaps:
    """Shows the layers of one stack to a recorder, if there is one.

    lens: (N,) valid encoder frames.
    stride: encoder frames per frame of the stack.
    chunk: in encoder frames; None for full context.
    frames: encoder frames without right context.
    """

    recorder: TapRecorder | None
    stack: int
    lens: Tensor
    stride: int
    chunk: ChunkConfig | None
    frames: int

    def record(self, layer: int, inputs: Tensor, features: Tensor, query_key_value: QueryKeyValue) -> None:
        name = f"{self.stack}.{layer}"
        if self.recorder is not None and self.recorder.wants(name):
            lens = torch.div(self.lens + self.stride - 1, self.stride, rounding_mode="floor")
            chunk = None if self.chunk is None else self.chunk.downsampled(self.stride)
            frames = -(-self.frames // self.stride)
            shown = (inputs, features, *query_key_value)
            record_layer(self.recorder, name, shown, chunk, frames, lens, self.stride)


class Stack(nn.Module):
    """Layers at one frame rate."""

    def __init__(self, config: ModelConfig, stack: int, dropout: FloatLike) -> None:
        super().__init__()
        self.pos_dim = config.pos_dim
        count = config.num_encoder_layers[stack]
        layers = [ZipformerLayer(config, stack, dropout) for _ in range(count)]
        self.layers = nn.ModuleList(layers)
        self.pos_dropout = nn.Dropout(0.15)
        # the front end learns first, then the layers, from the bottom up
        span = WARMUP_BATCHES / (len(config.encoder_dim) + 1)
        final = 0.035 * config.downsampling_factor[stack] ** 0.5
        let_in_one_by_one([layer.bypass for layer in layers], span * (stack + 1), span * (stack + 2), final)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        context: FrameContext,
        caches: Sequence[Sequence[Cache]] | None,
        taps: StackTaps,
    ) -> tuple[Tensor, list[Cache]]:
        """
        Args:
          x: (N, T, D).
          mask: (N, 1, D) channels to keep in this training step, or None.
          caches: one list of tensors per layer, or None.
          taps: records the layers that are wanted.
        Returns:
          (N, T, D) and the new caches of all layers in one list.
        """
        context = replace(context, positions=self.pos_dropout(context.positions))
        new_caches: list[Cache] = []
        x = masked(x, mask)
        for i, layer in enumerate(self.layers):
            inputs = x
            x, layer_caches, query_key_value = layer(x, context, caches[i] if caches else None)
            taps.record(i, inputs, x, query_key_value)
            x = masked(x, mask)
            new_caches += layer_caches
        return x, new_caches


class DownsampledStack(nn.Module):
    """A stack that runs at a lower frame rate, with its input bypassed to its output."""

    def __init__(self, config: ModelConfig, stack: int, dropout: FloatLike) -> None:
        super().__init__()
        self.factor = config.downsampling_factor[stack]
        self.downsample = SimpleDownsample(self.factor)
        self.encoder = Stack(config, stack, dropout)
        self.out_combiner = Bypass(config.encoder_dim[stack])

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        context: FrameContext,
        caches: Sequence[Sequence[Cache]] | None,
        taps: StackTaps,
    ) -> tuple[Tensor, list[Cache]]:
        """As Stack; x and the result are at the encoder's frame rate, everything else at the stack's."""
        slow, new_caches = self.encoder(self.downsample(x), mask, context, caches, taps)
        return self.out_combiner(x, upsample(slow, self.factor, frames_of(x, caches))), new_caches


class Zipformer(StreamingEncoder):
    """The stacks, and the mean of pairs of frames at the end.

    Args:
      config: resolved.
    """

    streaming_parameters = staticmethod(streaming_parameters)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, max(config.encoder_dim), math.lcm(OUTPUT_DOWNSAMPLING, *config.downsampling_factor))
        dropout = ScheduledFloat((0, 0.3), (20000, 0.1))
        self.encoders = nn.ModuleList(
            (Stack if factor == 1 else DownsampledStack)(config, i, dropout)
            for i, factor in enumerate(config.downsampling_factor)
        )
        self.downsample_output = SimpleDownsample(OUTPUT_DOWNSAMPLING)

    @staticmethod
    def input_dim(config: ModelConfig) -> int:
        return config.encoder_dim[0]

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
        frames = frames_of(x, caches) - (0 if chunk is None else chunk.right)
        if caches is None:
            x = in_steps(x, chunk)
        hidden = self.hidden(x, x_lens, chunk, processed)
        masks = self.feature_masks(x)
        outputs: list[Tensor] = []
        new_caches: list[Cache] = []
        size = ZipformerLayer.num_caches
        by_layer = iter([caches[i : i + size] for i in range(0, len(caches), size)] if caches is not None else [])
        for i, encoder in enumerate(self.encoders):
            factor = self.config.downsampling_factor[i]
            context = self.frame_context(hidden, frames_of(x, caches), frames_of(hidden, caches), factor, chunk)
            stack_taps = StackTaps(taps, i, x_lens, factor, chunk, frames)
            stack_caches = list(islice(by_layer, self.config.num_encoder_layers[i])) or None
            x = convert_channels(x, self.config.encoder_dim[i])
            x, stack_caches = encoder(x, masks[i], context, stack_caches, stack_taps)
            outputs.append(x)
            new_caches += stack_caches
        x = self.downsample_output(own_frames(full_width(outputs, self.output_dim), chunk, frames))
        return x, torch.div(x_lens + 1, OUTPUT_DOWNSAMPLING, rounding_mode="floor"), new_caches

    def layer(self, name: str) -> nn.Module:
        """See StreamingEncoder."""
        stack, layer = map(int, name.split("."))
        downsampled = isinstance(self.encoders[stack], DownsampledStack)
        return self.encoders[stack].get_submodule(f"{'encoder.' * downsampled}layers.{layer}")

    def run_layer(self, layer: nn.Module, x: Tensor, lens: Tensor) -> tuple[Tensor, QueryKeyValue]:
        """See StreamingEncoder."""
        context = self.frame_context(self.hidden(x, lens, None, None), x.size(1), x.size(1), 1, None)
        x, _, query_key_value = layer(x, context, None)
        return x, query_key_value

    def frame_context(
        self, hidden: Tensor, frames: int, seen: int, factor: int, chunk: ChunkConfig | None
    ) -> FrameContext:
        """View, masks and positions of a stack that downsamples by `factor`.

        Args:
          hidden: (N, K) bool, see `hidden`; of `frames` new encoder frames and of those that are cached, `seen` in all.
          chunk: in encoder frames.
        """
        hidden, chunk = hidden[:, ::factor], None if chunk is None else chunk.downsampled(factor)
        queries, keys = ((count + factor - 1) // factor for count in (frames, seen))
        view = view_of(queries, keys, chunk)
        return FrameContext(
            view=view,
            blocked=view.blocked(hidden),
            padding=hidden if keys == queries else None,
            positions=relative_positions(*view.span(queries, keys), self.config.pos_dim, hidden.device),
            chunk=chunk,
        )

    def feature_masks(self, x: Tensor) -> list[Tensor | None]:
        """Per stack (N, 1, D): on some utterances all stacks drop the channels beyond encoder_unmasked_dim."""
        if not self.training:
            return [None] * len(self.encoders)
        keep = (torch.rand(2, x.size(0), 1, 1, device=x.device) > 0.125).to(x.dtype)
        upper, top = keep[0], keep[0] * keep[1]  # (N, 1, 1)
        masks = []
        for dim, unmasked in zip(self.config.encoder_dim, self.config.encoder_unmasked_dim, strict=True):
            middle = (dim - unmasked) // 2
            ones = torch.ones_like(upper).expand(-1, -1, unmasked)
            pieces = [ones, upper.expand(-1, -1, middle), top.expand(-1, -1, dim - unmasked - middle)]
            masks.append(torch.cat(pieces, dim=2))
        return masks

    def cache_shapes(self, chunk: ChunkConfig) -> list[tuple[int, int]]:
        """Per layer: key, nonlinear attention, value 1, value 2, convolution 1, convolution 2."""
        shapes: list[tuple[int, int]] = []
        config = self.config
        for i, dim in enumerate(config.encoder_dim):
            left = chunk.left // config.downsampling_factor[i]
            value_dim = config.num_heads[i] * config.value_head_dim[i]
            key_dim = config.num_heads[i] * config.query_head_dim[i]
            history = config.cnn_module_kernel[i] // 2
            attention = [(left, key_dim), (left, 3 * dim // 4), (left, value_dim), (left, value_dim)]
            shapes += [*attention, (history, dim), (history, dim)] * config.num_encoder_layers[i]
        return shapes
