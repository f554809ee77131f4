"""Prints our word error rates beside those that icefall publishes for LibriSpeech.

    kdstream compare-icefall egs/librispeech/exp/distilled --baseline zipformer-streaming

EXP is an experiment directory with a results.json on test-clean and test-other.  Other test sets are shown with nothing
beside them.  Baselines: zipformer, zipformer-small, zipformer-large (full context), zipformer-streaming,
conformer-streaming and conformer-streaming-2.  Their rows and the source of these are in icefall_results.json, beside
this module.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdstream.config.flags import parser_of
from kdstream.errors import UserError
from kdstream.words import WORD

if TYPE_CHECKING:
    from kdstream.evaluation.records import Measure, Record

PUBLISHED = Path(__file__).with_name("icefall_results.json")
PUBLISHED_MEASURES = (("test-clean", WORD), ("test-other", WORD))
HEADER = ("system", "parameters (M)", "mode", "chunk (ms)", "left (ms)", "search")


def our_rows(records: Sequence[Record]) -> list[list[Any]]:
    """One row for each system, seed, checkpoint and way of decoding, with WERs in the order of `columns_of`."""
    rows: dict[tuple, dict[Measure, float]] = {}
    for r in records:
        of_system = [other for other in records if other.system == r.system]
        name = r.system if len({other.seed for other in of_system}) == 1 else f"{r.system}, seed {r.seed}"
        if len({other.checkpoint for other in of_system if other.seed == r.seed}) > 1:
            name += f", {r.checkpoint}"
        name += f", right context {r.right_ms} ms" if r.right_ms else ""
        key = (name, r.parameters / 1e6, r.mode, r.chunk_ms, r.left_ms, r.search)
        rows.setdefault(key, {})[r.measure] = r.wer
    return [[*key, *map(wers.get, columns_of(records))] for key, wers in rows.items()]


def icefall_rows(rows: Sequence[dict[str, Any]], columns: Sequence[Measure]) -> list[list[Any]]:
    return [
        [
            f"icefall, {row['model']} ({row['comment']})",
            row["parameters"] and row["parameters"] / 1e6,
            *(row[column] for column in ("mode", "chunk_ms", "left_ms", "search")),
            *(row.get(test_set) if counted == WORD else None for test_set, counted in columns),
        ]
        for row in rows
    ]


def columns_of(records: Sequence[Record]) -> list[Measure]:
    """Those of icefall's rows first, then the others of the records."""
    from kdstream.evaluation.tables import measures

    return list(dict.fromkeys([*PUBLISHED_MEASURES, *measures(records)]))


def main(argv: Sequence[str] | None = None) -> None:
    published = json.loads(PUBLISHED.read_text())
    baselines = list(dict.fromkeys(row["baseline"] for row in published["rows"]))
    parser = parser_of(__doc__)
    parser.add_argument("exp_dir", type=Path, metavar="EXP", help="Experiment directory.")
    parser.add_argument("--baseline", choices=baselines, default="zipformer-streaming", help="(default: %(default)s)")
    args = parser.parse_args(argv)

    from kdstream.evaluation.records import RESULTS_JSON, load_newest
    from kdstream.evaluation.tables import markdown_table, measure_shown

    path = args.exp_dir / RESULTS_JSON
    if not path.is_file():
        raise UserError(f"{path}: no such file", fix=f"run decode.py or streaming_decode.py --exp-dir {args.exp_dir}")
    records = load_newest(path)
    columns = columns_of(records)
    published_rows = [row for row in published["rows"] if row["baseline"] == args.baseline]
    rows = [*our_rows(records), *icefall_rows(published_rows, columns)]
    print(markdown_table([*HEADER, *map(measure_shown, columns)], rows))
    print(f"icefall: {published['source']}; {published['note']}")
