"""How fast streams are decoded: real-time factor and milliseconds per chunk, by runtime, threads and streams.

    python local/bench_streaming.py --exp-dir egs/librispeech/exp/distilled --epoch 8 --avg 3 \
        --audio speech.wav --json streaming-speed.json --plot streaming-speed.png

Model, chunk and search are chosen as for streaming_decode.py.  All streams hear the same audio, each from another
place, and advance together, one chunk a step; features are there before the clock starts, so a step is encoder and
search.  onnxruntime and sherpa-onnx run the files that export.py writes, in float32 and int8, and search greedily.
Every runtime is timed in turn before the number of streams or threads changes, so that what else the machine does hits
all alike.  Where other programs run all the time, take --clock cpu and one thread.

`real time %` is the processing time of a second of one stream's audio; `of one stream's` is its ratio to that of a
stream alone; p50 and p99 are over the steps, each of which every stream waits for.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
import soundfile
import torch
from matplotlib.ticker import LogLocator
from tqdm import tqdm

from kdstream.checkpoints.trained import load_trained
from kdstream.config.command_line import RECORD_FLAGS
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import add_arguments, from_args, in_range, parser_of
from kdstream.config.sections import DecodeConfig
from kdstream.data.features import compute_fbank
from kdstream.decoding.search import Search
from kdstream.decoding.settings import choose_chunk, choose_search
from kdstream.decoding.stream import StreamingDecoder
from kdstream.errors import UserError
from kdstream.evaluation.records import write_json
from kdstream.evaluation.tables import rows_table
from kdstream.export.check import OnnxRecognizer, SherpaRecognizer
from kdstream.export.onnx import OnnxFiles, export_onnx, quantize
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer
from kdstream.reporting.style import COLOURS, WIDTH, phone_style, save
from kdstream.units import SAMPLE_RATE

WARM_UP = 5  # steps that are not counted
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LEAVE_OUT = (*RECORD_FLAGS, "num_decode_streams", "device")


@dataclass(frozen=True)
class Exported:
    """The model as files; pieces: of all tokens, and in `tokens` as sherpa-onnx reads them."""

    exact: OnnxFiles
    int8: OnnxFiles
    pieces: list[str]
    tokens: Path


def export(model: Transducer, chunk: ChunkConfig, folder: Path) -> Exported:
    """Writes the files into `folder`; pieces are numbers, as nobody reads them."""
    files = export_onnx(model, chunk, folder, "bench")
    pieces = ["<blk>", *(f"t{number}" for number in range(1, model.config.vocab_size))]
    tokens = folder / "tokens.txt"
    tokens.write_text("".join(f"{piece} {number}\n" for number, piece in enumerate(pieces)))
    return Exported(files, quantize(files), pieces, tokens)


@dataclass(frozen=True)
class Setup:
    """What every runtime decodes with; exported: None where torch alone is timed."""

    model: Transducer
    chunk: ChunkConfig
    search: Search
    threads: int
    clock: Callable[[], float]
    exported: Exported | None = None


class Runtime(Protocol):
    """Something that decodes streams; made from a Setup."""

    def decode(self, waves: Sequence[np.ndarray]) -> list[float]:
        """Decodes one stream for each of `waves` (samples in [-1, 1] at 16 kHz), all together, one chunk a step.

        Returns:
          The seconds that each step took, without computing features.
        """


class TorchRuntime:
    """StreamingDecoder, traced."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.decoder = StreamingDecoder(setup.model, setup.chunk, setup.search, max_streams=sys.maxsize, traced=True)

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


class OnnxRuntime:
    """onnxruntime from Python, on the files of one precision ("exact" or "int8")."""

    def __init__(self, setup: Setup, precision: str) -> None:
        files, pieces = getattr(setup.exported, precision), setup.exported.pieces
        self.setup, self.recognizer = setup, OnnxRecognizer(files, pieces, setup.threads)

    def decode(self, waves: Sequence[np.ndarray]) -> list[float]:
        features = np.stack([compute_fbank(wave).numpy() for wave in waves])  # (N, T, F)
        streams, chunk = self.recognizer.open(len(waves)), self.setup.chunk
        seconds: list[float] = []
        for start in range(0, features.shape[1] - chunk.input_frames + 1, chunk.shift):
            started = self.setup.clock()
            self.recognizer.step(features[:, start : start + chunk.input_frames], streams)
            seconds.append(self.setup.clock() - started)
        return seconds


