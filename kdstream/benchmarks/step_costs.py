"""The tables of bench-train-step, as its flags ask for them: times and peak memory of each row."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import kdstream
from kdstream.benchmarks.limit import measure_limit
from kdstream.benchmarks.memory import PeakMemory, told_by
from kdstream.benchmarks.names import BOTH_MODES, CLOCKS, STEPS
from kdstream.benchmarks.train_step import Bench, measure_times, real_batch, synthetic_batch, table
from kdstream.config.flags import from_args
from kdstream.config.sections import DataConfig
from kdstream.data.batch import Batch
from kdstream.devices import find_device, synchronize
from kdstream.training.dist import keep_freed_memory


def batch_of(args: argparse.Namespace) -> tuple[Batch, int]:
    """The batch to measure on, and the size of its vocabulary."""
    data = from_args(DataConfig, args)
    if args.train_cuts:
        return real_batch(data)
    return synthetic_batch(data, args.utterance_seconds, args.vocab_size), args.vocab_size


def costs(args: argparse.Namespace, flags: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """What was measured, in words, and the table of all rows.

    Args:
      flags: `args` as they were typed, for the processes that measure memory.
    """
    batch, vocab_size = batch_of(args)
    bench = Bench(args, batch, vocab_size)
    keep_freed_memory()  # as training does
    bench.add_distillation()
    times = measure_times(bench, args.repetitions, CLOCKS[args.clock])
    names = tqdm(times, desc="memory", disable=None) if args.memory else ()
    rows = table(times, {name: memory_in_own_process(name, flags) for name in names})
    features = bench.batch.features
    device = (
        torch.cuda.get_device_name(features.device) if features.is_cuda else f"{torch.get_num_threads()} CPU threads"
    )
    sound = "speech" if args.train_cuts else "noise"
    return (
        f"{batch.duration:.0f} s of {sound} in {len(batch.texts)} utterances, {device}, torch "
        f"{torch.__version__}, {args.clock} clock, medians of {args.repetitions}; layers "
        f"{', '.join(f'{pair.student} <- {pair.teacher}' for pair in bench.pairs) or 'none'}\n"
    ), rows


def limit_of_baseline(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The table of --limit."""
    bench = Bench(args, *batch_of(args))
    keep_freed_memory()
    clock, device = CLOCKS[args.clock], bench.batch.features.device

    def clock_after_all() -> float:  # of one product alone nobody has waited yet
        synchronize(device)
        return clock()

    return measure_limit(partial(bench.run, STEPS[0]), args.repetitions, clock_after_all)


def measure_memory(args: argparse.Namespace) -> int:
    """Peak bytes of the row --memory-of, in this process."""
    batch, vocab_size = batch_of(args)
    peak = PeakMemory(find_device(args.device))
    peak.start()
    bench = Bench(args, batch, vocab_size)
    if args.memory_of != STEPS[0]:
        bench.add_distillation()
    bench.rows = {args.memory_of: bench.rows[args.memory_of]}
    bench.run(args.memory_of, 0)  # makes the optimiser's state and the libraries' buffers
    if args.memory_of not in (*STEPS, BOTH_MODES):
        peak.start()
    bench.run(args.memory_of, 1)
    return peak.read()


def memory_in_own_process(name: str, flags: Sequence[str]) -> float:
    """Peak memory in MB of the row `name`, which bench-train-step with these flags measures in a process of its own."""
    program = str(Path(kdstream.__file__).with_name("__main__.py"))
    return told_by([sys.executable, program, "bench-train-step", *flags, "--memory-of", name])
