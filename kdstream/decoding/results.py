"""Result records: what was scored, on what, at what cost; kept in JSON files and shown in Markdown tables.

A results JSON is a list of records.  Scoring the same thing again (`Record.key`) replaces its record.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdstream.config import UserError
from kdstream.decoding import scoring
from kdstream.decoding.latency import (
    COMPUTE,
    FINAL,
    FRAME,
    MEASURES,
    SHOWN,
    Latency,
    delays_file,
    in_common,
    latency_from_json,
    later_by,
    read_delays,
    summarise,
)

MODES = ("full", "simulated", "chunkwise")
MAY_LACK: dict[str, Any] = {"latency": {}, "utterance_errors": (), "utterance_words": ()}  # fields of a record's file
LATENCY_CELLS = "Latency in milliseconds: mean (50 / 90 / 99 % of cases are no longer)."


@dataclass(frozen=True)
class Record:
    """One scored run.

    encoder: architecture and preset.  parameters: of the model as it is decoded.
    method: what training distilled, "none" without a teacher.
    mode: full (context), simulated (streaming by a mask) or chunkwise (with caches).
    chunk_ms, left_ms, latency_ms (algorithmic): None in full context; left_ms -1 is unlimited.
    wer and interval (95 %, bootstrap over utterances): per cent.
    speech_hours: speech that training has gone through, repetitions counted; compute_hours: what that took; both 0
      for weights without their checkpoint, which do not tell.
    recogs: recogs-*.txt, relative to the results JSON; "" where it is not kept beside it.
    latency: what was measured of it, by the names in latency.py; a file may lack it.
    utterance_errors, utterance_words: of each utterance in the order of its id, for intervals of what two records
      share or differ in; a file may lack them, and no such interval is known then.
    """

    system: str
    encoder: str
    parameters: int
    method: str
    seed: int
    checkpoint: str
    test_set: str
    mode: str
    chunk_ms: int | None
    left_ms: int | None
    latency_ms: int | None
    search: str
    errors: int
    words: int
    insertions: int
    deletions: int
    substitutions: int
    wer: float
    interval: tuple[float, float]
    speech_hours: float
    compute_hours: float
    recogs: str
    command: str
    latency: Latency = field(default_factory=dict)
    utterance_errors: tuple[int, ...] = ()
    utterance_words: tuple[int, ...] = ()

    @property
    def score(self) -> scoring.Score | None:
        """None where utterances were not counted."""
        if not self.utterance_words:
            return None
        counts = (np.array(self.utterance_errors), np.array(self.utterance_words))
        return scoring.Score(self.insertions, self.deletions, self.substitutions, *counts)

    @property
    def setting(self) -> tuple[Any, ...]:
        """What two systems must share to be compared."""
        return (self.test_set, self.mode, self.chunk_ms, self.left_ms, self.search)

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.system, self.seed, *self.setting)


def load_records(path: Path) -> list[Record]:
    """The records of a results JSON.  Raises UserError if it is none."""
    return [_to_record(path, item) for item in _load_list(path)]


def _load_list(path: Path) -> list[dict[str, Any]]:
    try:
        items = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a results JSON ({error}); mend it, or delete it and decode again") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{path}: a results JSON is a list of objects; mend it, or delete it and decode again")
    return items


def _to_record(path: Path, item: dict[str, Any]) -> Record:
    names = {f.name for f in fields(Record)}
    item = {**MAY_LACK, **item}
    if set(item) != names:
        odd = ", ".join(sorted(names.symmetric_difference(item)))
        raise UserError(f"{path}: a record lacks or has too much of: {odd}; decode again into a new --results-json")
    try:
        latency = latency_from_json(item["latency"])
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}; decode again into a new --results-json") from error
    tuples = {name: tuple(item[name]) for name in ("interval", "utterance_errors", "utterance_words")}
    return Record(**{**item, **tuples, "latency": latency})


def _to_item(record: Record) -> dict[str, Any]:
    """The inverse of `_to_record`."""
    return {name: value for name, value in asdict(record).items() if value or name not in MAY_LACK}


def add_record(path: Path, record: Record) -> None:
    """Adds `record` to the results JSON at `path`, in place of one with the same key.

    Safe against a crash (the file is replaced as a whole) and against other processes that add at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        records = [old for old in load_records(path) if old.key != record.key] if path.exists() else []
        write_json(path, [_to_item(r) for r in [*records, record]])


