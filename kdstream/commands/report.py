"""Compares trained systems on one page: report.html, which needs no network, and report.md with the same plots.

    cd egs/librispeech
    kdstream report --exp-root exp --systems teacher,baseline,distilled --baseline baseline

reads what training and decoding left in EXP_ROOT/teacher and so on (results.json, recogs, TensorBoard files,
checkpoints), EXP_ROOT/sweep*.png and any layer_similarity.json, and writes EXP_ROOT/report/.  It works in any
directory, but for one picture: the paths in config.json lead to the utterance whose attention relations are drawn.
Where they do not, because train.py ran in another directory, the page says so.  With --publish results/NAME it also
writes NAME.json (the records), NAME-reduction.json and, where delays of words were measured, NAME-latency.json, which
`kdstream render-results` turns into tables of the results pages, and their picture, NAME-latency.svg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdstream.config.flags import names_in, parser_of
from kdstream.errors import UserError, option


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--exp-root", type=Path, required=True, help="Directory of the experiment directories.")
    parser.add_argument("--systems", default="teacher,baseline,distilled", help="Which of them (default: %(default)s)")
    parser.add_argument(
        "--baseline", default="baseline", help="System to compare with, or its directory (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="Directory to write to (default: EXP_ROOT/report)")
    parser.add_argument("--publish", type=Path, help="What the files of results begin with (default: none are written)")
    args = parser.parse_args(argv)

    from kdstream.evaluation.records import publish
    from kdstream.reporting.report import Report

    if args.output and args.output.suffix == ".html":
        raise UserError(
            "must name the directory of the page", flag=option("output", args.output), fix="leave out report.html"
        )
    report = Report(args.exp_root, names_in(args.systems), args.baseline, args.output or args.exp_root / "report")
    print(f"report: {report.write()}")
    if args.publish:
        tables = {"reduction": [reduction.row() for reduction in report.reductions], "latency": report.delays}
        publish(args.publish, report.records, **{name: rows for name, rows in tables.items() if rows})
        if report.delays:
            report.draw_latencies(args.publish.with_name(f"{args.publish.name}-latency.svg"))
