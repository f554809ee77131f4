"""Trains every distillation method under one budget, with several seeds, and compares them.

    kdstream compare-methods --exp-root egs/librispeech/exp/methods --jobs 2

By default it trains on the embedded corpus, which `prepare.sh --corpus mini` makes, with the settings of run.sh, except
--lr-epochs 6 and the numbers of epochs.  --train-flags adds to these settings or changes any of them.  The teacher is
trained first if --teacher-exp-dir does not exist.  It is trained longer than the students: they have one budget, and a
teacher that is no better than they are has nothing to teach.  What is finished is skipped, and what was killed goes on.
With --cache-teacher 1 what the teacher computes is stored once, below EXP_ROOT, and no student runs the teacher.

It writes EXP_ROOT/comparison.json and comparison.md: word error rates over the seeds, the relative reduction against
--baseline and against the best form of token distillation, both with intervals (95 %, bootstrap over seeds and
utterances), and the commands.  Where --decode-flags give --alignments, they also say when words are shown.  With
--publish egs/librispeech/results/NAME it also writes NAME.json (the records) and NAME-comparison.json, which
`kdstream render-results` turns into tables of the results pages.  --add-results takes NAME.json of another machine, or
of another day, whose seeds then count too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from kdstream.config.flags import in_range, names_in, parser_of, str2bool
from kdstream.experiments.flags import add_runner_flags
from kdstream.experiments.method_table import METHODS, TOKEN_METHODS
from kdstream.files import write_text

if TYPE_CHECKING:
    from kdstream.experiments.cells import Cell


def page(rows: Sequence[dict[str, object]], cells: Sequence[Cell], added: Sequence[Path]) -> str:
    """comparison.md."""
    from kdstream.evaluation.tables import rows_table

    trainings = [cell.train_command() for cell in cells if cell.train_flags is not None]
    decodings = [command for cell in cells for command in cell.decode_commands()]
    lines = "\n".join(command.typed for command in trainings + decodings)
    more = f" Seeds that are not among the commands are those of {', '.join(map(str, added))}." if added else ""
    return (
        "# Comparison of methods\n\nWER: mean ± standard deviation over the seeds. Relative reductions are of the "
        "mean WERs, in brackets their 95 % interval (bootstrap over the seeds of both systems and over utterances, the "
        "same ones for both). (1 seed) marks a number with a single training on either side: its interval does not say "
        "how much another training of that system would differ."
        f"{more}\n\n{rows_table(rows)}\n```bash\n{lines}\n```\n"
    )


def method_names(text: str) -> list[str]:
    names = list(dict.fromkeys(names_in(text, "methods")))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no method {', '.join(unknown)}; there are {', '.join(METHODS)}")
    return names


def paths(text: str) -> list[Path]:
    return [Path(path) for path in names_in(text)]


def get_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    add_runner_flags(parser, seeds="1,2,3,4,5")
    add = parser.add_argument
    add("--teacher-exp-dir", type=Path, help="The teacher (default: EXP_ROOT/teacher)")
    add("--cache-teacher", type=str2bool, default=False, help="Store what the teacher computes (default: %(default)s)")
    add("--cache-layers", default="", help="Its layers to store (default: the last of each stack that downsamples)")
    add("--methods", type=method_names, default=",".join(METHODS), help="Methods (default: %(default)s)")
    add("--baseline", choices=list(METHODS), default="baseline", help="What to compare with (default: %(default)s)")
    count = in_range(int, minimum=1)
    add("--num-epochs", type=count, default=8, help="Epochs to train a student (default: %(default)s)")
    add("--teacher-num-epochs", type=count, default=24, help="Epochs to train the teacher (default: %(default)s)")
    add("--avg", type=count, default=1, help="Epochs whose mean teaches and is decoded (default: %(default)s)")
    add("--add-results", type=paths, default=(), help="Results JSONs whose seeds count too (default: none)")
    add("--publish", type=Path, help="Where to write the JSON files, without .json (default: nowhere)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)

    from kdstream.evaluation.compare import compare_seeds
    from kdstream.evaluation.records import publish, write_json
    from kdstream.experiments.methods import Comparison, load_added, records_of
    from kdstream.experiments.runner import report_failures, run_cells

    comparison = Comparison(**{field.name: getattr(args, field.name) for field in fields(Comparison)})
    comparison.check()
    args.exp_root.mkdir(parents=True, exist_ok=True)
    cells = comparison.cells()
    added = load_added(args.add_results)
    failures = run_cells(cells, args.jobs)
    records = records_of(cells, added)
    if records:
        if args.baseline not in {record.system for record in records}:
            print(
                f"no record of {args.baseline}, so nothing is compared with it; add it to --methods, bring its records "
                "with --add-results, or name another --baseline",
                file=sys.stderr,
            )
        rows = compare_seeds(records, args.baseline, TOKEN_METHODS)
        write_json(args.exp_root / "comparison.json", rows)
        write_text(args.exp_root / "comparison.md", page(rows, cells, args.add_results))
        if args.publish:
            publish(args.publish, records, comparison=rows)
        print(f"comparison: {args.exp_root / 'comparison.md'}")
    report_failures(failures)
