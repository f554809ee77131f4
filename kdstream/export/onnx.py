"""A transducer as the three ONNX files that sherpa-onnx runs: encoder, decoder (predictor) and joiner.

The encoder is a step of a stream or, in full context, a whole utterance; the other two files are the same.

sherpa-onnx takes inputs and outputs by their order and everything else from metadata; the names are icefall's, whose
own scripts run these files too.  What differs from one encoder to the next (caches, metadata) stands in
kdstream/models/onnx_step.py.

Shapes: N streams or utterances, T frames, C predictor context, D joiner width, V vocabulary.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from kdstream.config.flags import flag_value
from kdstream.decoding.ctc import ctc_log_probs
from kdstream.errors import UserError, option
from kdstream.files import replacing
from kdstream.models.encoders import ENCODERS
from kdstream.models.onnx_step import EncoderStep
from kdstream.models.streaming import ChunkConfig, pad_to_whole_chunks
from kdstream.models.transducer import Joiner, Transducer

OPSET = 13
FRONTEND_CHANNELS = 128  # sherpa-onnx has no metadata for them
TRACED_FRAMES = 200  # of an utterance: any number
TRACED_STREAMS = 2  # with one, the tracer could not tell the dimension of streams from others of size 1


class OnnxFiles(NamedTuple):
    """Paths of one exported model."""

    encoder: Path
    decoder: Path
    joiner: Path


class PredictorStep(nn.Module):
    """The predictor, with the projection that the joiner starts with."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.decoder, self.projection = model.decoder, model.joiner.decoder_proj

    def forward(self, y: Tensor) -> Tensor:
        """The last tokens (N, C), -1 where there are none yet, to (N, D)."""
        return self.projection(self.decoder(y, need_pad=False)).squeeze(1)


class CtcHead(nn.Module):
    """The CTC head, which takes <unk> for blank as our searches do."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.model = model

    def forward(self, encoder_out: Tensor) -> Tensor:
        """(N, T, D) to log probabilities (N, T, V)."""
        return ctc_log_probs(self.model, encoder_out)


class JoinerStep(nn.Module):
    """The joiner after both of its projections."""

    def __init__(self, joiner: Joiner) -> None:
        super().__init__()
        self.joiner = joiner

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """(N, D) twice to logits (N, V)."""
        return self.joiner(encoder_out, decoder_out, project_input=False)


class WholeEncoder(nn.Module):
    """An encoder in full context, with a head: at first the projection that the joiner starts with.

    Each utterance is followed by silence, as in our decoding, so that its words do not depend on its batch.  The
    exception is a streaming Zipformer: its one chunk ends where the longest utterance of the batch ends.
    """

    has_ctc = True

    def __init__(self, model: Transducer, model_type: str) -> None:
        super().__init__()
        self.model, self.model_type = model, model_type
        self.head: nn.Module = model.joiner.encoder_proj

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, T, F) of lengths (N,) to (N, T', D) in output frames of 40 ms, and lengths (N,)."""
        out, out_lens, _ = self.model.encode(*pad_to_whole_chunks(x, x_lens, self.model.max_downsampling))
        return self.head(out), out_lens


def export_onnx(model: Transducer, chunk: ChunkConfig | None, folder: Path, name: str) -> OnnxFiles:
    """Writes {encoder,decoder,joiner}-NAME-chunk-C-left-L.onnx into `folder`; -right-R follows where there is any.

    In full context these are {encoder,decoder,joiner}-NAME-offline.onnx.

    Args:
      model: in eval mode, on the CPU.
      chunk: None for full context.
      name: of the weights, e.g. epoch-30-avg-9.
    Raises:
      UserError: a chunk that does not fit the encoder, or a model that sherpa-onnx cannot run.
    """
    config, encoder = model.config, encoder_of(model, chunk)
    files = OnnxFiles(*(folder / f"{part}-{name}-{_of_chunk(chunk)}.onnx" for part in OnnxFiles._fields))
    folder.mkdir(parents=True, exist_ok=True)
    _export_encoder(files.encoder, encoder, "encoder_out")
    context = torch.zeros(TRACED_STREAMS, config.context_size, dtype=torch.int64)
    write_onnx(
        files.decoder,
        PredictorStep(model),
        {"y": context},
        {"y": 0, "decoder_out": 0},
        {"context_size": config.context_size, "vocab_size": config.vocab_size},
    )
    half = torch.zeros(TRACED_STREAMS, config.joiner_dim)
    write_onnx(
        files.joiner,
        JoinerStep(model.joiner),
        {"encoder_out": half, "decoder_out": half},
        {"encoder_out": 0, "decoder_out": 0, "logit": 0},
        {"joiner_dim": config.joiner_dim},
    )
    return files


def export_ctc(model: Transducer, chunk: ChunkConfig | None, folder: Path, name: str) -> Path | None:
    """Writes ctc-NAME-chunk-C-left-L.onnx, encoder and CTC head, for sherpa-onnx's from_zipformer2_ctc.

    In full context this is ctc-NAME-offline.onnx, for from_zipformer_ctc.

    Arguments and errors are those of `export_onnx`.  None where the model has no CTC head, or sherpa-onnx does not run
    one with its encoder.
    """
    encoder = encoder_of(model, chunk)
    if not (model.config.use_ctc and encoder.has_ctc):
        return None
    encoder.head = CtcHead(model)
    path = folder / f"ctc-{name}-{_of_chunk(chunk)}.onnx"
    _export_encoder(path, encoder, "log_probs")
    return path


