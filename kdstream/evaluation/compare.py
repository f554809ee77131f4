"""Systems against a baseline: relative reductions with intervals, delays, and several seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstream.errors import UserError
from kdstream.evaluation import scoring
from kdstream.evaluation.latency import (
    FINAL,
    FRAME,
    MEASURES,
    SHOWN,
    delays_file,
    in_common,
    later_by,
    read_delays,
    summarise,
)
from kdstream.evaluation.records import Record
from kdstream.evaluation.tables import chunk_shown, interval_shown


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


Run = tuple[Record, Path]  # with its recogs file, which need not be there


def _pairs(runs: dict[Path, Sequence[Record]], baseline: str) -> Iterator[tuple[Run, Run]]:
    """Each record of another system, with the record of `baseline` that has the same setting and seed."""
    found = [(record, path.parent / record.recogs) for path, records in runs.items() for record in records]
    before = {(record.seed, *record.setting): (record, recogs) for record, recogs in found if record.system == baseline}
    for record, recogs in found:
        if record.system != baseline and (record.seed, *record.setting) in before:
            yield (record, recogs), before[(record.seed, *record.setting)]


def compare(runs: dict[Path, Sequence[Record]], baseline: str) -> list[Reduction]:
    """Relative WER reduction against the system `baseline`, for each record that shares its setting and seed.

    Args:
      runs: records by results JSON, beside which their recogs files lie.
    Raises:
      UserError: two records of a test set have different utterances.
    """
    reductions = []
    for (record, _), (base, _) in _pairs(runs, baseline):
        percent = scoring.relative_reduction(base.wer, record.wer) if base.wer else None
        reductions.append(Reduction(record, base, percent, _paired_interval(base, record)))
    return reductions


def compare_delays(runs: dict[Path, Sequence[Record]], baseline: str) -> list[dict[str, Any]]:
    """How much later words come than those of `baseline`, over the words that are correct in both.

    Arguments as in `compare`.  Records without delays, and records whose recogs files lie elsewhere, have no row.

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
        row: dict[str, Any] = {
            "system": record.system,
            "against": base.system,
            "test set": record.test_set,
            "mode": record.mode,
            "chunk / left (ms)": chunk_shown(record),
            "search": record.search,
            "words": had[FRAME].count,
        }
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
        "texts",
        fix="decode both again",
    )


def compare_seeds(
    records: Sequence[Record], baseline: str, rivals: Sequence[str], column: str = "method"
) -> list[dict[str, Any]]:
    """Systems that were trained with several seeds, against `baseline` and against the best of `rivals`.

    The best rival is chosen for each test set by its WER on that test set, which is in its favour.  A reduction is that
    of the errors of all seeds together.  Its interval (95 %) resamples utterances, the same ones for both systems.

    Args:
      records: one per system, seed and test set.
      column: what the systems are.
    Returns:
      Rows for `rows_table`: WERs as mean and standard deviation over the seeds, compute as the mean of one training.
    Raises:
      UserError: a record lacks the errors of its utterances, has other utterances than the records before it, or has
        another mode, chunk, context or search than the other seeds of its system; two records have the same seed.
    """
    found = _by_system(records)
    rows: dict[str, dict[str, Any]] = {}
    for test_set, systems in found.items():
        pooled = {
            system: scoring.pool([record.score for record in seeds if record.score])
            for system, seeds in systems.items()
        }
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


def _by_system(records: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """The records of each test set and system, one per seed.  Raises UserError as `compare_seeds` does."""
    found: dict[str, dict[str, list[Record]]] = {}
    scored_words: dict[str, tuple[int, ...]] = {}
    for record in records:
        which = f"{record.system}, seed {record.seed}, {record.test_set}"
        if not record.utterance_words:
            raise UserError(f"{which}: its record lacks utterance_errors", fix="decode again")
        if record.utterance_words != scored_words.setdefault(record.test_set, record.utterance_words):
            raise UserError(f"{which}: was scored on other utterances than the other systems and seeds")
        seeds = found.setdefault(record.test_set, {}).setdefault(record.system, [])
        for other in seeds:
            if record.setting != other.setting:
                ours, theirs = (", ".join(map(str, r.setting[1:])) for r in (record, other))
                raise UserError(f"{which}: was decoded as {ours}, but seed {other.seed} as {theirs}")
            if record.seed == other.seed:
                raise UserError(f"{which}: is there twice, and a seed counts once")
        seeds.append(record)
    return found


def _spread_shown(wers: Sequence[float]) -> str:
    mean, deviation = scoring.mean_and_deviation(wers)
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _reduction_shown(before: scoring.Score, after: scoring.Score) -> str | None:
    if not before.errors:
        return None
    low, high = scoring.bootstrap_reduction(before, after)
    return f"{scoring.relative_reduction(before.wer, after.wer):.1f} [{low:.1f}, {high:.1f}]"
