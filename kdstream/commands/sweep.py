"""Runs a grid of flags over training, decoding or both, and draws the word error rates.

    kdstream sweep --exp-root egs/librispeech/exp/sweep-scales --seeds 1,2 --jobs 2 \
        --grid kd-feature-scale=0.3,1,3 --grid kd-apc-scale=0,0.5 \
        --train-flags "--causal 1 --num-epochs 5 --teacher-exp-dir exp/teacher"

trains one student for each point of the grid and each seed, and decodes it.  Values that hold commas are separated by
|, as in --grid "kd-layers=2.0,3.1|1.0".  So are paths of --exp-dirs that hold commas, and | ends a single one.
--decode-grid chunk-size=8,16,32 decodes each student in several ways.  With --one-at-a-time 1 only one flag varies at a
time, and the others keep their first values.  A cell then bears the name of the flag that varies, as in kd-apc-scale-0,
or `first` where none does.  Experiments that exist already are only decoded:

    kdstream sweep --exp-root egs/librispeech/exp/sweep-chunks --decode-flags "--epoch 30 --avg 9" \
        --exp-dirs egs/librispeech/exp/baseline,egs/librispeech/exp/distilled --decode-grid chunk-size=8,16,32

It writes EXP_ROOT/sweep.json, comparison.json (word error rates over the seeds, and relative reductions against the
first point with their 95 % intervals, a paired bootstrap over seeds and utterances), sweep.md (both as
tables, and the commands of every cell) and sweep-<test set>.png: a line where one flag varies, else heat maps over the
first two flags, one for each setting of the others.  What is finished is skipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from kdstream.config.flags import parser_of, str2bool
from kdstream.experiments.flags import add_runner_flags
from kdstream.experiments.grid import COMMANDS, parse_axis, parse_values
from kdstream.files import write_text


def page(rows: Sequence[dict[str, Any]], comparison: Sequence[dict[str, Any]], plots: Sequence[Path]) -> str:
    """sweep.md."""
    from kdstream.evaluation.tables import rows_table

    table = rows_table([{name: cell for name, cell in row.items() if name != "command"} for row in rows])
    commands = "\n".join(dict.fromkeys(row["command"] for row in rows))
    images = "".join(f"![{plot.stem}]({plot.name})\n\n" for plot in plots)
    tables = f"{rows_table(comparison)}\n{table}"
    return f"# Sweep\n\n{images}{tables}\nThe commands of each cell:\n\n```bash\n{commands}\n```\n"


def get_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    add_runner_flags(parser, seeds="1")
    add = parser.add_argument
    for name, what in (("--grid", "A flag of train.py and its values"), ("--decode-grid", "The same for decoding")):
        add(name, type=parse_axis, action="append", default=[], metavar="FLAG=A,B", help=what)
    add("--one-at-a-time", type=str2bool, default=False, help="No combinations, see above (default: 0)")
    add("--exp-dirs", type=parse_values, default=(), help="Decode these, train nothing")
    add("--mode", choices=COMMANDS, default="simulated", help="How to decode (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)

    from kdstream.evaluation.records import write_json
    from kdstream.experiments.runner import report_failures, run_cells
    from kdstream.experiments.sweep import Sweep
    from kdstream.experiments.sweep_plots import draw_sweep

    sweep = Sweep(**{field.name: getattr(args, field.name) for field in fields(Sweep) if field.init})
    args.exp_root.mkdir(parents=True, exist_ok=True)
    failures = run_cells(sweep.cells, args.jobs)
    rows = sweep.rows()
    if rows:
        write_json(args.exp_root / "sweep.json", rows)
        comparison = sweep.comparison()
        write_json(args.exp_root / "comparison.json", comparison)
        scored = ((point, record) for _, point, record in sweep.scored())
        plots = draw_sweep(scored, sweep.axes, args.one_at_a_time, args.exp_root)
        write_text(args.exp_root / "sweep.md", page(rows, comparison, plots))
        print(f"sweep: {args.exp_root / 'sweep.md'}")
    report_failures(failures)
