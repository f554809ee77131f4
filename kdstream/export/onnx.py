"""A streaming transducer as the three ONNX files that sherpa-onnx runs: encoder, decoder (predictor) and joiner.

sherpa-onnx takes inputs and outputs by their order and everything else from metadata; the names are icefall's, whose
own scripts run these files too.  What differs from one encoder to the next (caches, metadata) stands in one subclass
of `StreamingEncoder`; a new architecture adds a subclass and a line in `ENCODERS`.

Shapes: N streams, T output frames (40 ms), C predictor context, F features, D joiner width, V vocabulary.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
import torch.nn.functional as F
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.models.streaming import OUTPUT_DOWNSAMPLING, ChunkConfig, EncoderState
from kdstream.models.transducer import Joiner, Transducer

OPSET = 13
FRONTEND_CHANNELS = 128  # sherpa-onnx has no metadata for them
TRACED_STREAMS = 2  # with one, the tracer could not tell the dimension of streams from others of size 1


class OnnxFiles(NamedTuple):
    """Paths of one exported model."""

    encoder: Path
    decoder: Path
    joiner: Path


class StreamingEncoder(nn.Module):
    """One step of an encoder, with the projection that the joiner starts with.

    model_type: sherpa-onnx's name of the architecture.

    Args:
      model: in eval mode, on the CPU.
      chunk: with limited left context.
    """

    model_type: str

    def __init__(self, model: Transducer, chunk: ChunkConfig) -> None:
        super().__init__()
        self.model, self.chunk = model, chunk

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
        return (self.model.joiner.encoder_proj(out), *self.to_onnx(state))


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


class StreamingZipformer(StreamingEncoder):
    model_type = "zipformer2"
    of_layer = {
        "cached_key": FRAMES_FIRST,
        "cached_nonlin_attn": ONE_HEAD,
        "cached_val1": FRAMES_FIRST,
        "cached_val2": FRAMES_FIRST,
        "cached_conv1": FRAMES_LAST,
        "cached_conv2": FRAMES_LAST,
    }

    def __init__(self, model: Transducer, chunk: ChunkConfig) -> None:
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


class StreamingConformer(StreamingEncoder):
    """The whole state of a stream in two tensors.

    Of a Conformer sherpa-onnx keeps `attn` (L, left, N, D) and `conv` (L, K - 1, N, D), zeros at first, whose sizes it
    takes from metadata and whose numbers it does not look at.  There is no place for the front end's left context, so
    the numbers of a stream, those of the front end among them, fill both from the beginning, and L is as large as they
    need: of the presets, at 640 ms of left context, two more than there are layers (tiny) or one.

    It also tells how many feature frames a stream has consumed, but starts from 0 again with each segment, when the
    caches stay.  So we count ourselves, as far as it matters, in one of the numbers.
    """

    model_type = "conformer"

    def __init__(self, model: Transducer, chunk: ChunkConfig) -> None:
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


ENCODERS = {"zipformer": StreamingZipformer, "conformer": StreamingConformer}


class PredictorStep(nn.Module):
    """The predictor, with the projection that the joiner starts with."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.decoder, self.projection = model.decoder, model.joiner.decoder_proj

    def forward(self, y: Tensor) -> Tensor:
        """The last tokens (N, C), -1 where there are none yet, to (N, D)."""
        return self.projection(self.decoder(y, need_pad=False)).squeeze(1)


class JoinerStep(nn.Module):
    """The joiner after both of its projections."""

    def __init__(self, joiner: Joiner) -> None:
        super().__init__()
        self.joiner = joiner

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """(N, D) twice to logits (N, V)."""
        return self.joiner(encoder_out, decoder_out, project_input=False)


