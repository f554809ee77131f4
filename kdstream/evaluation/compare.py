"""Systems against a baseline: relative reductions with intervals, delays, and several seeds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
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

ONE_SEED = "(1 seed)"  # beside what rests on a single training


@dataclass(frozen=True)
class Reduction:
    """Relative reduction of the mean WER of a system's seeds against the baseline's seeds in the same setting.

    records, bases: one per seed, of the system and of the baseline.
    percent: None where the baseline makes no errors.
    interval: 95 %, over the seeds of both and over utterances, see `scoring.bootstrap_reduction`; None where a record
      lacks its utterances' errors.
    """

    records: Sequence[Record]
    bases: Sequence[Record]
    percent: float | None
    interval: scoring.Interval | None

    @property
    def record(self) -> Record:
        """The first seed's, which says how all were decoded."""
        return self.records[0]

    @property
    def base(self) -> Record:
        return self.bases[0]

    @property
    def seeds(self) -> str:
        """`1`, or `2 / 5` where the baseline has 5."""
        ours, theirs = len(self.records), len(self.bases)
        return str(ours) if ours == theirs else f"{ours} / {theirs}"

    def row(self) -> dict[str, Any]:
        """A flat object, for `rows_table`."""
        return {
            "system": self.record.system,
            "against": self.base.system,
            "seeds": self.seeds,
            "test set": self.record.test_set,
            "mode": self.record.mode,
            "chunk / left (ms)": chunk_shown(self.record),
            "search": self.record.search,
            f"{self.record.rate} % before": mean_wer(self.bases),
            f"{self.record.rate} % after": mean_wer(self.records),
            "reduction %": self.percent,
            "interval": None if self.interval is None else interval_shown(self.interval),
        }


def shared_by_seeds(record: Record) -> tuple[Any, ...]:
    """What records share that differ in nothing but the seed of their training."""
    return (record.system, record.checkpoint, record.setting)


def by_seeds(records: Iterable[Record]) -> list[list[Record]]:
    """The records, with those together that differ in nothing but the seed of their training."""
    together: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        together.setdefault(shared_by_seeds(record), []).append(record)
    return list(together.values())


def mean_wer(records: Sequence[Record]) -> float:
    """Per cent, over the seeds of one system."""
    return fmean(record.wer for record in records)


def mean_interval(records: Sequence[Record]) -> scoring.Interval | None:
    """The 95 % interval of `mean_wer`, over seeds and utterances.

    It is None where one of several records lacks its utterances' errors, or was scored on other utterances.
    """
    if len(records) == 1:
        return records[0].interval
    scores = _scores([record for record in records if record.utterance_words == records[0].utterance_words])
    return scoring.bootstrap_wer(*scores) if len(scores) == len(records) else None


Run = tuple[Record, Path]  # with its recogs file, which need not be there


def _pairs(runs: dict[Path, Sequence[Record]], baseline: str) -> Iterator[tuple[Run, Run]]:
    """Each record of another system, with the record of `baseline` that has the same setting and seed."""
    found = [(record, path.parent / record.recogs) for path, records in runs.items() for record in records]
    before = {(record.seed, *record.setting): (record, recogs) for record, recogs in found if record.system == baseline}
    for record, recogs in found:
        if record.system != baseline and (record.seed, *record.setting) in before:
            yield (record, recogs), before[(record.seed, *record.setting)]


def compare(runs: dict[Path, Sequence[Record]], baseline: str) -> list[Reduction]:
    """Relative WER reductions against the system `baseline`: one for each other system, checkpoint and setting.

    Seeds count together, those of the baseline in that setting too; the two need not have the same seeds.

    Args:
      runs: records by results JSON.
    Raises:
      UserError: two records of a test set have different utterances.
    """
    everything = [record for records in runs.values() for record in records]
    _warn_of_normalisations(everything)
    bases: dict[tuple[Any, ...], dict[int, Record]] = {}
    for record in everything:
        if record.system == baseline:
            bases.setdefault(record.setting, {})[record.seed] = record
    reductions = []
    for records in by_seeds(record for record in everything if record.system != baseline):
        if records[0].setting in bases:
            before = list(bases[records[0].setting].values())
            wer = mean_wer(before)
            percent = scoring.relative_reduction(wer, mean_wer(records)) if wer else None
            interval = None if percent is None else _reduction_interval(before, records)
            reductions.append(Reduction(records, before, percent, interval))
    _warn_of_checkpoints(reductions)
    return reductions


