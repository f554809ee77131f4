"""Streaming speed: how long a step takes that decodes one chunk of every stream, in several runtimes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from kdstream.audio.files import read_sound
from kdstream.benchmarks.names import FOR_ONE_STREAM, RUNTIMES
from kdstream.config.experiment import TOKENS_FILE
from kdstream.data.features import compute_fbank
from kdstream.decoding.chunk_step import chunk_step
from kdstream.decoding.search import Search
from kdstream.decoding.stream import StreamingDecoder
from kdstream.errors import UserError, option
from kdstream.export.onnx import OnnxFiles, export_onnx, quantize
from kdstream.export.runtimes import SherpaRecognizer
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer
from kdstream.units import SAMPLE_RATE

WARM_UP = 5  # steps that are not counted


@dataclass(frozen=True)
class Exported:
    """The model as files.

    by_precision: the ONNX files in "float32" and in "int8".
    tokens: the file in which sherpa-onnx reads them.
    """

    by_precision: dict[str, OnnxFiles]
    tokens: Path


def export(model: Transducer, chunk: ChunkConfig, folder: Path) -> Exported:
    """Writes the files into `folder`.  The pieces have numbers as names, for nobody reads them."""
    files = export_onnx(model, chunk, folder, "bench")
    pieces = ["<blk>", *(f"t{number}" for number in range(1, model.config.vocab_size))]
    tokens = folder / TOKENS_FILE
    tokens.write_text("".join(f"{piece} {number}\n" for number, piece in enumerate(pieces)))
    return Exported({"float32": files, "int8": quantize(files)}, tokens)


@dataclass(frozen=True)
class Setup:
    """What every runtime decodes with.

    clock: seconds since any moment.
    exported: needed by all runtimes but our own.
    """

    model: Transducer
    chunk: ChunkConfig
    search: Search
    threads: int
    clock: Callable[[], float]
    exported: Exported | None = None

    @property
    def files(self) -> Exported:
        """The exported model.  Raises ValueError where there is none."""
        if self.exported is None:
            raise ValueError("this runtime decodes with an exported model")
        return self.exported


class Runtime(Protocol):
    """A runtime that decodes streams; made from a Setup."""

    def decode(self, waves: Sequence[np.ndarray]) -> list[float]:
        """Decodes one stream for each of `waves` (samples in [-1, 1] at 16 kHz), all together, one chunk a step.

        Returns:
          The seconds that each step took, without the computation of features.
        """
        ...


class OwnRuntime:
    """StreamingDecoder, with one of its engines."""

    def __init__(self, setup: Setup, engine: str) -> None:
        self.setup = setup
        torch.set_num_threads(setup.threads)
        encode = chunk_step(setup.model, setup.chunk, engine)
        self.decoder = StreamingDecoder(setup.model, setup.chunk, setup.search, sys.maxsize, encode)

    def decode(self, waves: Sequence[np.ndarray]) -> list[float]:
        torch.set_num_threads(self.setup.threads)
        streams = [self.decoder.open() for _ in waves]
        for stream, wave in zip(streams, waves, strict=True):
            stream.accept_features(compute_fbank(wave))
        seconds: list[float] = []
        while True:
            started = self.setup.clock()
            if not self.decoder.step():
                break
            seconds.append(self.setup.clock() - started)
        for stream in streams:
            stream.closed = True
        return seconds


class SherpaRuntime:
    """sherpa-onnx, on the files of one precision."""

    def __init__(self, setup: Setup, precision: str) -> None:
        files = setup.files
        self.setup = setup
        self.recognizer = SherpaRecognizer(files.by_precision[precision], files.tokens, setup.threads).recognizer

    def decode(self, waves: Sequence[np.ndarray]) -> list[float]:
        streams = [self.recognizer.create_stream() for _ in waves]
        for stream, wave in zip(streams, waves, strict=True):
            stream.accept_waveform(SAMPLE_RATE, wave)  # which computes the features
            stream.input_finished()
        seconds: list[float] = []
        while all(map(self.recognizer.is_ready, streams)):
            started = self.setup.clock()
            self.recognizer.decode_streams(streams)
            seconds.append(self.setup.clock() - started)
        return seconds


RUNTIME_OF: dict[str, Callable[[Setup], Runtime]] = dict(
    zip(
        RUNTIMES,
        (
            lambda setup: OwnRuntime(setup, "torch"),
            lambda setup: OwnRuntime(setup, "onnxruntime"),
            lambda setup: SherpaRuntime(setup, "float32"),
            lambda setup: SherpaRuntime(setup, "int8"),
        ),
        strict=True,
    )
)


def read_audio(paths: Sequence[str]) -> np.ndarray:
    """The samples of all files in one, in [-1, 1]; without files a minute of noise of changing loudness."""
    if not paths:
        rng = np.random.default_rng(0)
        loudness = np.repeat(rng.uniform(0.01, 0.3, 600), SAMPLE_RATE // 10)
        return (loudness * rng.uniform(-1, 1, len(loudness))).astype(np.float32)
    pieces = []
    for path in paths:
        samples, rate = read_sound(Path(path))
        if len(samples) != 1 or rate != SAMPLE_RATE:
            problem = f"{rate} Hz, {len(samples)} channels"
            raise UserError(problem, flag=option("audio", path), fix=f"give mono files at {SAMPLE_RATE} Hz")
        pieces.append(samples[0])
    return np.concatenate(pieces)


def waves_of(audio: np.ndarray, streams: int, seconds: float) -> list[np.ndarray]:
    """`seconds` of the audio for each stream, which begin at evenly spread places and go round at its end."""
    length = int(seconds * SAMPLE_RATE)
    starts = [len(audio) * n // streams for n in range(streams)]
    return [np.take(audio, range(start, start + length), mode="wrap") for start in starts]


def statistics(steps: Sequence[float], streams: int, chunk_ms: int) -> dict[str, float]:
    """The figures of one row from the seconds of all steps.  Raises UserError if the steps are too few."""
    counted = 1000 * np.array(steps[WARM_UP:])
    if not len(counted):
        raise UserError(
            f"{len(steps)} chunks, of which the first {WARM_UP} do not count", flag="--seconds", fix="give more"
        )
    p50, p99 = np.percentile(counted, [50, 99]).tolist()
    return {"real time %": 100 * float(counted.mean()) / (streams * chunk_ms), "p50 ms": p50, "p99 ms": p99}


def measure(
    setups: dict[int, Setup], names: Sequence[str], counts: Sequence[int], waves: Callable[[int], list[np.ndarray]]
) -> list[dict[str, Any]]:
    """One row for each runtime, number of threads and number of streams that it can decode.

    Args:
      setups: by number of threads.
      names: keys of RUNTIMES.
      counts: numbers of streams.
      waves: gives the audio of so many streams.
    """
    runs = [(threads, count) for threads in setups for count in counts]
    runtimes = {(name, threads): RUNTIME_OF[name](setup) for threads, setup in setups.items() for name in names}
    rows = []
    for threads, count in tqdm(runs, desc="threads and streams", disable=None):
        for name in (name for name in names if count == 1 or name not in FOR_ONE_STREAM):
            steps = runtimes[name, threads].decode(waves(count))
            figures = statistics(steps, count, setups[threads].chunk.chunk_ms)
            rows.append({"runtime": name, "threads": threads, "streams": count, **figures})
    rows.sort(key=lambda row: (row["threads"], names.index(row["runtime"])))  # streams in order, as they were run
    alone = {(row["runtime"], row["threads"]): row["real time %"] for row in rows if row["streams"] == 1}
    for row in rows:
        base = alone.get((row["runtime"], row["threads"]))
        row["of one stream's"] = None if base is None else row["real time %"] / base
    return rows
