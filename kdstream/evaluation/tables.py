"""Result records as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdstream.evaluation import scoring
from kdstream.evaluation.latency import COMPUTE, FINAL, FRAME, MEASURES, SHOWN
from kdstream.evaluation.records import Measure, Record, load_list, newest, to_record
from kdstream.words import RATES

LATENCY_CELLS = "Latency in milliseconds: mean (50 / 90 / 99 % of cases are no longer)."


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats are shown with two digits, None as a dash, numbers to the right."""
    numeric = [
        bool(rows) and all(isinstance(row[i], (int, float, type(None))) for row in rows) for i in range(len(header))
    ]
    lines = [
        header,
        ["---:" if right else "---" for right in numeric],
        *[[_shown(cell) for cell in row] for row in rows],
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _shown(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell).replace("|", "\\|")


def wer_table(records: Sequence[Record]) -> str:
    """One row per system, seed, checkpoint and way of decoding, one column per measure: `WER [95 % interval]`.

    What is scored in characters has its other rates after a semicolon: `CER [95 % interval]; WER 12.34`.

    The interval of one training is over utterances alone.
    """
    columns = measures(records)
    header = ["system", "seed", "model", "distilled", "mode", "chunk / left (ms)", "search"]
    header += [*map(measure_shown, columns), "speech (h)", "compute (h)"]
    rows: dict[tuple[Any, ...], dict[Measure, Record]] = {}
    for record in records:
        of_row = (record.system, record.seed, record.checkpoint, *record.decoding)
        rows.setdefault(of_row, {})[record.measure] = record
    table = []
    for found in rows.values():
        first = next(iter(found.values()))
        cells = [
            first.system,
            first.seed,
            f"{first.encoder}, {first.parameters / 1e6:.2f} M",
            first.method,
            first.mode,
        ]
        cells += [chunk_shown(first), first.search]
        cells += [_all_rates_shown(found[measure]) if measure in found else None for measure in columns]
        table.append([*cells, first.speech_hours or None, first.compute_hours or None])
    return markdown_table(header, table)


def latency_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows for `rows_table`: the latencies of each record that has any, in milliseconds.

    A measure that no record has gets no column, and neither does the token's frame in first and last words.
    """
    records = [record for record in records if record.latency_ms is not None or record.latency]
    measured = {name for record in records for name in record.latency}
    columns = [name for name in (SHOWN, "shown_first", "shown_last", FINAL, FRAME, COMPUTE) if name in measured]
    names = ("seed", "search", "counted")
    varying = [name for name in names if len({getattr(record, name) for record in records}) > 1]
    rows = []
    for record in records:
        latency = record.latency
        row = {"system": record.system, **{name: getattr(record, name) for name in varying}}
        row.update({"test set": record.test_set, "mode": record.mode, "chunk / left (ms)": chunk_shown(record)})
        row["algorithmic"] = record.latency_ms
        if FRAME in measured:
            row["words"] = latency[FRAME].count if FRAME in latency else None
        for name in columns:
            digits = 1 if name == COMPUTE else 0
            row[MEASURES[name].label] = latency[name].shown(digits) if name in latency else None
        rows.append(row)
    return rows


def latency_notes(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The meaning of each column of `latency_rows`, by its name."""
    explained = {
        "algorithmic": "how far the audio must run from a chunk's first sample on: the chunk, its right context and "
        "what the front end hears beyond",
        "counted": "what counts as a word: a word, a char(acter), or both where it is mixed",
        "words": "words that were got right, over which delays are measured",
        **{measure.label: measure.definition for measure in MEASURES.values()},
    }
    return {name: explained[name] for name in dict.fromkeys(name for row in rows for name in row) if name in explained}


def wer_shown(record: Record) -> str:
    low, high = record.interval
    return f"{record.wer:.2f} [{low:.2f}, {high:.2f}]"


def _all_rates_shown(record: Record) -> str:
    return "; ".join([wer_shown(record), *(f"{rate} {value:.2f}" for rate, value in record.other_rates.items())])


def rate_shown(records: Sequence[Record]) -> str:
    """What the error rates of records are called: WER, CER, or both with a stroke."""
    return "/".join(dict.fromkeys(r.rate for r in records))


def measures(records: Sequence[Record]) -> list[Measure]:
    """Test sets with what was counted on them, each once; those of one test set follow each other."""
    test_sets = list(dict.fromkeys(r.test_set for r in records))
    return sorted(dict.fromkeys(r.measure for r in records), key=lambda measure: test_sets.index(measure[0]))


def measure_shown(measure: Measure) -> str:
    """`test-clean WER %`"""
    test_set, counted = measure
    return f"{test_set} {RATES[counted]} %"


def chunk_shown(record: Record) -> str:
    """`160 / 640`, or `160 + 80 / 640` with right context."""
    if record.chunk_ms is None:
        return "full"
    return f"{chunk_alone_shown(record)} / {'all' if record.left_ms == -1 else record.left_ms}"


def chunk_alone_shown(record: Record) -> str:
    """`160`, or `160 + 80` with right context: what the audio must run on for a chunk to be decoded."""
    return f"{record.chunk_ms}{f' + {record.right_ms}' if record.right_ms else ''}"


def commands_block(records: Sequence[Record]) -> str:
    """The commands behind the records, each once, as a Markdown code block."""
    commands = dict.fromkeys(r.command for r in records)
    return "```bash\n" + "".join(f"{command}\n" for command in commands) + "```\n"


def render(path: Path) -> str:
    """A JSON file of egs/librispeech/results as Markdown.

    Records become a table of word error rates; folded below it come a table of latencies, where any was measured, and
    the commands.  Any other list of flat objects becomes a table with their names as columns.
    """
    items = load_list(path)
    if items and "wer" in items[0] and "system" in items[0]:
        records = newest([to_record(path, item) for item in items])
        parts = [wer_table(records)]
        if any(record.latency for record in records):
            parts.append(_folded(LATENCY_CELLS, rows_table(latency_rows(records))))
        return "\n".join([*parts, _folded("The commands.", commands_block(records))])
    return rows_table(items)


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n</details>\n"


def interval_shown(interval: scoring.Interval, digits: int = 1) -> str:
    low, high = interval
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def rows_table(rows: Sequence[dict[str, Any]]) -> str:
    """Flat objects as a Markdown table with their names as columns."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table(header, [[row.get(name) for name in header] for row in rows])