def compare_delays(runs: dict[Path, Sequence[Record]], baseline: str) -> list[dict[str, Any]]:
    """How much later words come than those of `baseline`, over the words that are correct in both.

    Records without delays, and records whose recogs files lie elsewhere, have no row.

    Args:
      runs: records by results JSON, beside which their recogs files lie.
    Returns:
      Rows for `rows_table`, in milliseconds.  Each compares one training with one, those of a common seed, so the
      intervals (95 %) are over utterances alone.
    """
    rows = []
    everything = [record for records in runs.values() for record in records]
    varying = [name for name in ("seed", "counted") if len({getattr(record, name) for record in everything}) > 1]
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
            **{name: getattr(record, name) for name in varying},
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


def _reduction_interval(baseline: Sequence[Record], system: Sequence[Record]) -> scoring.Interval | None:
    before, after = _scores(baseline), _scores(system)
    if (len(before), len(after)) != (len(baseline), len(system)):
        return None
    for record in (*baseline, *system):
        if not _same_utterances(baseline[0], record):
            raise _unpaired(baseline[0], record)
    return scoring.bootstrap_reduction(before, after)


def _same_utterances(one: Record, other: Record) -> bool:
    """Whether two records are of the same cuts, as far as they tell, with as many words in each."""
    return one.utterance_words == other.utterance_words and (one.cuts == other.cuts or "" in (one.cuts, other.cuts))


def interval_label(records: Sequence[Record]) -> str:
    """What `mean_interval` of each system in a picture is: `95 % interval, 1 to 5 seeds`."""
    counts = list(map(len, by_seeds(records)))
    least, most = min(counts), max(counts)
    seeds = f"{most} seed{'s' * (most > 1)}" if least == most else f"{least} to {most} seeds"
    return f"95 % interval, {seeds}"


def _scores(records: Sequence[Record]) -> list[scoring.Score]:
    """Of the records that have their utterances' errors."""
    return [score for record in records if (score := record.score)]


def _warn_of_normalisations(records: Iterable[Record]) -> None:
    """Says where texts of one test set went through several rules: what is an error in one may be none in another."""
    systems: dict[str, dict[str, dict[str, None]]] = {}
    for record in records:
        if record.normalisation:
            systems.setdefault(record.test_set, {}).setdefault(record.normalisation, {})[record.system] = None
    for test_set, rules in systems.items():
        if len(rules) > 1:
            shown = "; ".join(f"{rule}: {', '.join(names)}" for rule, names in rules.items())
            logging.warning(f"test set {test_set}: error rates count other errors, as texts are normalised by {shown}")


