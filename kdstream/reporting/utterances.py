"""Hypotheses of several systems, word under word, and the utterances to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import kaldialign

from kdstream.evaluation.records import Record
from kdstream.evaluation.scoring import NOTHING, read_recogs
from kdstream.reporting.findings import preference
from kdstream.reporting.sources import Runs

GAP = ""  # where a row has no word; no word is empty
DIFFERING, WORST = 6, 4  # utterances shown of each test set


@dataclass(frozen=True)
class Comparison:
    """One utterance in columns, each with a word of the reference and one of each system, or GAP."""

    cut_id: str
    reference: list[str]
    hypotheses: dict[str, list[str]]  # by system, each as long as the reference

    def errors(self, system: str) -> int:
        return sum(said != heard for said, heard in zip(self.reference, self.hypotheses[system], strict=True))

    @property
    def words(self) -> int:
        return sum(word != GAP for word in self.reference)

    @property
    def total(self) -> int:
        """Errors of all systems together."""
        return sum(map(self.errors, self.hypotheses))

    @property
    def spread(self) -> int:
        """Errors of the worst system minus those of the best."""
        errors = [self.errors(system) for system in self.hypotheses]
        return max(errors) - min(errors)


def align_systems(cut_id: str, reference: Sequence[str], hypotheses: Mapping[str, Sequence[str]]) -> Comparison:
    """Aligns each hypothesis with the reference, and words that they insert at the same place with each other."""
    inserted: dict[str, list[list[str]]] = {}  # by system: words before each reference word, and after the last
    heard: dict[str, list[str]] = {}  # by system: the word for each reference word
    for system, hypothesis in hypotheses.items():
        inserted[system], heard[system] = [[]], []
        for said, word in kaldialign.align(list(reference), list(hypothesis), NOTHING):
            if said == NOTHING:
                inserted[system][-1].append(word)
            else:
                heard[system].append(GAP if word == NOTHING else word)
                inserted[system].append([])
    columns: list[str] = []
    rows: dict[str, list[str]] = {system: [] for system in hypotheses}
    for place in range(len(reference) + 1):
        width = max(len(words[place]) for words in inserted.values())
        columns += [GAP] * width + list(reference[place : place + 1])
        for system, row in rows.items():
            words = inserted[system][place]
            row += words + [GAP] * (width - len(words)) + heard[system][place : place + 1]
    return Comparison(cut_id, columns, rows)


def comparable(runs: Runs, test_set: str) -> dict[str, tuple[Record, Path]]:
    """By system, the record on this test set whose hypotheses to show, and its recogs file, which exists.

    They all count the same, words or characters: what most systems have.
    """
    found: dict[str, dict[str, list[tuple[Record, Path]]]] = {}  # by what was counted, and by system
    for results_json, records in runs.items():
        for record in records:
            recogs = results_json.parent / record.recogs
            if record.test_set == test_set and recogs.is_file():
                found.setdefault(record.counted, {}).setdefault(record.system, []).append((record, recogs))
    most = max(found.values(), key=len, default={})
    return {system: min(some, key=lambda run: preference(run[0])) for system, some in most.items()}


def compare_utterances(recogs: Mapping[str, Path]) -> list[Comparison]:
    """Every utterance that all systems decoded with the same reference; `recogs` are files by system."""
    by_system = {system: {t.cut_id: t for t in read_recogs(path)} for system, path in recogs.items()}
    first, *others = by_system.values()
    shared = [t for t in first.values() if all(t.cut_id in o and o[t.cut_id].ref == t.ref for o in others)]
    return [
        align_systems(t.cut_id, t.ref, {system: some[t.cut_id].hyp for system, some in by_system.items()})
        for t in shared
    ]


def worth_reading(
    comparisons: Sequence[Comparison], differing: int = DIFFERING, worst: int = WORST
) -> tuple[list[Comparison], list[Comparison]]:
    """The utterances in which systems differ most, and of the others those with most errors; none without an error."""
    wrong = [c for c in comparisons if c.total]
    by_spread = sorted((c for c in wrong if c.spread), key=lambda c: (-c.spread, -c.total, c.cut_id))[:differing]
    left = [c for c in wrong if c not in by_spread]
    return by_spread, sorted(left, key=lambda c: (-c.total, c.cut_id))[:worst]
