"""One step of a streaming encoder in the form in which sherpa-onnx runs it: which caches, in which order and layout.

sherpa-onnx takes inputs and outputs by their order and everything else from metadata.  What differs from one encoder
to the next stands in one subclass of `EncoderStep` each; kdstream/export/onnx.py writes the file.

Shapes: N streams, T output frames (40 ms), F features, D joiner width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.config.sections import ModelConfig
from kdstream.models.streaming import OUTPUT_DOWNSAMPLING, ChunkConfig, EncoderState


class StreamingModel(Protocol):
    """What a step needs of a transducer."""

    config: ModelConfig
    joiner: Any

    def encode(
        self, features: Tensor, feature_lens: Tensor, chunk: ChunkConfig, state: EncoderState
    ) -> tuple[Tensor, Tensor, EncoderState]: ...

    def init_state(self, batch_size: int, chunk: ChunkConfig) -> EncoderState: ...


class EncoderStep(nn.Module):
    """One step of an encoder, with a head: at first the projection that the joiner starts with.

    model_type: sherpa-onnx's name of the architecture.
    has_ctc: whether sherpa-onnx runs this architecture with a CTC head, too.

    Args:
      model: in eval mode, on the CPU.
      chunk: with limited left context.
    """

    model_type: str
    has_ctc = False

    def __init__(self, model: StreamingModel, chunk: ChunkConfig) -> None:
        super().__init__()
        self.model, self.chunk = model, chunk
        self.head: nn.Module = model.joiner.encoder_proj

    def caches(self) -> dict[str, int]:
        """The caches that a step takes, in sherpa-onnx's order: names, and which dimension is the stream."""
        raise NotImplementedError

    def new_caches(self) -> dict[str, int]:
        """Those that it returns: the first of the ones that it takes, or all."""
        return {f"new_{name}": stream_dim for name, stream_dim in self.caches().items()}

    def fresh_caches(self, streams: int) -> list[Tensor]:
        """What a step takes of streams that have heard nothing yet."""
        return self.to_onnx(self.model.init_state(streams, self.chunk))

    def to_onnx(self, state: EncoderState) -> list[Tensor]:
        """Our state as the caches that a step returns."""
        raise NotImplementedError

    def to_torch(self, caches: Sequence[Tensor]) -> EncoderState:
        """The caches that a step takes as our state."""
        raise NotImplementedError

    def metadata(self) -> dict[str, Any]:
        """What sherpa-onnx must know of this architecture; sequences hold one number per stack."""
        raise NotImplementedError

    def forward(self, x: Tensor, *caches: Tensor) -> Sequence[Tensor]:
        """x (N, chunk.input_frames, F) and the caches to (N, T, D) and the new caches."""
        lens = torch.full((x.size(0),), self.chunk.input_frames)
        out, _, state = self.model.encode(x, lens, self.chunk, self.to_torch(caches))
        return (self.head(out), *self.to_onnx(state))


class Layout(NamedTuple):
    """How sherpa-onnx lays out one of our batch-first caches: which dimension is the stream; the way there and back."""

    stream_dim: int
    to_onnx: Callable[[Tensor], Tensor]
    to_torch: Callable[[Tensor], Tensor]


def _swapped(first: int, second: int, stream_dim: int) -> Layout:
    return Layout(stream_dim, lambda x: x.transpose(first, second), lambda x: x.transpose(first, second))


AS_IT_IS = Layout(0, lambda x: x, lambda x: x)
FRAMES_FIRST = _swapped(0, 1, stream_dim=1)  # (N, T, D) as (T, N, D)
FRAMES_LAST = _swapped(1, 2, stream_dim=0)  # (N, T, D) as (N, D, T)
ONE_HEAD = Layout(1, lambda x: x.unsqueeze(0), lambda x: x.squeeze(0))  # (N, T, D) as (1, N, T, D)