def export_onnx(model: Transducer, chunk: ChunkConfig, folder: Path, name: str) -> OnnxFiles:
    """Writes {encoder,decoder,joiner}-NAME-chunk-C-left-L.onnx into `folder`.

    Args:
      model: in eval mode, on the CPU.
      name: of the weights, e.g. epoch-30-avg-9.
    Raises:
      UserError: a chunk that does not fit the encoder, or a model that sherpa-onnx cannot run.
    """
    config = model.config
    if config.frontend_channels[-1] != FRONTEND_CHANNELS or config.blank_id != 0:
        raise UserError(
            f"--frontend-channels {','.join(map(str, config.frontend_channels))}: the last of them must be "
            f"{FRONTEND_CHANNELS} for sherpa-onnx, and the blank 0; train with such a model"
        )
    encoder = ENCODERS[config.encoder](model, chunk)
    stem = f"{name}-chunk-{chunk.chunk}-left-{chunk.left}.onnx"
    files = OnnxFiles(*(folder / f"{part}-{stem}" for part in OnnxFiles._fields))
    folder.mkdir(parents=True, exist_ok=True)

    caches, new_caches = encoder.caches(), encoder.new_caches()
    fresh = encoder.fresh_caches(TRACED_STREAMS)
    features = torch.zeros(TRACED_STREAMS, chunk.input_frames, config.feature_dim)
    _export(
        files.encoder,
        encoder,
        {"x": features, **dict(zip(caches, fresh, strict=True))},
        {"x": 0, **caches, "encoder_out": 0, **new_caches},
        {
            "model_type": encoder.model_type,
            "version": 1,
            "model_author": "kdstream",
            "T": chunk.input_frames,
            "decode_chunk_len": chunk.shift,
            **encoder.metadata(),
        },
    )
    context = torch.zeros(TRACED_STREAMS, config.context_size, dtype=torch.int64)
    _export(
        files.decoder,
        PredictorStep(model),
        {"y": context},
        {"y": 0, "decoder_out": 0},
        {"context_size": config.context_size, "vocab_size": config.vocab_size},
    )
    half = torch.zeros(TRACED_STREAMS, config.joiner_dim)
    _export(
        files.joiner,
        JoinerStep(model.joiner),
        {"encoder_out": half, "decoder_out": half},
        {"encoder_out": 0, "decoder_out": 0, "logit": 0},
        {"joiner_dim": config.joiner_dim},
    )
    return files


def _export(
    path: Path,
    module: nn.Module,
    inputs: dict[str, Tensor],
    stream_dims: dict[str, int],
    metadata: dict[str, Any],
) -> None:
    """Traces `module` on `inputs`; `stream_dims` says of each of them, and of each output, which dimension is N."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every number that becomes a constant: all but N should
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[name for name in stream_dims if name not in inputs],
            dynamic_axes={name: {dim: "N"} for name, dim in stream_dims.items()},
            opset_version=OPSET,
            dynamo=False,  # the newer exporter does not take dynamic axes of a variable number of inputs
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {key: _shown(value) for key, value in metadata.items()})
    onnx.save(model, str(path))


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def products_with_vectors(path: Path) -> list[str]:
    """Names of the matrix products whose weight is a vector, which has no channels."""
    graph = onnx.load(path).graph
    vectors = {weight.name for weight in graph.initializer if len(weight.dims) == 1}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in vectors]


def quantize(files: OnnxFiles) -> OnnxFiles:
    """Writes each file's *.int8.onnx: weights of matrix products as 7 bits of 8, activations scaled as they come.

    Each output channel has its own scale; with one for a whole matrix half as many utterances again would differ.
    The eighth bit would let sums of two products overflow 16 bits on x86 without VNNI instructions, and words change.
    """
    quantized = OnnxFiles(*(path.with_suffix(".int8.onnx") for path in files))
    logging.disable(logging.WARNING)  # it recommends to optimise the graph first, which changes no words
    try:
        for source, target in zip(files, quantized, strict=True):
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=products_with_vectors(source),
            )
    finally:
        logging.disable(logging.NOTSET)
    return quantized
