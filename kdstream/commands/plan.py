"""Says what a training on GPUs will take, before they are rented: steps, days, memory, --max-duration, disk.

    kdstream plan --preset medium --hours 960 --speeds 3 --gpu h100 --gpus 8

prints a table for a teacher, a baseline and a distilled student of this --preset.  Beside each figure stands whether it
is stated, computed or measured.  No figure for a GPU is measured here.  The first epoch of a training tells better:
give what it says as --speech-seconds-per-second, for one GPU, and what a distilled step costs as --bench, the file that
bench-train-step --json writes.  Model flags are those of train.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from kdstream.benchmarks.gpus import GPUS
from kdstream.benchmarks.names import STEPS
from kdstream.config.flags import add_arguments, from_args, in_range, parser_of
from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError, option


def get_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    positive, count = in_range(float, above=0), in_range(int, minimum=1)
    parser.add_argument("--hours", type=positive, required=True, help="Hours of speech, without perturbed copies.")
    parser.add_argument("--speeds", type=int, default=1, choices=(1, 3), help="3: with copies at speeds 0.9 and 1.1.")
    parser.add_argument("--utterance-seconds", type=positive, default=12.3, help="Mean (12.3 is LibriSpeech's).")
    parser.add_argument("--gpu", required=True, choices=GPUS, help="Which GPU.")
    parser.add_argument("--gpus", type=count, default=1, help="How many.")
    parser.add_argument("--num-epochs", type=count, default=30, help="Epochs of baseline and student.")
    parser.add_argument("--teacher-epochs", type=count, default=40, help="Epochs of the teacher.")
    parser.add_argument("--teacher-preset", default="", help="Preset of the teacher; empty: the student's.")
    parser.add_argument("--max-duration", type=in_range(float, minimum=0), default=0.0, help="0: what fits.")
    parser.add_argument(
        "--speech-seconds-per-second", type=positive, default=0.0, help="Measured: of a baseline on one of the GPUs."
    )
    parser.add_argument("--bench", type=Path, help="JSON file of bench-train-step: what a distilled step costs.")
    add_arguments(parser, ModelConfig, causal=True)
    return parser


def read_costs(path: Path) -> tuple[float, float]:
    """What a distilled step costs, with a live teacher and with a cached one, as times a baseline's step."""
    try:
        times = {row["part"]: float(row["ms"]) for row in json.loads(path.read_text(encoding="utf-8"))}
        baseline, live, cached = (times[name] for name in STEPS)
        return live / baseline, cached / baseline
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        fix = "give a file that kdstream bench-train-step --json wrote"
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"not a table of steps ({error})"
        raise UserError(problem, flag=option("bench", path), fix=fix) from error


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    costs = read_costs(args.bench) if args.bench else None

    from kdstream.benchmarks.plan import Run, plan
    from kdstream.benchmarks.train_step import teacher_of
    from kdstream.corpus.fbank import SPEEDS
    from kdstream.evaluation.tables import rows_table

    student = from_args(ModelConfig, args)
    teacher = teacher_of(student, args.teacher_preset)
    speeds = (1, *SPEEDS) if args.speeds > 1 else (1,)
    run = Run(
        args.hours * sum(1 / speed for speed in speeds),
        args.utterance_seconds,
        args.gpu,
        args.gpus,
        args.num_epochs,
        args.teacher_epochs,
        args.max_duration,
        args.speech_seconds_per_second,
        costs,
    )
    print(rows_table(plan(run, student, teacher)))