def write_json(path: Path, items: Sequence[dict[str, Any]]) -> None:
    """Writes a list of objects, one per line, atomically."""
    lines = ",\n".join(json.dumps(item) for item in items)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(name: Path, records: Sequence[Record], **tables: Sequence[dict[str, Any]]) -> None:
    """Writes the records to NAME.json and each table's rows to NAME-<table>.json; recogs files stay where they are."""
    name.parent.mkdir(parents=True, exist_ok=True)
    write_json(name.with_name(f"{name.name}.json"), [_to_item(replace(record, recogs="")) for record in records])
    for table, rows in tables.items():
        write_json(name.with_name(f"{name.name}-{table}.json"), rows)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
    """One row per system and way of decoding, one column per test set: `WER [95 % interval]`."""
    test_sets = list(dict.fromkeys(r.test_set for r in records))
    several_seeds = len({r.seed for r in records}) > 1
    header = ["system", *["seed"] * several_seeds, "model", "distilled", "mode", "chunk / left (ms)", "search"]
    header += [f"{name} WER %" for name in test_sets] + ["speech (h)", "compute (h)"]
    rows: dict[tuple[Any, ...], dict[str, Record]] = {}
    for record in records:
        rows.setdefault((record.system, record.seed, *record.setting[1:]), {})[record.test_set] = record
    table = []
    for by_set in rows.values():
        first = next(iter(by_set.values()))
        cells = [
            first.system,
            *[first.seed] * several_seeds,
            f"{first.encoder}, {first.parameters / 1e6:.2f} M",
            first.method,
            first.mode,
        ]
        cells += [chunk_shown(first), first.search]
        cells += [wer_shown(by_set[name]) if name in by_set else None for name in test_sets]
        table.append([*cells, first.speech_hours or None, first.compute_hours or None])
    return markdown_table(header, table)