def encoder_of(model: Transducer, chunk: ChunkConfig | None) -> EncoderStep | WholeEncoder:
    """The model's encoder as sherpa-onnx runs it.  Raises UserError as `export_onnx`."""
    config = model.config
    if chunk is not None and config.frontend_channels[-1] != FRONTEND_CHANNELS:
        raise UserError(
            f"the last of them must be {FRONTEND_CHANNELS} for sherpa-onnx",
            flag=option("frontend_channels", flag_value(config.frontend_channels)),
            fix="train with such a model",
        )
    step = ENCODERS.find(config.encoder).step
    if step is None:
        raise UserError("sherpa-onnx cannot run it", flag=option("encoder", config.encoder), fix="train another one")
    return WholeEncoder(model, step.model_type) if chunk is None else step(model, chunk)


def _of_chunk(chunk: ChunkConfig | None) -> str:
    if chunk is None:
        return "offline"
    return f"chunk-{chunk.chunk}-left-{chunk.left}" + (f"-right-{chunk.right}" if chunk.right else "")


def _export_encoder(path: Path, encoder: EncoderStep | WholeEncoder, output: str) -> None:
    """Writes an encoder; `output` is the name of what its head makes."""
    if isinstance(encoder, WholeEncoder):
        _export_whole(path, encoder, output)
        return
    chunk, caches = encoder.chunk, encoder.caches()
    fresh = encoder.fresh_caches(TRACED_STREAMS)
    features = torch.zeros(TRACED_STREAMS, chunk.input_frames, encoder.model.config.feature_dim)
    write_onnx(
        path,
        encoder,
        {"x": features, **dict(zip(caches, fresh, strict=True))},
        {"x": 0, **caches, output: 0, **encoder.new_caches()},
        {
            "model_type": encoder.model_type,
            "version": 1,
            "model_author": "kdstream",
            "T": chunk.input_frames,
            "decode_chunk_len": chunk.shift,
            **encoder.metadata(),
        },
    )


def _export_whole(path: Path, encoder: WholeEncoder, output: str) -> None:
    frames = {0: "N", 1: "T"}
    features = torch.zeros(TRACED_STREAMS, TRACED_FRAMES, encoder.model.config.feature_dim)
    lens = "log_probs_len" if output == "log_probs" else f"{output}_lens"  # as icefall calls them
    write_onnx(
        path,
        encoder,
        {"x": features, "x_lens": torch.tensor([TRACED_FRAMES, TRACED_FRAMES // 2])},
        {"x": frames, "x_lens": 0, output: frames, lens: 0},
        {
            "model_type": f"{encoder.model_type}{'_ctc' * (output == 'log_probs')}",
            "version": 1,
            "model_author": "kdstream",
            "comment": f"non-streaming {encoder.model_type}",
        },
    )


def write_onnx(
    path: Path,
    module: nn.Module,
    inputs: dict[str, Tensor],
    varying: Mapping[str, int | dict[int, str]],
    metadata: dict[str, Any],
) -> None:
    """Traces `module` on `inputs`.

    varying: of each of them, and of each output, which dimension is N, or the names of all dimensions that vary.
    """
    with replacing(path) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of every number that becomes a constant: all but N should
            torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                str(temporary),
                input_names=list(inputs),
                output_names=[name for name in varying if name not in inputs],
                dynamic_axes={name: {dims: "N"} if isinstance(dims, int) else dims for name, dims in varying.items()},
                opset_version=OPSET,
                dynamo=False,  # the newer exporter does not take dynamic axes of a variable number of inputs
            )
        model = onnx.load(str(temporary))
        onnx.helper.set_model_props(model, {key: _shown(value) for key, value in metadata.items()})
        onnx.save(model, str(temporary))


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def products_with_vectors(path: Path) -> list[str]:
    """Names of the matrix products whose weight is a vector, which has no channels."""
    graph = onnx.load(path).graph
    vectors = {weight.name for weight in graph.initializer if len(weight.dims) == 1}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in vectors]


def quantize(files: OnnxFiles) -> OnnxFiles:
    """`quantize_file` of each."""
    return OnnxFiles(*map(quantize_file, files))


def quantize_file(source: Path) -> Path:
    """Writes *.int8.onnx beside the file: weights of matrix products as 7 bits of 8, activations scaled as they come.

    Each output channel has its own scale; with one for a whole matrix half as many utterances again would differ.
    The eighth bit would let sums of two products overflow 16 bits on x86 without VNNI instructions, and words change.
    """
    target = source.with_suffix(".int8.onnx")
    logging.disable(logging.WARNING)  # it recommends to optimise the graph first, which changes no words
    try:
        with replacing(target) as temporary:
            quantize_dynamic(
                source,
                temporary,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=products_with_vectors(source),
            )
    finally:
        logging.disable(logging.NOTSET)
    return target