class ZipformerStep(EncoderStep):
    model_type = "zipformer2"
    has_ctc = True
    of_layer = {
        "cached_key": FRAMES_FIRST,
        "cached_nonlin_attn": ONE_HEAD,
        "cached_val1": FRAMES_FIRST,
        "cached_val2": FRAMES_FIRST,
        "cached_conv1": FRAMES_LAST,
        "cached_conv2": FRAMES_LAST,
    }

    def __init__(self, model: StreamingModel, chunk: ChunkConfig) -> None:
        super().__init__(model, chunk)
        layers = range(sum(model.config.num_encoder_layers))
        self.layouts = {f"{name}_{i}": layout for i in layers for name, layout in self.of_layer.items()}
        self.layouts.update(embed_states=AS_IT_IS, processed_lens=AS_IT_IS)

    def caches(self) -> dict[str, int]:
        return {name: layout.stream_dim for name, layout in self.layouts.items()}

    def to_onnx(self, state: EncoderState) -> list[Tensor]:
        return [layout.to_onnx(tensor) for layout, tensor in zip(self.layouts.values(), state.tensors(), strict=True)]

    def to_torch(self, caches: Sequence[Tensor]) -> EncoderState:
        tensors = [layout.to_torch(cache) for layout, cache in zip(self.layouts.values(), caches, strict=True)]
        return EncoderState.from_tensors(tensors)

    def metadata(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "encoder_dims": config.encoder_dim,
            "query_head_dims": config.query_head_dim,
            "value_head_dims": config.value_head_dim,
            "num_heads": config.num_heads,
            "num_encoder_layers": config.num_encoder_layers,
            "cnn_module_kernels": config.cnn_module_kernel,
            "left_context_len": [self.chunk.left // factor for factor in config.downsampling_factor],
        }


class ConformerStep(EncoderStep):
    """The whole state of a stream in two tensors.

    For a Conformer sherpa-onnx keeps two caches, `attn` (L, left, N, D) and `conv` (L, K - 1, N, D).  It takes their
    sizes from metadata, begins with zeros, and does not look at the numbers.  Neither has a place for the left context
    of the front end.  So all numbers of a stream, the front end's among them, are written into the two caches one after
    the other, and L is as large as they need.  At 640 ms of left context the tiny preset needs two more than it has
    layers, the other presets need one more.

    sherpa-onnx also says how many feature frames a stream has consumed.  But it counts from 0 again with each segment,
    while the caches stay.  So our own count, as far as it matters, is one of the numbers.
    """

    model_type = "conformer"

    def __init__(self, model: StreamingModel, chunk: ChunkConfig) -> None:
        super().__init__(model, chunk)
        fresh = model.init_state(1, chunk)
        self.shapes = [tuple(x.shape[1:]) for x in (*fresh.layers, fresh.embed, fresh.processed.unsqueeze(1))]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        (self.dim,), (kernel,) = model.config.encoder_dim, model.config.cnn_module_kernel
        self.frames = [chunk.left // OUTPUT_DOWNSAMPLING, kernel - 1]  # of each layer in attn and in conv
        self.layers = math.ceil(sum(self.sizes) / (sum(self.frames) * self.dim))

    def caches(self) -> dict[str, int]:
        return {"attn": 2, "conv": 2, "processed_lens": 0}

    def new_caches(self) -> dict[str, int]:
        return {"new_attn": 2, "new_conv": 2}

    def fresh_caches(self, streams: int) -> list[Tensor]:
        return [*super().fresh_caches(streams), torch.zeros(streams, dtype=torch.int64)]

    def to_onnx(self, state: EncoderState) -> list[Tensor]:
        counted = state.processed.clamp(max=self.chunk.left).to(state.embed.dtype)  # nobody asks about more
        numbers = torch.cat([x.flatten(1) for x in (*state.layers, state.embed, counted.unsqueeze(1))], dim=1)
        room = [self.layers * frames * self.dim for frames in self.frames]
        parts = F.pad(numbers, (0, sum(room) - sum(self.sizes))).split(room, dim=1)
        shapes = [(self.layers, frames, self.dim) for frames in self.frames]
        return [part.unflatten(1, shape).permute(1, 2, 0, 3) for part, shape in zip(parts, shapes, strict=True)]

    def to_torch(self, caches: Sequence[Tensor]) -> EncoderState:
        attn, conv, theirs = caches
        numbers = torch.cat([x.permute(2, 0, 1, 3).flatten(1) for x in (attn, conv)], dim=1)
        parts = numbers[:, : sum(self.sizes)].split(self.sizes, dim=1)
        *layers, embed, counted = (part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True))
        processed = counted.squeeze(1).to(torch.int64) + 0 * theirs  # an input that nothing uses would be left out
        return EncoderState(layers, embed, processed)

    def metadata(self) -> dict[str, Any]:
        left, past = self.frames
        return {
            "num_encoder_layers": self.layers,
            "left_context": left,
            "encoder_dim": self.dim,
            "cnn_module_kernel": past + 1,
            "pad_length": self.chunk.input_frames - self.chunk.shift,
        }
