"""Measures how fast streams are decoded: real-time factor and milliseconds per chunk, by runtime, threads and streams.

    kdstream bench-streaming --exp-dir egs/librispeech/exp/distilled \
        --audio speech.wav --json streaming-speed.json --plot streaming-speed.png

Model, chunk and search are chosen as for streaming_decode.py.  All streams hear the same audio, each from another
place, and advance together, one chunk a step.  Features are computed before the clock starts, so a step is encoder and
search.  torch and onnxruntime are the engines of streaming_decode.py, the latter for one stream.  sherpa-onnx runs the
files that export.py writes, in float32 and int8, and searches greedily.
Every runtime is timed in turn before the number of streams or threads changes, so that other programs on the machine
disturb all of them alike.  Where other programs run all the time, take --clock cpu and one thread.

`real time %` is the processing time of a second of one stream's audio.  `of one stream's` is its ratio to that of a
single stream.  p50 and p99 are percentiles over the steps, each of which every stream waits for.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kdstream.benchmarks.names import CLOCKS, FOR_ONE_STREAM, OWN, RUNTIMES
from kdstream.config.command_line import make_parser, read_experiment
from kdstream.config.decoding import ContextConfig, SearchConfig, WeightsConfig
from kdstream.config.flags import in_range, names_in
from kdstream.errors import UserError, option

SECTIONS = (WeightsConfig, ContextConfig, SearchConfig)
PICTURES = (".png", ".svg", ".pdf")


def get_parser() -> argparse.ArgumentParser:
    def numbers(text: str) -> tuple[int, ...]:
        values = tuple(dict.fromkeys(int(part) for part in text.split(",")))
        if min(values) < 1:
            raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
        return values

    def words(text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names_in(text)))

    parser = make_parser(__doc__, SECTIONS, data_flags=("bpe_model",))
    parser.add_argument("--runtimes", type=words, default=RUNTIMES, help=f"Of {','.join(RUNTIMES)}.")
    parser.add_argument("--streams", type=numbers, default=(1, 4, 16, 64), help="Streams at once, e.g. 1,4,16,64.")
    parser.add_argument("--threads", type=numbers, default=(1, 2), help="Threads, e.g. 1,2.")
    parser.add_argument("--audio", type=words, default=(), help="wav or flac files, mono at 16 kHz (default: noise).")
    parser.add_argument(
        "--seconds", type=in_range(float, above=0), default=30.0, help="Of audio for each stream (default: 30)."
    )
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="Wall clock, or processor time.")
    parser.add_argument("--json", default="", help="Also write the table to this file.")
    parser.add_argument("--plot", default="", help=f"Also draw it into this file, of {', '.join(PICTURES)}.")
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError for runtimes and a picture that cannot be had, before anything is measured."""
    unknown = [name for name in args.runtimes if name not in RUNTIMES]
    if unknown or not args.runtimes:
        names, problem = (unknown, "unknown") if unknown else ([], "names none")
        raise UserError(problem, flag=f"--runtimes {','.join(names)}".strip(), fix=f"use some of {','.join(RUNTIMES)}")
    if 1 not in args.streams and set(args.runtimes) <= set(FOR_ONE_STREAM):
        typed = f"--runtimes {','.join(args.runtimes)} --streams {','.join(map(str, args.streams))}"
        raise UserError("decodes one stream at a time", flag=typed, fix="give --streams 1, or another runtime")
    if args.plot and Path(args.plot).suffix not in PICTURES:
        raise UserError("not a kind of picture", flag=option("plot", args.plot), fix=f"end it with {PICTURES[0]}")


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    check_flags(args)

    import torch

    from kdstream.benchmarks.streaming import Setup, export, measure, read_audio, waves_of
    from kdstream.benchmarks.streaming_plot import plot_speed
    from kdstream.checkpoints.trained import load_trained
    from kdstream.decoding.settings import choose_chunk, choose_search
    from kdstream.evaluation.records import write_json
    from kdstream.evaluation.tables import rows_table

    config, decode = read_experiment(args)
    chunk = choose_chunk(config.model, decode)
    if chunk is None:
        raise UserError(f"{decode.exp_dir}: full context cannot go chunk by chunk", fix="see --chunk-size")
    audio = read_audio(args.audio)
    search = choose_search(decode)
    exported_runtimes = [name for name in args.runtimes if name not in OWN]
    if exported_runtimes and search.name != "greedy_search":
        problem = f"{','.join(exported_runtimes)}: plain greedy_search alone, not {search.name}"
        raise UserError(problem, fix=f"use --runtimes {','.join(OWN)}")
    trained = load_trained(config, decode)
    search = search.for_tokens(trained.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        exported = export(trained.model, chunk, Path(folder)) if exported_runtimes else None
        setups = {n: Setup(trained.model, chunk, search, n, CLOCKS[args.clock], exported) for n in args.threads}
        rows = measure(setups, args.runtimes, args.streams, lambda count: waves_of(audio, count, args.seconds))
    ahead = f", right {chunk.right_ms} ms" if chunk.right else ""
    print(
        f"{config.model.encoder} {config.model.preset}, {trained.name}, chunk {chunk.chunk_ms} ms, "
        f"left {chunk.left_ms} ms{ahead}, {search.name}, torch {torch.__version__}, {os.cpu_count()} cores, "
        f"{args.clock} clock\n"
    )
    print(rows_table(rows))
    if args.json:
        write_json(Path(args.json), rows)
    if args.plot:
        plot_speed(rows, chunk.chunk_ms, Path(args.plot))
