"""Measures what distillation costs while training: a distilled step against a baseline step, and its parts.

    kdstream bench-train-step --causal 1 --preset tiny --max-duration 120 --repetitions 7 --json bench.json

measures on a synthetic batch (or, with --train-cuts and --bpe-model, on the first batch of real speech) and prints a
Markdown table.  Model, data and distillation flags are those of train.py.  The teacher has random weights and the
student's architecture with --causal 0, or that of --teacher-preset.

Time: in every repetition all rows run one after the other, with the same random numbers.  The first repetition does not
count; the table holds medians of the others.  Where other programs run too, take --clock cpu.
Memory: each row runs in a process of its own that returns freed memory to the system at once.  For a step the figure is
the peak above a process without models; parameters, gradients and the optimiser's state are in it.  For a part it is
the peak above what was there before the part began.  On the CPU it is resident memory (Linux only), on a GPU allocated
memory.
Parts: losses and branches forward and backward.  The optimiser's work on the branches is in no part.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

import kdstream
from kdstream.benchmarks.memory import MEGABYTE, PeakMemory
from kdstream.benchmarks.train_step import (
    STEPS,
    SYNTHETIC_VOCABULARY,
    Bench,
    Tokens,
    measure_times,
    real_batch,
    synthetic_batch,
    table,
)
from kdstream.config.flags import add_arguments, from_args, in_range, parser_of, str2bool
from kdstream.config.sections import DataConfig, DistillConfig, ModelConfig
from kdstream.data.batch import Batch
from kdstream.devices import find_device
from kdstream.errors import UserError
from kdstream.evaluation.records import write_json
from kdstream.evaluation.tables import rows_table
from kdstream.kd.teachers import teacher_flags
from kdstream.training.dist import keep_freed_memory


def measure_memory(args: argparse.Namespace, batch: Batch, tokens: Tokens, vocab_size: int) -> int:
    """Peak bytes of the row --memory-of, in this process."""
    peak = PeakMemory(find_device(args.device))
    peak.start()
    bench = Bench(args, batch, tokens, vocab_size)
    if args.memory_of != STEPS[0]:
        bench.add_distillation()
    bench.rows = {args.memory_of: bench.rows[args.memory_of]}
    bench.run(args.memory_of, 0)  # makes the optimiser's state and the libraries' buffers
    if args.memory_of not in STEPS:
        peak.start()
    bench.run(args.memory_of, 1)
    return peak.read()


def memory_in_own_process(name: str, flags: Sequence[str]) -> float:
    """Peak memory in MB of the row `name`, which this command measures with its `flags` in a process of its own."""
    # Otherwise glibc keeps freed tensors, and resident memory tells what was used at some time.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    program = str(Path(kdstream.__file__).with_name("__main__.py"))
    command = [sys.executable, program, "bench-train-step", *flags, "--memory-of", name]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{shlex.join(command)}: failed as shown above", fix="or give --memory 0")
    return int(done.stdout.splitlines()[-1]) / MEGABYTE


def get_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--repetitions", type=in_range(int, minimum=1), default=5, help="Counted repetitions.")
    seconds = in_range(float, above=0)
    parser.add_argument("--utterance-seconds", type=seconds, default=6.0, help="Longest of a synthetic batch.")
    parser.add_argument("--teacher-preset", default="", help="Preset of the teacher; empty: the student's.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice.")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="Wall clock, or processor time.")
    parser.add_argument("--memory", type=str2bool, default=True, help="Measure peak memory too.")
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)  # for the processes of this command
    parser.add_argument("--json", default="", help="Also write the table to this file.")
    parser.add_argument("--use-fp16", type=str2bool, default=False, help="As in train.py.")
    parser.add_argument("--use-bf16", type=str2bool, default=False, help="As in train.py.")
    add_arguments(parser, ModelConfig, causal=True)
    add_arguments(parser, DataConfig, max_duration=120.0)
    of_trained_teachers = [*teacher_flags(), "teacher_cache", "init_from_teacher"]
    add_arguments(parser, DistillConfig, leave_out=of_trained_teachers)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    flags = sys.argv[1:] if argv is None else argv
    args = get_parser().parse_args(flags)
    if args.threads:
        torch.set_num_threads(args.threads)
    data = from_args(DataConfig, args)
    if args.train_cuts:
        batch, tokens, vocab_size = real_batch(data)
    else:
        (batch, tokens), vocab_size = synthetic_batch(data, args.utterance_seconds), SYNTHETIC_VOCABULARY
    if args.memory_of:
        print(measure_memory(args, batch, tokens, vocab_size))
        return
    bench = Bench(args, batch, tokens, vocab_size)
    bench.add_distillation()
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[args.clock]
    keep_freed_memory()  # as training does
    times = measure_times(bench, args.repetitions, clock)
    names = tqdm(times, desc="memory", disable=None) if args.memory else ()
    rows = table(times, {name: memory_in_own_process(name, flags) for name in names})
    device = torch.cuda.get_device_name() if bench.batch.features.is_cuda else f"{torch.get_num_threads()} CPU threads"
    sound = "speech" if args.train_cuts else "noise"
    print(
        f"{batch.duration:.0f} s of {sound} in {len(batch.texts)} utterances, {device}, torch "
        f"{torch.__version__}, {args.clock} clock, medians of {args.repetitions}; layers "
        f"{', '.join(f'{pair.student} <- {pair.teacher}' for pair in bench.pairs) or 'none'}\n"
    )
    print(rows_table(rows))
    if args.json:
        write_json(Path(args.json), rows)