def _warn_of_checkpoints(reductions: Iterable[Reduction]) -> None:
    """Says once where seeds of the baseline, which count together, were not trained equally long or averaged alike."""
    lines: dict[str, None] = {}
    for reduction in reductions:
        seeds = {record.checkpoint: record.seed for record in reduction.bases}
        if len(seeds) > 1:
            shown = ", ".join(f"{checkpoint} (seed {seed})" for checkpoint, seed in seeds.items())
            system = reduction.base.system
            lines[f"{system}: its seeds count together, but were decoded from several checkpoints: {shown}"] = None
    for line in lines:
        logging.warning(f"{line}; decode all from one --epoch and --avg")


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
    of the mean WERs.  Its interval (95 %) is over the seeds of both systems and over utterances, see
    `scoring.bootstrap_reduction`.  ONE_SEED stands beside it where either system has a single one.

    Args:
      records: one per system, seed and test set.
      column: what the systems are.
    Returns:
      Rows for `rows_table`: WERs as mean and standard deviation over the seeds, and alike, where all seeds have it, how
      long after its end a word is shown; compute as the mean of one training.
    Raises:
      UserError: a record lacks the errors of its utterances, has other utterances than the records before it, or has
        another mode, chunk, context, search or checkpoint than the other seeds of its system; two records have the same
        seed; a seed lacks a test set.
    """
    _warn_of_normalisations(records)
    found = _by_system(records)
    rows: dict[str, dict[str, Any]] = {}
    for test_set, systems in found.items():
        means = {system: fmean(score.wer for score in _scores(seeds)) for system, seeds in systems.items()}
        present = [system for system in rivals if system in means]
        others = [baseline] if baseline in means else []
        others += [min(present, key=lambda system: means[system])] if present else []
        for system, seeds in systems.items():
            row = rows.setdefault(system, {column: system, "seeds": len(seeds)})
            row[f"{test_set} {seeds[0].rate} %"] = _spread_shown([record.wer for record in seeds])
            for other in others:
                shown = None if system == other else _reduction_shown(systems[other], seeds)
                row[f"{test_set} vs {other} %"] = shown
            if all(SHOWN in seed.latency for seed in seeds):
                delays = [seed.latency[SHOWN].mean for seed in seeds]
                row[f"{test_set} {MEASURES[SHOWN].label} (ms)"] = _spread_shown(delays, digits=0)
    for system, row in rows.items():
        hours = [record.compute_hours for systems in found.values() for record in systems.get(system, [])]
        row["compute (h)"], _ = scoring.mean_and_deviation(hours)
    return list(rows.values())


def _by_system(records: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """The records of each test set and system, one per seed.  Raises UserError as `compare_seeds` does."""
    found: dict[str, dict[str, list[Record]]] = {}
    first: dict[str, Record] = {}
    for record in records:
        if not record.utterance_words:
            raise UserError(f"{record.shown}: its record lacks utterance_errors", fix="decode again")
        if not _same_utterances(record, first.setdefault(record.test_set, record)):
            problem = f"{record.shown}: was scored on other utterances than the other systems and seeds"
            raise UserError(problem, fix="decode all on the same cuts")
        seeds = found.setdefault(record.test_set, {}).setdefault(record.system, [])
        for other in seeds:
            if shared_by_seeds(record) != shared_by_seeds(other):
                ours, theirs = (", ".join(map(str, (r.checkpoint, *r.decoding, r.counted))) for r in (record, other))
                raise UserError(
                    f"{record.shown}: was decoded as {ours}, but seed {other.seed} as {theirs}", fix="decode both alike"
                )
            if record.seed == other.seed:
                raise UserError(f"{record.shown}: is there twice, and a seed counts once", fix="leave one out")
        seeds.append(record)
    _refuse_uneven_seeds(found)
    return found


def _refuse_uneven_seeds(found: dict[str, dict[str, list[Record]]]) -> None:
    """Raises UserError where a system has more seeds on one test set than on another: a row has one number of them."""
    first: dict[str, tuple[str, set[int]]] = {}
    for test_set, systems in found.items():
        for system, records in systems.items():
            seeds = {record.seed for record in records}
            other, others = first.setdefault(system, (test_set, seeds))
            if seeds != others:
                seed = min(seeds ^ others)
                there, lacking = (other, test_set) if seed in others else (test_set, other)
                problem = f"{system}, seed {seed}: is scored on {there}, and not on {lacking}"
                raise UserError(problem, fix="decode it on both, or leave it out")


def _spread_shown(values: Sequence[float], digits: int = 2) -> str:
    mean, deviation = scoring.mean_and_deviation(values)
    return f"{mean:.{digits}f}" if deviation is None else f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def _reduction_shown(before: Sequence[Record], after: Sequence[Record]) -> str | None:
    wer, system_wer = (fmean(score.wer for score in _scores(seeds)) for seeds in (before, after))
    interval = _reduction_interval(before, after)
    if not wer or interval is None:
        return None
    shown = f"{scoring.relative_reduction(wer, system_wer):.1f} {interval_shown(interval)}"
    return f"{shown} {ONE_SEED}" if 1 in (len(before), len(after)) else shown