def latency_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Flat objects, for `rows_table`: latencies of each record that has any, in milliseconds.

    There is no column for what no record has measured, and none for the token's frame in first and last words.
    """
    records = [record for record in records if record.latency_ms is not None or record.latency]
    measured = {name for record in records for name in record.latency}
    columns = [name for name in (SHOWN, "shown_first", "shown_last", FINAL, FRAME, COMPUTE) if name in measured]
    varying = [name for name in ("seed", "search") if len({getattr(record, name) for record in records}) > 1]
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
    """What the columns of `latency_rows` mean, by their names."""
    explained = {
        "algorithmic": "how far the audio must run from a chunk's first sample on: the chunk and what the front end "
        "hears beyond it",
        "words": "words that were got right, over which delays are measured",
        **{measure.label: measure.definition for measure in MEASURES.values()},
    }
    return {name: explained[name] for name in dict.fromkeys(name for row in rows for name in row) if name in explained}


def wer_shown(record: Record) -> str:
    low, high = record.interval
    return f"{record.wer:.2f} [{low:.2f}, {high:.2f}]"


def chunk_shown(record: Record) -> str:
    if record.chunk_ms is None:
        return "full"
    return f"{record.chunk_ms} / {'all' if record.left_ms == -1 else record.left_ms}"


def commands_block(records: Sequence[Record]) -> str:
    """The commands behind the records, each once, as a Markdown code block."""
    commands = dict.fromkeys(r.command for r in records)
    return "```bash\n" + "".join(f"{command}\n" for command in commands) + "```\n"


def render(path: Path) -> str:
    """A JSON file of egs/librispeech/results as Markdown.

    Records become a table of word error rates, and folded behind it one of latencies, where any was measured, and the
    commands; any other list of flat objects becomes a table with their names as columns.
    """
    items = _load_list(path)
    if items and "wer" in items[0] and "system" in items[0]:
        records = [_to_record(path, item) for item in items]
        parts = [wer_table(records)]
        if any(record.latency for record in records):
            parts.append(_folded(LATENCY_CELLS, rows_table(latency_rows(records))))
        return "\n".join([*parts, _folded("The commands.", commands_block(records))])
    return rows_table(items)


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n</details>\n"


@dataclass(frozen=True)
class Reduction:
    """Relative WER reduction of a record against the baseline's record of the same setting and seed.

    percent: None where the baseline makes no errors.
    interval: 95 %, paired utterance by utterance; None where a record lacks its utterances' errors.
    """

    record: Record
    base: Record
    percent: float | None
    interval: scoring.Interval | None

    def row(self) -> dict[str, Any]:
        """A flat object, for `rows_table`."""
        return {
            "system": self.record.system,
            "against": self.base.system,
            "test set": self.record.test_set,
            "mode": self.record.mode,
            "chunk / left (ms)": chunk_shown(self.record),
            "search": self.record.search,
            "WER % before": self.base.wer,
            "WER % after": self.record.wer,
            "reduction %": self.percent,
            "interval": None if self.interval is None else interval_shown(self.interval),
        }


def interval_shown(interval: scoring.Interval, digits: int = 1) -> str:
    low, high = interval
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


Run = tuple[Record, Path]  # with its recogs file, which need not be there


def _pairs(runs: dict[Path, Sequence[Record]], baseline: str) -> Iterator[tuple[Run, Run]]:
    """Every other record beside the one of `baseline` that has its setting and seed, if there is one."""
    found = [(record, path.parent / record.recogs) for path, records in runs.items() for record in records]
    before = {(record.seed, *record.setting): (record, recogs) for record, recogs in found if record.system == baseline}
    for record, recogs in found:
        if record.system != baseline and (record.seed, *record.setting) in before:
            yield (record, recogs), before[(record.seed, *record.setting)]


def compare(runs: dict[Path, Sequence[Record]], baseline: str) -> list[Reduction]:
    """Relative WER reduction against the system `baseline`, for every record that shares its setting and seed.

    Args:
      runs: records by results JSON, beside which their recogs files lie.
    Raises:
      UserError: two records of a test set have other utterances.
    """
    reductions = []
    for (record, _), (base, _) in _pairs(runs, baseline):
        percent = scoring.relative_reduction(base.wer, record.wer) if base.wer else None
        reductions.append(Reduction(record, base, percent, _paired_interval(base, record)))
    return reductions


def compare_delays(runs: dict[Path, Sequence[Record]], baseline: str) -> list[dict[str, Any]]:
    """How much later words come than those of `baseline`, over words that both got right.

    Arguments as in `compare`; records whose delays were not measured, or lie elsewhere, have no row.

    Returns:
      Rows for `rows_table`, in milliseconds; intervals are 95 %, by resampling utterances.
    """
    rows = []
    for (record, recogs), (base, base_recogs) in _pairs(runs, baseline):
        if not all(FRAME in run.latency and path.is_file() for run, path in ((base, base_recogs), (record, recogs))):
            continue
        try:
            before, after = in_common(read_delays(delays_file(base_recogs)), read_delays(delays_file(recogs)))
        except ValueError as error:
            raise _unpaired(base, record) from error
        had, has = summarise(before), summarise(after)
        if FRAME not in had:
            continue
        row = {"system": record.system, "against": base.system, "test set": record.test_set, "mode": record.mode}
        row.update({"chunk / left (ms)": chunk_shown(record), "search": record.search, "words": had[FRAME].count})
        for name in (SHOWN, "shown_first", "shown_last", FINAL, FRAME):
            if name not in had:
                continue
            label = MEASURES[name].label
            if name == SHOWN:
                row.update({f"{label}, before": had[name].shown(), f"{label}, after": has[name].shown()})
            mean, interval = later_by(before, after, name)
            row[f"{label}, later by"] = f"{mean:.0f} {interval_shown(interval, 0)}"
        rows.append(row)
    return rows


def _paired_interval(baseline: Record, system: Record) -> scoring.Interval | None:
    before, after = baseline.score, system.score
    try:
        return scoring.bootstrap_reduction(before, after) if before and after else None
    except ValueError as error:
        raise _unpaired(baseline, system) from error


def _unpaired(baseline: Record, system: Record) -> UserError:
    return UserError(
        f"test set {system.test_set}: {system.system} and {baseline.system} were scored on different utterances or "
        "texts; decode both again"
    )


def compare_seeds(
    records: Sequence[Record], baseline: str, rivals: Sequence[str], column: str = "method"
) -> list[dict[str, Any]]:
    """Systems that were trained with several seeds, against `baseline` and against the best of `rivals`.

    The best is chosen for each test set, on that test set: nobody's margin over it is flattered.  A reduction is that
    of the errors of all seeds together; its interval (95 %) resamples utterances, the same ones for both systems.

    Args:
      records: of a system, one per seed and test set.
      column: what the systems are.
    Returns:
      Rows for `rows_table`: WERs as mean and standard deviation over the seeds, compute as the mean of one training.
    Raises:
      UserError: a record lacks its utterances' errors, is of other utterances than those before it, or of another
        mode, chunk, context or search than its system's other seeds; two records are of one seed.
    """
    found: dict[str, dict[str, list[Record]]] = {}  # by test set and system
    heard: dict[str, tuple[int, ...]] = {}
    for record in records:
        which = f"{record.system}, seed {record.seed}, {record.test_set}"
        if not record.utterance_words:
            raise UserError(f"{which}: its record lacks utterance_errors; decode again")
        if record.utterance_words != heard.setdefault(record.test_set, record.utterance_words):
            raise UserError(f"{which}: was scored on other utterances than the other systems and seeds")
        seeds = found.setdefault(record.test_set, {}).setdefault(record.system, [])
        for other in seeds:
            if record.setting != other.setting:
                ours, theirs = (", ".join(map(str, r.setting[1:])) for r in (record, other))
                raise UserError(f"{which}: was decoded as {ours}, but seed {other.seed} as {theirs}")
            if record.seed == other.seed:
                raise UserError(f"{which}: is there twice, and a seed counts once")
        seeds.append(record)
    rows: dict[str, dict[str, Any]] = {}
    for test_set, systems in found.items():
        pooled = {system: scoring.pool([record.score for record in seeds]) for system, seeds in systems.items()}
        present = [system for system in rivals if system in pooled]
        others = [baseline] if baseline in pooled else []
        others += [min(present, key=lambda system: pooled[system].wer)] if present else []
        for system, seeds in systems.items():
            row = rows.setdefault(system, {column: system, "seeds": len(seeds)})
            row[f"{test_set} WER %"] = _spread_shown([record.wer for record in seeds])
            for other in others:
                shown = None if system == other else _reduction_shown(pooled[other], pooled[system])
                row[f"{test_set} vs {other} %"] = shown
    for system, row in rows.items():
        hours = [record.compute_hours for systems in found.values() for record in systems.get(system, [])]
        row["compute (h)"], _ = scoring.mean_and_deviation(hours)
    return list(rows.values())


def _spread_shown(wers: Sequence[float]) -> str:
    mean, deviation = scoring.mean_and_deviation(wers)
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _reduction_shown(before: scoring.Score, after: scoring.Score) -> str | None:
    if not before.errors:
        return None
    low, high = scoring.bootstrap_reduction(before, after)
    return f"{scoring.relative_reduction(before.wer, after.wer):.1f} [{low:.1f}, {high:.1f}]"


def rows_table(rows: Sequence[dict[str, Any]]) -> str:
    """Flat objects as a Markdown table with their names as columns."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table(header, [[row.get(name) for name in header] for row in rows])
