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
With --full-context-scale or --mode-consistency-scale there is a step of a student without a teacher that is run in both
modes.
Parts: losses and branches forward and backward.  The optimiser's work on the branches is in no part.  Reading the cache
is what the processes that load data do, beside the steps.

    kdstream bench-train-step --causal 1 --preset tiny --max-duration 144 --threads 1 --against COMMIT

runs the steps (not the parts) of another commit and of this checkout in turn, on one batch.  The time is processor
time, and the ratio is the median over pairs of steps.  --limit 1 shows how much of a baseline step its matrix products
and convolutions take when they run alone.  --layouts 1 compares the two memory layouts of depthwise convolutions on
--device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdstream.benchmarks.names import CLOCKS, STEPS, SYNTHETIC_VOCABULARY
from kdstream.config.command_line import teacher_flags
from kdstream.config.distillation import DistillConfig
from kdstream.config.flags import add_arguments, flags_of, in_range, names_in, parser_of, str2bool
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig

SHORT_NAMES = dict(zip(("baseline", "distilled", "cached"), STEPS, strict=True))


def words(text: str) -> tuple[str, ...]:
    names = tuple(names_in(text, "steps"))
    for name in names:
        if name not in SHORT_NAMES:
            raise argparse.ArgumentTypeError(f"{name}: not one of {','.join(SHORT_NAMES)}")
    return names


def of_this_checkout() -> argparse.ArgumentParser:
    """The flags that --against does not hand on to the other commit."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--against", default="", metavar="COMMIT", help="Compare the steps with those of a commit.")
    parser.add_argument("--limit", type=str2bool, default=False, help="Show what the products of a step take alone.")
    parser.add_argument("--layouts", type=str2bool, default=False, help="Compare the depthwise convolutions' layouts.")
    parser.add_argument(
        "--steps",
        type=words,
        default=tuple(SHORT_NAMES),
        help=f"What --against compares, of {','.join(SHORT_NAMES)} (default: all).",
    )
    return parser


def get_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, parents=[of_this_checkout()])
    parser.add_argument("--repetitions", type=in_range(int, minimum=1), default=5, help="Counted repetitions.")
    seconds = in_range(float, above=0)
    parser.add_argument("--utterance-seconds", type=seconds, default=6.0, help="Longest of a synthetic batch.")
    parser.add_argument(
        "--vocab-size", type=in_range(int, minimum=4), default=SYNTHETIC_VOCABULARY, help="Tokens of a synthetic batch."
    )
    parser.add_argument("--teacher-preset", default="", help="Preset of the teacher; empty: the student's.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    parser.add_argument("--threads", type=in_range(int, minimum=0), default=0, help="CPU threads; 0: torch's choice.")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="Wall clock, or processor time.")
    parser.add_argument("--memory", type=str2bool, default=True, help="Measure peak memory too.")
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)  # for the processes of this command
    parser.add_argument("--json", default="", help="Also write the table to this file.")
    add_arguments(parser, TrainConfig, ["use_fp16", "use_bf16", "checkpoint_activations"])
    add_arguments(parser, ModelConfig, causal=True)
    add_arguments(parser, DataConfig, max_duration=120.0)
    of_trained_teachers = [*teacher_flags(), "teacher_cache", "init_from_teacher"]
    losses = [item.name for item in flags_of(DistillConfig) if item.name not in of_trained_teachers]
    add_arguments(parser, DistillConfig, losses)
    return parser


def compare_against(args: argparse.Namespace, flags: Sequence[str]) -> list[dict[str, Any]]:
    """The table of --against."""
    from kdstream.benchmarks.against import compare_with

    handed_on = of_this_checkout().parse_known_args(flags)[1]
    rows = [SHORT_NAMES[name] for name in args.steps]
    return compare_with(args.against, rows, handed_on, args.repetitions, args.memory)


def show(rows: list[dict[str, Any]], json: str) -> None:
    """Prints the table, and writes it to the file `json` if that is not empty."""
    from kdstream.evaluation.records import write_json
    from kdstream.evaluation.tables import rows_table

    print(rows_table(rows))
    if json:
        write_json(Path(json), rows)


def main(argv: Sequence[str] | None = None) -> None:
    flags = sys.argv[1:] if argv is None else argv
    args = get_parser().parse_args(flags)

    import torch

    from kdstream.benchmarks.layouts import measure_layouts
    from kdstream.benchmarks.step_costs import costs, limit_of_baseline, measure_memory
    from kdstream.devices import find_device

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        print(measure_memory(args))
    elif args.layouts:
        show(measure_layouts(find_device(args.device), repetitions=args.repetitions), args.json)
    elif args.against:
        show(compare_against(args, flags), args.json)
    elif args.limit:
        show(limit_of_baseline(args), args.json)
    else:
        measured, rows = costs(args, flags)
        print(measured)
        show(rows, args.json)