class SherpaRuntime:
    """sherpa-onnx, on the files of one precision ("exact" or "int8")."""

    def __init__(self, setup: Setup, precision: str) -> None:
        files, tokens = getattr(setup.exported, precision), setup.exported.tokens
        self.setup, self.recognizer = setup, SherpaRecognizer(files, tokens, setup.threads).recognizer

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


RUNTIMES: dict[str, Callable[[Setup], Runtime]] = {
    "torch": TorchRuntime,
    "onnxruntime": lambda setup: OnnxRuntime(setup, "exact"),
    "onnxruntime-int8": lambda setup: OnnxRuntime(setup, "int8"),
    "sherpa-onnx": lambda setup: SherpaRuntime(setup, "exact"),
    "sherpa-onnx-int8": lambda setup: SherpaRuntime(setup, "int8"),
}


def read_audio(paths: Sequence[str]) -> np.ndarray:
    """All files in one, in [-1, 1]; a minute of noise that swells and fades where there are none."""
    if not paths:
        rng = np.random.default_rng(0)
        loudness = np.repeat(rng.uniform(0.01, 0.3, 600), SAMPLE_RATE // 10)
        return (loudness * rng.uniform(-1, 1, len(loudness))).astype(np.float32)
    pieces = []
    for path in paths:
        try:
            samples, rate = soundfile.read(path, dtype="float32")
        except (OSError, soundfile.LibsndfileError) as error:
            raise UserError(f"--audio {path}: cannot be read ({error}); give wav or flac files") from error
        if samples.ndim != 1 or rate != SAMPLE_RATE:
            raise UserError(
                f"--audio {path}: {rate} Hz in {samples.ndim} dimensions; give mono files at {SAMPLE_RATE} Hz"
            )
        pieces.append(samples)
    if not sum(map(len, pieces)):
        raise UserError(f"--audio {','.join(paths)}: holds no samples; give files with speech")
    return np.concatenate(pieces)


def waves_of(audio: np.ndarray, streams: int, seconds: float) -> list[np.ndarray]:
    """`seconds` of the audio for each stream, from evenly spread beginnings on and around its end."""
    length = int(seconds * SAMPLE_RATE)
    starts = [len(audio) * n // streams for n in range(streams)]
    return [np.take(audio, range(start, start + length), mode="wrap") for start in starts]


def statistics(steps: Sequence[float], streams: int, chunk_ms: int) -> dict[str, float]:
    """The figures of one row from the seconds of all steps.  Raises UserError if they are too few."""
    counted = 1000 * np.array(steps[WARM_UP:])
    if not len(counted):
        raise UserError(f"--seconds: {len(steps)} chunks, of which the first {WARM_UP} do not count; give more")
    p50, p99 = np.percentile(counted, [50, 99]).tolist()
    return {"real time %": 100 * float(counted.mean()) / (streams * chunk_ms), "p50 ms": p50, "p99 ms": p99}


def measure(
    setups: dict[int, Setup], names: Sequence[str], counts: Sequence[int], waves: Callable[[int], list[np.ndarray]]
) -> list[dict[str, Any]]:
    """One row for each runtime, number of threads (the keys of `setups`) and of streams, whose audio `waves` gives."""
    runs = [(threads, count) for threads in setups for count in counts]
    runtimes = {(name, threads): RUNTIMES[name](setup) for threads, setup in setups.items() for name in names}
    rows = []
    for threads, count in tqdm(runs, desc="threads and streams", disable=None):
        for name in names:
            steps = runtimes[name, threads].decode(waves(count))
            figures = statistics(steps, count, setups[threads].chunk.chunk_ms)
            rows.append({"runtime": name, "threads": threads, "streams": count, **figures})
    rows.sort(key=lambda row: (row["threads"], names.index(row["runtime"])))  # streams in order, as they were run
    alone = {(row["runtime"], row["threads"]): row["real time %"] for row in rows if row["streams"] == 1}
    for row in rows:
        base = alone.get((row["runtime"], row["threads"]))
        row["of one stream's"] = None if base is None else row["real time %"] / base
    return rows


def plot(rows: Sequence[dict[str, Any]], chunk_ms: int, path: Path) -> None:
    """Latency of a step, with p99 above p50, and the cost of a stream, over the number of streams."""
    with phone_style():
        figure, (above, below) = plt.subplots(2, 1, figsize=(WIDTH, 8.6), layout="constrained", sharex=True)
        names = list(dict.fromkeys(row["runtime"] for row in rows))
        for (name, threads), group in groupby(rows, key=lambda row: (row["runtime"], row["threads"])):
            group = list(group)
            streams, p50, p99, cost = (
                [row[key] for row in group] for key in ("streams", "p50 ms", "p99 ms", "real time %")
            )
            style = dict(color=COLOURS[names.index(name)], linestyle="-" if threads == 1 else "--", marker="o")
            above.plot(streams, p50, label=f"{name}, {threads} thread{'s' * (threads > 1)}", **style)
            above.fill_between(streams, p50, p99, color=style["color"], alpha=0.15, linewidth=0)
            below.plot(streams, cost, **style)
        above.axhline(chunk_ms, color="#888888", linewidth=1)
        above.text(min(row["streams"] for row in rows), chunk_ms, "real time", va="bottom", fontsize=12)
        above.set(ylabel="ms per chunk, p50 to p99", yscale="log", xscale="log")
        below.set(ylabel="% of real time per stream", xlabel="streams", yscale="log")
        counts = sorted({row["streams"] for row in rows})
        below.set_xticks(counts, [str(count) for count in counts])
        for axes in (above, below):
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=12, columnspacing=1)
        save(figure, path)


def get_parser() -> argparse.ArgumentParser:
    def numbers(text: str) -> tuple[int, ...]:
        values = tuple(int(part) for part in text.split(","))
        if min(values) < 1:
            raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
        return values

    def words(text: str) -> tuple[str, ...]:
        return tuple(part for part in text.split(",") if part)

    parser = parser_of(__doc__)
    add_arguments(parser, DecodeConfig, leave_out=LEAVE_OUT)
    parser.add_argument("--runtimes", type=words, default=tuple(RUNTIMES), help=f"Of {','.join(RUNTIMES)}.")
    parser.add_argument("--streams", type=numbers, default=(1, 4, 16, 64), help="Streams at once, e.g. 1,4,16,64.")
    parser.add_argument("--threads", type=numbers, default=(1, 2), help="Threads, e.g. 1,2.")
    parser.add_argument("--audio", type=words, default=(), help="wav or flac files, mono at 16 kHz (default: noise).")
    parser.add_argument(
        "--seconds", type=in_range(float, above=0), default=30.0, help="Of audio for each stream (default: 30)."
    )
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS), help="Wall clock, or processor time.")
    parser.add_argument("--json", default="", help="Also write the table to this file.")
    parser.add_argument("--plot", default="", help="Also draw it into this file.")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    unknown = [name for name in args.runtimes if name not in RUNTIMES]
    if unknown:
        raise UserError(f"--runtimes {','.join(unknown)}: unknown; use some of {','.join(RUNTIMES)}")
    decode = from_args(DecodeConfig, args)
    config = ExperimentConfig.load(decode.exp_dir)
    chunk = choose_chunk(config.model, decode)
    if chunk is None:
        raise UserError(f"{decode.exp_dir}: full context cannot go chunk by chunk; see --chunk-size")
    audio = read_audio(args.audio)
    trained, search = load_trained(config, decode), choose_search(decode)
    others = [name for name in args.runtimes if name != "torch"]
    if others and search.method != "greedy_search":
        raise UserError(f"--decoding-method {search.method}: {','.join(others)} search greedily; see --runtimes torch")
    with tempfile.TemporaryDirectory() as folder:
        exported = export(trained.model, chunk, Path(folder)) if others else None
        setups = {n: Setup(trained.model, chunk, search, n, CLOCKS[args.clock], exported) for n in args.threads}
        rows = measure(setups, args.runtimes, args.streams, lambda count: waves_of(audio, count, args.seconds))
    print(
        f"{config.model.encoder} {config.model.preset}, {trained.name}, chunk {chunk.chunk_ms} ms, "
        f"left {chunk.left_ms} ms, {search.name}, torch {torch.__version__}, {os.cpu_count()} cores, "
        f"{args.clock} clock\n"
    )
    print(rows_table(rows))
    if args.json:
        write_json(Path(args.json), rows)
    if args.plot:
        plot(rows, chunk.chunk_ms, Path(args.plot))
