"""What the numbers say: the headline of a report, and the rows of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from kdstream.evaluation.compare import Reduction, by_seeds, mean_interval, mean_wer, shared_by_seeds
from kdstream.evaluation.records import MODES, Measure, Record
from kdstream.evaluation.scoring import mean_and_deviation
from kdstream.evaluation.tables import (
    chunk_alone_shown,
    chunk_shown,
    interval_shown,
    measure_shown,
    measures,
    wer_shown,
)

MODE_NAMES = {"full": "full context", "simulated": "simulated streaming", "chunkwise": "chunk by chunk"}

ERRORS = {"WER": "word errors", "CER": "character errors", "MER": "errors"}

Table = tuple[list[str], list[list[str]]]  # header and rows


def preference(record: Record) -> tuple[int, int]:
    """A key that sorts chunk by chunk before simulated before full context, and what is heard sooner before."""
    return (-MODES.index(record.mode), (record.chunk_ms or 0) + record.right_ms)


def _unbroken(text: str) -> str:
    """`text` that stays on one line."""
    return text.replace(" ", "\u00a0")


def decoding_shown(record: Record) -> str:
    """`chunk by chunk, 160 / 640 ms`"""
    name = MODE_NAMES[record.mode]
    return name if record.chunk_ms is None else f"{name}, {_unbroken(chunk_shown(record))}\u00a0ms"


def headline(records: Sequence[Record], reductions: Sequence[Reduction]) -> list[str]:
    """The main result, a paragraph for each test set: the best system against the baseline where latency is lowest.

    Without a baseline it is the lowest WER.  A test set on which words and characters were counted has two paragraphs.
    One more says how much each system was trained, where that differs.
    """
    measured = [r for r in reductions if r.percent is not None]
    if not measured:
        return [_lowest_shown([r for r in records if r.measure == measure]) for measure in measures(records)]
    first = min((r.record for r in measured), key=preference)
    decoded_alike = [r for r in measured if r.record.decoding == first.decoding]  # on any test set, in its own unit
    by_system: dict[tuple[str, str], list[Reduction]] = {}
    for reduction in decoded_alike:
        by_system.setdefault((reduction.record.system, reduction.record.checkpoint), []).append(reduction)
    most = max(map(len, by_system.values()))  # means over other test sets do not compare
    fullest = [some for some in by_system.values() if len(some) == most]
    best = max(fullest, key=lambda some: fmean(r.percent for r in some if r.percent is not None))
    paragraphs = [f"{_sentence(reduction)} {_gap(reduction, records)}".strip() for reduction in best]
    return [*paragraphs, *_training_shown(best[0], records)]


def _lowest(records: Sequence[Record]) -> list[Record]:
    """The seeds of what has the lowest mean WER, of records with one measure; none of no records."""
    return min(by_seeds(records), key=mean_wer, default=[])


def _lowest_shown(records: Sequence[Record]) -> str:
    """`baseline has 12.50 [11.00, 14.25] % WER on test-clean (full context).`, of records with one measure."""
    lowest = _lowest(records)
    first = lowest[0]
    return f"{first.system} has {_wer_shown(lowest)} % {first.rate} on {first.test_set} ({decoding_shown(first)})."


def _sentence(reduction: Reduction) -> str:
    """`distilled has 27 % [17, 36] fewer word errors than baseline at 160 ms on test: 24.6 % against 33.7 % WER ...`"""
    record, base, percent, interval = reduction.record, reduction.base, reduction.percent, reduction.interval
    assert percent is not None  # as of all that the headline chooses from
    sign = -1 if percent < 0 else 1
    bounds = "" if interval is None else "[{:.0f}, {:.0f}] ".format(*sorted(sign * bound for bound in interval))
    where = "in full context" if record.chunk_ms is None else f"at {chunk_alone_shown(record)} ms"
    chance, difference = "", f"{'more' if sign < 0 else 'fewer'} {ERRORS[record.rate]}"
    if interval is not None and interval[0] <= 0 <= interval[1]:
        chance = "; the interval holds 0, so this may be chance"
    return (
        f"{record.system} has {sign * percent:.0f} % {bounds}{difference} than "
        f"{base.system} {where} on {record.test_set}: {mean_wer(reduction.records):.1f} % against "
        f"{mean_wer(reduction.bases):.1f} % {record.rate} ({_seeds_shown(reduction)}){chance}."
    )


def _seeds_shown(reduction: Reduction) -> str:
    """What the numbers rest on."""
    ours, theirs = len(reduction.records), len(reduction.bases)
    if ours == theirs:
        return "1 seed" if ours == 1 else f"means of {ours} seeds"
    return f"seeds: {ours} and {theirs}"


def _goal(reduction: Reduction, records: Sequence[Record]) -> Sequence[Record]:
    """The seeds of the best other system in full context, measured and searched alike; none where there is none."""
    record, base = reduction.record, reduction.base
    full = [r for r in records if r.mode == "full" and r.measure == record.measure and r.search == record.search]
    return _lowest([r for r in full if r.system not in (record.system, base.system)])


def _gap(reduction: Reduction, records: Sequence[Record]) -> str:
    """How much of the gap between the baseline and the best full-context system is closed; "" where there is none."""
    goal = _goal(reduction, records)
    wer, base_wer = mean_wer(reduction.records), mean_wer(reduction.bases)
    if not goal or mean_wer(goal) >= base_wer or wer >= base_wer:
        return ""
    name, goal_wer = goal[0].system, mean_wer(goal)
    if wer < goal_wer:
        return f"That is below the {goal_wer:.1f} % of {name}, which hears the whole utterance."
    share = 100 * (base_wer - wer) / (base_wer - goal_wer)
    return f"{name}, which hears the whole utterance, has {goal_wer:.1f} %: {share:.0f} % of the gap is closed."


def _training_shown(reduction: Reduction, records: Sequence[Record]) -> list[str]:
    """`Speech that training went through, repetitions counted: baseline 10.0 h, ...`, where it is known and differs."""
    compared = (reduction.bases, reduction.records, _goal(reduction, records))
    hours = {some[0].system: fmean(r.speech_hours for r in some) for some in compared if some}
    if 0 in hours.values() or len({f"{value:.1f}" for value in hours.values()}) < 2:
        return []
    shown = ", ".join(f"{name} {value:.1f} h" for name, value in hours.items())
    return [f"Speech that training went through, repetitions counted: {shown}."]


def wer_rows(records: Sequence[Record], reductions: Sequence[Reduction], baseline: str) -> Table:
    """A row for each system and way of decoding: its WER in each measure and the reduction against the baseline.

    Seeds share a row, with their mean and deviation.
    """
    columns = measures(records)
    searches = len({r.search for r in records}) > 1
    reduction_of = {shared_by_seeds(r.record): r for r in reductions}
    rows: dict[tuple, dict[Measure, list[Record]]] = {}
    for record in records:
        row = rows.setdefault((record.system, record.checkpoint, record.decoding), {})
        row.setdefault(record.measure, []).append(record)
    header = ["system", "seeds", "decoding, chunk / left", *["search"] * searches]
    for measure in columns:
        header += [measure_shown(measure), *[f"fewer errors than {baseline}, %"] * bool(reductions)]
    table = []
    for found in rows.values():
        first, *_ = seeds = next(iter(found.values()))
        cells = [first.system, str(len(seeds)), decoding_shown(first), *[first.search] * searches]
        for measure in columns:
            seeds = found.get(measure, [])
            cells.append(_wer_shown(seeds))
            if reductions:
                cells.append(_reduction_shown(reduction_of.get(shared_by_seeds(seeds[0])) if seeds else None))
        table.append(cells)
    return header, table


def _wer_shown(seeds: Sequence[Record]) -> str:
    """The WER of one seed, or the mean and deviation of several, with its interval."""
    if not seeds:
        return ""
    if len(seeds) == 1:
        return " ".join(map(_unbroken, wer_shown(seeds[0]).split(" ", 1)))
    mean, deviation = mean_and_deviation([record.wer for record in seeds])
    interval = mean_interval(seeds)
    bounds = "" if interval is None else f" {_unbroken(interval_shown(interval, 2))}"
    return _unbroken(f"{mean:.2f} ± {deviation:.2f}") + bounds


def _reduction_shown(reduction: Reduction | None) -> str:
    if reduction is None or reduction.percent is None:
        return ""
    interval = "" if reduction.interval is None else f" {_unbroken(interval_shown(reduction.interval))}"
    return f"{reduction.percent:.1f}{interval}"


def as_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Flat objects as a table, their keys as its header; each cell stays on one line."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    cells = [["" if row.get(name) is None else _unbroken(str(row[name])) for name in header] for row in rows]
    return header, cells


def model_rows(records: Sequence[Record]) -> Table:
    """A row for each trained model: its size, what was distilled into it and what its training took.

    With which weights a training began has a column where one did with those of another.
    """
    header = ["system", "seed", "model", "distilled", "checkpoint", "speech (h)", "compute (h)"]
    fine_tuned = any(r.begins_with for r in records)
    if fine_tuned:
        header.insert(4, "begins with")
    rows = [
        [
            r.system,
            str(r.seed),
            f"{r.encoder}, {r.parameters / 1e6:.2f} M",
            r.method,
            *([r.begins_with or "-"] if fine_tuned else []),
            r.checkpoint,
            *(f"{hours:.2f}" if hours else "-" for hours in (r.speech_hours, r.compute_hours)),
        ]
        for r in records
    ]
    return header, [list(row) for row in dict.fromkeys(map(tuple, rows))]
