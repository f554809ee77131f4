"""The proof that an exported model says in every runtime what it says in torch.

All runtimes hear the same samples: an utterance and the silence that a client sends after it (`ChunkConfig.tail`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import sherpa_onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from kdstream.data.cuts import read_manifest, text_of
from kdstream.data.features import compute_fbank
from kdstream.data.reading import read_audio
from kdstream.data.tokenizer import WORD_START
from kdstream.decoding.audio import find_audio, read_audio_file
from kdstream.errors import UserError
from kdstream.evaluation import scoring
from kdstream.export.onnx import OnnxFiles
from kdstream.models.streaming import ChunkConfig
from kdstream.units import FRAMES_PER_SECOND, SAMPLE_RATE

MANIFESTS = (".jsonl", ".jsonl.gz", ".json")

Runtime = Callable[[Tensor], list[str]]  # samples (S,) at 16 kHz to pieces


class Speech(NamedTuple):
    """An utterance to check with: samples (S,) at 16 kHz, and what it says, "" where nobody knows."""

    samples: Tensor
    text: str = ""


class Heard(NamedTuple):
    """What a runtime heard: pieces, the seconds that it took, and the place of the first that is not as expected."""

    pieces: list[str]
    seconds: float
    difference: int | None


@dataclass
class OnnxStreams:
    """N streams between two chunks.

    caches: by name.
    tokens: said so far by each.
    predicted: (N, D) after them.
    """

    caches: dict[str, np.ndarray]
    tokens: list[list[int]]
    predicted: np.ndarray


class OnnxRecognizer:
    """Greedy search over exported files in onnxruntime: in its shortest form, what a runtime does.

    Args:
      pieces: of all tokens, in the order of their ids.
    """

    def __init__(self, files: OnnxFiles, pieces: Sequence[str], threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.encoder, self.decoder, self.joiner = (
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for path in files
        )
        self.pieces = pieces
        settings = self.encoder.get_modelmeta().custom_metadata_map
        self.window, self.shift = int(settings["T"]), int(settings["decode_chunk_len"])
        self.context_size = int(self.decoder.get_modelmeta().custom_metadata_map["context_size"])

    def __call__(self, samples: Tensor) -> list[str]:
        features = compute_fbank(samples).numpy()
        streams = self.open()
        for start in range(0, len(features) - self.window, self.shift):
            self.step(features[None, start : start + self.window], streams)
        return [self.pieces[token] for token in streams.tokens[0]]

    def open(self, count: int = 1) -> OnnxStreams:
        """Streams that have heard nothing yet."""
        tokens: list[list[int]] = [[] for _ in range(count)]
        return OnnxStreams(self.fresh_caches(count), tokens, self.predict(tokens))

    def step(self, x: np.ndarray, streams: OnnxStreams) -> None:
        """Decodes the next chunk x (N, window, F) of all streams."""
        encoded, streams.caches = self.encode(x, streams.caches)
        for frame in encoded.transpose(1, 0, 2):
            (logits,) = self.joiner.run(None, {"encoder_out": frame.copy(), "decoder_out": streams.predicted})
            best = logits.argmax(axis=1)
            (spoke,) = best.nonzero()
            if len(spoke):
                for row in spoke:
                    streams.tokens[row].append(int(best[row]))
                streams.predicted[spoke] = self.predict([streams.tokens[row] for row in spoke])

    def fresh_caches(self, count: int = 1) -> dict[str, np.ndarray]:
        """The caches of streams that have heard nothing yet, by name."""
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        _, *caches = self.encoder.get_inputs()
        return {c.name: np.zeros([count if dim == "N" else dim for dim in c.shape], types[c.type]) for c in caches}

    def encode(self, x: np.ndarray, caches: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """x (N, window, F) and the caches to (N, T, D) and the new caches."""
        encoded, *new = self.encoder.run(None, {"x": x, **caches})
        returned = dict(zip(caches, new, strict=False))  # processed_lens is not returned
        if "processed_lens" not in returned:  # of a Conformer the runtime itself counts, in feature frames
            returned["processed_lens"] = caches["processed_lens"] + self.shift
        return encoded, returned

    def predict(self, tokens: Sequence[list[int]]) -> np.ndarray:
        """(N, D) after the tokens of each stream."""
        contexts = [([-1] * (self.context_size - 1) + [0, *said])[-self.context_size :] for said in tokens]
        return self.decoder.run(None, {"y": np.array(contexts, np.int64)})[0]


class SherpaRecognizer:
    """Greedy search over exported files in sherpa-onnx."""

    def __init__(self, files: OnnxFiles, tokens: Path, threads: int = 1) -> None:
        self.recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
            tokens=str(tokens),
            encoder=str(files.encoder),
            decoder=str(files.decoder),
            joiner=str(files.joiner),
            num_threads=threads,
        )

    def __call__(self, samples: Tensor) -> list[str]:
        stream = self.recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE, samples.numpy())
        stream.input_finished()
        while self.recognizer.is_ready(stream):
            self.recognizer.decode_stream(stream)
        # it writes a space where a word begins
        return [piece.replace(" ", WORD_START) for piece in self.recognizer.tokens(stream)]


def read_speech(paths: Sequence[str]) -> dict[str, Speech]:
    """Audio files, those in directories, and the cuts of manifests, by path and cut.

    Raises UserError where one is missing, damaged or empty.
    """
    speech: dict[str, Speech] = {}
    for path in paths:
        if path.endswith(MANIFESTS):
            if not Path(path).is_file():
                raise UserError(f"--check {path}: no such file; give audio, a directory of it, or a manifest of cuts")
            cuts = {f"{path} {cut.id}": Speech(read_audio(cut), text_of(cut)) for cut in read_manifest(Path(path))}
            if not cuts:
                raise UserError(f"--check {path}: no cuts in it; give another manifest, or audio files")
            speech.update(cuts)
        else:
            speech.update((str(file), Speech(read_audio_file(file))) for file in find_audio([path]))
    return speech


def check(runtimes: dict[str, Runtime], speech: dict[str, Speech], chunk: ChunkConfig) -> dict[str, int]:
    """Prints what each runtime hears in each utterance, and how long it takes per second of it (real-time factor).

    At the end a line for each runtime: with the word error rate of those utterances whose text is known, and how much
    higher or lower that is than the first runtime's.

    Args:
      runtimes: the first is the one that the others are held against.
      speech: by name.
    Returns:
      For each runtime, how many of the utterances it hears differently.
    """
    width = max(map(len, runtimes))
    differing, busy = dict.fromkeys(runtimes, 0), dict.fromkeys(runtimes, 0.0)
    transcripts: dict[str, list[scoring.Transcript]] = {runtime: [] for runtime in runtimes}
    for runtime in runtimes.values():
        runtime(torch.zeros(SAMPLE_RATE))  # the first call of all is slower
    for name, (samples, text) in speech.items():
        print(f"{name}: {len(samples) / SAMPLE_RATE:.2f} s")
        for runtime, heard in listen(runtimes, with_tail(samples, chunk)).items():
            factor = heard.seconds * SAMPLE_RATE / len(samples)
            print(f"  {runtime:{width}}  RTF {factor:.3f}  {' '.join(heard.pieces)}")
            busy[runtime] += heard.seconds
            if text:
                transcripts[runtime].append(scoring.Transcript(name, text.split(), words_of(heard.pieces)))
            if heard.difference is not None:
                differing[runtime] += 1
                print(f"  {'':{width}}  differs from its token {heard.difference + 1} on")
    seconds = sum(len(utterance.samples) for utterance in speech.values()) / SAMPLE_RATE
    rates = word_error_rates(transcripts)
    for runtime in runtimes:
        same = len(speech) - differing[runtime]
        line = f"{runtime:{width}}  RTF {busy[runtime] / seconds:.3f}  the same tokens in {same} of {len(speech)}"
        print(f"{line}  {rates[runtime]}".rstrip())
    return differing


def words_of(pieces: Sequence[str]) -> list[str]:
    return "".join(pieces).replace(WORD_START, " ").split()


def word_error_rates(transcripts: dict[str, list[scoring.Transcript]]) -> dict[str, str]:
    """For each runtime "WER 3.06 % (+0.7 % of torch's)", the latter not of the first one; "" without transcripts."""
    if not any(transcripts.values()):
        return dict.fromkeys(transcripts, "")
    wers = {runtime: scoring.score(scoring.align(heard)).wer for runtime, heard in transcripts.items()}
    first, expected = next(iter(wers.items()))
    shown = {runtime: f"WER {wer:.2f} %" for runtime, wer in wers.items()}
    for runtime, wer in wers.items():
        if runtime != first and expected:
            shown[runtime] += f" ({100 * (wer / expected - 1):+.1f} % of {first}'s)"
    return shown


def with_tail(samples: Tensor, chunk: ChunkConfig) -> Tensor:
    """The samples and the silence that a client sends after them."""
    return F.pad(samples, (0, chunk.tail * SAMPLE_RATE // FRAMES_PER_SECOND))


def listen(runtimes: dict[str, Runtime], samples: Tensor) -> dict[str, Heard]:
    """What each runtime hears, and where it first differs from what the first one hears."""
    heard: dict[str, Heard] = {}
    expected: list[str] | None = None
    for name, runtime in runtimes.items():
        start = time.perf_counter()
        pieces = runtime(samples)
        seconds = time.perf_counter() - start
        expected = pieces if expected is None else expected
        pairs = enumerate(zip_longest(expected, pieces))
        heard[name] = Heard(pieces, seconds, next((place for place, (a, b) in pairs if a != b), None))
    return heard
