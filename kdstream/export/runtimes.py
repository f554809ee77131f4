"""The runtimes that `check.py` compares: torch, onnxruntime and sherpa-onnx, each as a function of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import sherpa_onnx
import torch
from torch import Tensor

from kdstream.data.features import compute_fbank
from kdstream.data.tokenizer import UNKNOWN_PIECE
from kdstream.decoding.chunk_step import chunk_step
from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.search import Search
from kdstream.decoding.stream import StreamingDecoder, decode_whole
from kdstream.export.onnx import OnnxFiles
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer
from kdstream.units import SAMPLE_RATE
from kdstream.words import WORD_START

Runtime = Callable[[Tensor], list[str]]  # samples (S,) at 16 kHz to pieces


@dataclass
class OnnxStreams:
    """N streams between two chunks.

    caches: of the encoder, by name.
    tokens: of each stream so far.
    predicted: (N, D), the predictor's output after them.
    """

    caches: dict[str, np.ndarray]
    tokens: list[list[int]]
    predicted: np.ndarray


def run(session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs of an exported file, in their order."""
    return cast(list[np.ndarray], session.run(None, inputs))


def load(path: Path) -> onnxruntime.InferenceSession:
    """An exported file on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxEncoder:
    """The steps of an exported encoder in onnxruntime; one of whole utterances has one step and no caches."""

    def __init__(self, path: Path) -> None:
        self.encoder = load(path)
        settings = self.encoder.get_modelmeta().custom_metadata_map
        self.is_whole = "T" not in settings
        if not self.is_whole:
            self.window, self.shift = int(settings["T"]), int(settings["decode_chunk_len"])

    def windows(self, samples: Tensor) -> Iterator[np.ndarray]:
        """What the steps hear: (1, window, F) each."""
        features = compute_fbank(samples).numpy()
        if self.is_whole:
            yield features[None]
            return
        for start in range(0, len(features) - self.window, self.shift):
            yield features[None, start : start + self.window]

    def fresh_caches(self, count: int = 1) -> dict[str, np.ndarray]:
        """The caches of new streams, by name."""
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        caches = [] if self.is_whole else self.encoder.get_inputs()[1:]
        return {c.name: np.zeros([count if dim == "N" else dim for dim in c.shape], types[c.type]) for c in caches}

    def encode(self, x: np.ndarray, caches: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """x (N, window, F) and the caches to (N, T, D) and the new caches."""
        if self.is_whole:
            encoded, lens = run(self.encoder, {"x": x, "x_lens": np.full(len(x), x.shape[1])})
            return encoded[:, : lens.max()], caches
        encoded, *new = run(self.encoder, {"x": x, **caches})
        returned = dict(zip(caches, new, strict=False))  # processed_lens is not returned
        if "processed_lens" not in returned:  # of a Conformer the runtime itself counts, in feature frames
            returned["processed_lens"] = caches["processed_lens"] + self.shift
        return encoded, returned


class OnnxCtc(OnnxEncoder):
    """Greedy search over an exported CTC head in onnxruntime.

    Args:
      pieces: of all tokens, in the order of their ids.
    """

    def __init__(self, path: Path, pieces: Sequence[str]) -> None:
        super().__init__(path)
        self.pieces = pieces

    def __call__(self, samples: Tensor) -> list[str]:
        caches, best = self.fresh_caches(), [0]
        for x in self.windows(samples):
            log_probs, caches = self.encode(x, caches)
            best += log_probs[0].argmax(axis=1).tolist()
        return [self.pieces[token] for before, token in pairwise(best) if token not in (0, before)]


class OnnxRecognizer(OnnxEncoder):
    """Greedy search over exported files in onnxruntime: the shortest form of what a runtime does.

    Args:
      pieces: of all tokens, in the order of their ids.
      blank_penalty: what is taken from blank's logit.
    """

    def __init__(self, files: OnnxFiles, pieces: Sequence[str], blank_penalty: float = 0.0) -> None:
        super().__init__(files.encoder)
        self.decoder, self.joiner = load(files.decoder), load(files.joiner)
        self.pieces, self.blank_penalty = pieces, blank_penalty
        self.unk_id = pieces.index(UNKNOWN_PIECE) if UNKNOWN_PIECE in pieces else 0  # taken for blank, too
        self.context_size = int(self.decoder.get_modelmeta().custom_metadata_map["context_size"])

    def __call__(self, samples: Tensor) -> list[str]:
        streams = self.open()
        for x in self.windows(samples):
            self.step(x, streams)
        return [self.pieces[token] for token in streams.tokens[0]]

    def open(self, count: int = 1) -> OnnxStreams:
        """New streams."""
        tokens: list[list[int]] = [[] for _ in range(count)]
        return OnnxStreams(self.fresh_caches(count), tokens, self.predict(tokens))

    def step(self, x: np.ndarray, streams: OnnxStreams) -> None:
        """Decodes the next chunk x (N, window, F) of all streams."""
        encoded, streams.caches = self.encode(x, streams.caches)
        for frame in encoded.transpose(1, 0, 2):
            logits = run(self.joiner, {"encoder_out": frame.copy(), "decoder_out": streams.predicted})[0]
            logits[:, 0] -= self.blank_penalty
            best = logits.argmax(axis=1)
            (spoke,) = ((best != 0) & (best != self.unk_id)).nonzero()
            if len(spoke):
                for row in spoke:
                    streams.tokens[row].append(int(best[row]))
                streams.predicted[spoke] = self.predict([streams.tokens[row] for row in spoke])

    def predict(self, tokens: Sequence[list[int]]) -> np.ndarray:
        """(N, D) after the tokens of each stream."""
        contexts = [([-1] * (self.context_size - 1) + [0, *said])[-self.context_size :] for said in tokens]
        return run(self.decoder, {"y": np.array(contexts, np.int64)})[0]


class SherpaRecognizer:
    """Search over exported files in sherpa-onnx.

    Args:
      search: settings of `OnlineRecognizer.from_transducer`; without any it searches greedily.
    """

    def __init__(self, files: OnnxFiles, tokens: Path, threads: int = 1, **search: Any) -> None:
        self.recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
            tokens=str(tokens),
            encoder=str(files.encoder),
            decoder=str(files.decoder),
            joiner=str(files.joiner),
            num_threads=threads,
            **search,
        )

    def __call__(self, samples: Tensor) -> list[str]:
        stream = self.recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE, samples.numpy())
        stream.input_finished()
        while self.recognizer.is_ready(stream):
            self.recognizer.decode_stream(stream)
        # it writes a space where a word begins
        return [piece.replace(" ", WORD_START) for piece in self.recognizer.tokens(stream)]


class SherpaCtc(SherpaRecognizer):
    """Greedy search over an exported CTC head in sherpa-onnx."""

    def __init__(self, path: Path, tokens: Path) -> None:
        self.recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
            tokens=str(tokens), model=str(path), num_threads=1
        )


class SherpaOffline:
    """Search over an exported transducer of whole utterances in sherpa-onnx.

    Args:
      search: settings of `OfflineRecognizer.from_transducer`; without any it searches greedily.
    """

    def __init__(self, files: OnnxFiles, tokens: Path, **search: Any) -> None:
        self.offline = sherpa_onnx.OfflineRecognizer.from_transducer(
            tokens=str(tokens),
            encoder=str(files.encoder),
            decoder=str(files.decoder),
            joiner=str(files.joiner),
            num_threads=1,
            **search,
        )

    def __call__(self, samples: Tensor) -> list[str]:
        stream = self.offline.create_stream()
        stream.accept_waveform(SAMPLE_RATE, samples.numpy())
        self.offline.decode_stream(stream)
        return [piece.replace(" ", WORD_START) for piece in stream.result.tokens]


class SherpaOfflineCtc(SherpaOffline):
    """Greedy search over an exported CTC head of whole utterances in sherpa-onnx."""

    def __init__(self, path: Path, tokens: Path) -> None:
        self.offline = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
            tokens=str(tokens), model=str(path), num_threads=1
        )


def torch_runtime(
    model: Transducer, chunk: ChunkConfig | None, pieces: list[str], search: Search | None = None
) -> Runtime:
    """The model itself, chunk by chunk or in full context; greedy unless another search is given."""
    search = search or GreedySearch()
    if chunk is None:
        return lambda samples: [pieces[token] for token in whole_tokens(model, samples, search)]
    decoder = StreamingDecoder(model, chunk, search, 1, chunk_step(model, chunk, "torch"))

    def transcribe(samples: Tensor) -> list[str]:
        stream = decoder.open()
        stream.accept_features(compute_fbank(samples)[:-1])  # the last frame is the one that sherpa-onnx waits for
        while decoder.step():
            pass
        stream.closed = True
        return [pieces[token] for token in stream.result.tokens]

    return transcribe


def whole_tokens(model: Transducer, samples: Tensor, search: Search) -> list[int]:
    """The tokens of samples (S,), heard in full context."""
    features = compute_fbank(samples)
    (result,) = decode_whole(model, features.unsqueeze(0), torch.tensor([len(features)]), None, search)
    return result.tokens
