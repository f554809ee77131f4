"""Word error rates: counting, confidence intervals, and the three files that icefall's scripts leave behind.

Words are aligned by kaldialign.  records.py keeps scores, compare.py compares them, tables.py shows them.
"""

from __future__ import annotations

import ast
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TextIO

import kaldialign
import numpy as np

from kdstream.errors import UserError
from kdstream.files import replacing, write_text
from kdstream.words import CHAR, RATES, WORD, split_words

NOTHING = " "  # the missing word of an insertion or a deletion: no word holds a blank
SHOWN_NOTHING = "*"  # the same in icefall's files
RESAMPLES = 10000
SEED = 0  # of the draws
CONFIDENCE = 95.0  # per cent
DRAWS_AT_ONCE = 4_000_000  # bounds the memory of a bootstrap

Alignment = list[tuple[str, str]]  # (reference word or NOTHING, hypothesis word or NOTHING)
Interval = tuple[float, float]


class Transcript(NamedTuple):
    """An utterance's reference and hypothesis, in words.

    frames: output frame (40 ms) on which each word of the hypothesis was complete; empty where delays are not measured.
    texts: both, normalised, before they were parted into words; empty where they come from a file.
    """

    cut_id: str
    ref: list[str]
    hyp: list[str]
    frames: tuple[int, ...] = ()
    texts: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Score:
    """Counts over a test set, and per utterance for resampling.

    utterance_errors, utterance_words: (utterances,) int64, in the order of the transcripts.
    """

    insertions: int
    deletions: int
    substitutions: int
    utterance_errors: np.ndarray
    utterance_words: np.ndarray

    @property
    def errors(self) -> int:
        return self.insertions + self.deletions + self.substitutions

    @property
    def words(self) -> int:
        return int(self.utterance_words.sum())

    @property
    def wer(self) -> float:
        """Per cent."""
        return 100.0 * self.errors / self.words

    def log_line(self, name: str, rate: str = "WER") -> str:
        """`[test-clean-greedy_search] %WER 3.06% [1609 / 52576, 165 ins, 127 del, 1317 sub ]`, or of another rate."""
        return (
            f"[{name}] %{rate} {self.wer:.2f}% [{self.errors} / {self.words}, {self.insertions} ins, "
            f"{self.deletions} del, {self.substitutions} sub ]"
        )


def align(transcripts: Sequence[Transcript]) -> list[Alignment]:
    """Minimum edit distance alignments."""
    return [kaldialign.align(t.ref, t.hyp, NOTHING) for t in transcripts]


def score(alignments: Sequence[Alignment]) -> Score:
    """Counts errors.  Raises UserError if there is no reference word at all."""
    kinds: Counter = Counter()
    errors, words = [], []
    for alignment in alignments:
        wrong = [pair for pair in alignment if pair[0] != pair[1]]
        kinds.update("ins" if ref == NOTHING else "del" if hyp == NOTHING else "sub" for ref, hyp in wrong)
        errors.append(len(wrong))
        words.append(sum(ref != NOTHING for ref, _ in alignment))
    if sum(words) == 0:
        raise UserError("the test set has no reference words", fix="a WER needs transcripts")
    return Score(kinds["ins"], kinds["del"], kinds["sub"], np.array(errors), np.array(words))


def other_scores(transcripts: Sequence[Transcript], unit: str) -> dict[str, Score]:
    """Beside a score in characters, or in words and characters: by rate, the CER, and the WER of what blanks part.

    There is no WER where no reference has a blank, and nothing beside words.
    """
    scores = {}
    for other in (CHAR, WORD) if unit != WORD else ():
        split = [
            Transcript(t.cut_id, split_words(t.texts[0], other), split_words(t.texts[1], other)) for t in transcripts
        ]
        if other != unit and any(len(t.ref) > 1 for t in split):
            scores[RATES[other]] = score(align(split))
    return scores


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; of a single value no deviation is known, so None."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def bootstrap_wer(*seeds: Score) -> Interval:
    """The 95 % percentile interval of a system's mean WER (per cent), over its trainings and over utterances.

    Every draw takes as many trainings (seeds) as there are, with replacement, and as many utterances, the same ones for
    all trainings.  Of one training the interval is over utterances alone: it does not say how much another training
    would differ.  Of n trainings it is a little too narrow, as every bootstrap of few values: the drawn means have
    (n - 1) / n of the variance that means of n trainings have.

    Drawing utterances: Bisani and Ney, Bootstrap estimates for confidence intervals in ASR performance evaluation,
    ICASSP 2004.  Drawing on both levels: Davison and Hinkley, Bootstrap methods and their application, 1997, 3.8.

    Args:
      seeds: the score of each training, on the same utterances in the same order.
    Raises:
      ValueError: the references differ in length.
    """
    _check_paired(seeds)
    sums = _resample([*(one.utterance_errors for one in seeds), seeds[0].utterance_words])
    (errors,) = _draw_seeds([sums[:, :-1]])
    return _percentiles(100.0 * errors / np.maximum(sums[:, -1], 1))


def bootstrap_ratio(sums: np.ndarray, counts: np.ndarray) -> Interval:
    """The 95 % interval of sum(sums) / sum(counts), both (utterances,), by resampling utterances."""
    drawn_sums, drawn_counts = _resample([sums, counts]).T
    return _percentiles(drawn_sums / np.maximum(drawn_counts, 1))


def bootstrap_reduction(baseline: Sequence[Score], system: Sequence[Score]) -> Interval:
    """The 95 % interval of the relative reduction (per cent) of the mean WER of `system` against that of `baseline`.

    As in `bootstrap_wer`, every draw takes trainings and utterances.  The utterances are the same ones for both
    systems, so one that is hard for both does not widen the interval.  The trainings of the two systems are drawn
    apart, even where they have the same seeds: the claim is about new trainings of either system, and a common seed
    gives two methods neither the same weights to begin with nor the same noise.

    In a draw in which the baseline makes no errors the reduction is 0 where the system makes none either; else it is
    against one error of one training.

    Args:
      baseline, system: the score of each training, all on the same utterances in the same order.
    Raises:
      ValueError: the references differ in length.
    """
    _check_paired([*baseline, *system])
    sums = _resample([one.utterance_errors for one in (*baseline, *system)])
    before, after = _draw_seeds([sums[:, : len(baseline)], sums[:, len(baseline) :]])
    return _percentiles(100.0 * (before - after) / np.maximum(before, 1 / len(baseline)))


def _check_paired(scores: Sequence[Score]) -> None:
    if not all(np.array_equal(scores[0].utterance_words, other.utterance_words) for other in scores[1:]):
        raise ValueError("a paired comparison needs the same utterances in the same order")


def relative_reduction(before: float, after: float) -> float:
    """Per cent of `before` that `after` saves."""
    return 100.0 * (before - after) / before


def _resample(columns: Sequence[np.ndarray]) -> np.ndarray:
    """(RESAMPLES, columns) sums of each column over as many utterances as there are, drawn with replacement."""
    rng = np.random.default_rng(SEED)
    table = np.stack(columns, axis=1).astype(np.float64)  # (utterances, columns); sums of counts are exact
    count = len(table)
    at_once = max(1, DRAWS_AT_ONCE // count)
    sums = []
    for begin in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - begin)
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)  # each utterance was drawn
        sums.append(times @ table)
    return np.concatenate(sums)


def _draw_seeds(systems: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each system's (RESAMPLES, seeds) sums, their (RESAMPLES,) means over seeds drawn with replacement."""
    rng = np.random.default_rng([SEED, 1])  # its own stream, so the utterances do not depend on the number of seeds
    return [
        np.take_along_axis(sums, rng.integers(sums.shape[1], size=sums.shape), axis=1).mean(axis=1) for sums in systems
    ]


def _percentiles(values: np.ndarray) -> Interval:
    tail = (100.0 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


def write_recogs(path: Path, transcripts: Sequence[Transcript]) -> None:
    """icefall's recogs-*.txt: two lines per cut, its reference and its hypothesis as lists of words."""
    write_text(path, "".join(f"{t.cut_id}:\tref={t.ref}\n{t.cut_id}:\thyp={t.hyp}\n" for t in transcripts))


def read_recogs(path: Path) -> list[Transcript]:
    """The inverse of `write_recogs`.  Raises UserError if the file is not one of these."""
    words: dict[str, dict[str, list[str]]] = defaultdict(dict)
    try:
        for line in path.read_text(encoding="utf8").rstrip("\n").split("\n"):  # ids may hold other line separators
            cut_id, content = line.split(":\t", 1)
            side, _, listed = content.partition("=")
            words[cut_id][side] = ast.literal_eval(listed)
        return [Transcript(cut_id, sides["ref"], sides["hyp"]) for cut_id, sides in words.items()]
    except (OSError, ValueError, SyntaxError, KeyError) as error:
        raise UserError(f"{path}: not a recogs file ({error})", fix="decode again") from error


def write_errs(path: Path, transcripts: Sequence[Transcript], alignments: Sequence[Alignment], result: Score) -> None:
    """icefall's errs-*.txt: totals, every utterance with its errors marked, and counts by word."""
    tallies = _tally(alignments)
    correct = sum(words.correct for words in tallies.words.values())
    with replacing(path) as temporary, open(temporary, "w", encoding="utf8") as file:
        print(f"%WER = {result.wer:.2f}", file=file)
        print(
            f"Errors: {result.insertions} insertions, {result.deletions} deletions, {result.substitutions} "
            f"substitutions, over {result.words} reference words ({correct} correct)",
            file=file,
        )
        sections = "PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, PER-WORD STATS:"
        print(f"Search below for sections starting with {sections}", file=file)
        print("\nPER-UTT DETAILS: corr or (ref->hyp)  ", file=file)
        for transcript, alignment in zip(transcripts, alignments, strict=True):
            print(f"{transcript.cut_id}:\t{_marked(alignment)}", file=file)
        _write_counts(file, "SUBSTITUTIONS: count ref -> hyp", tallies.substitutions)
        _write_counts(file, "DELETIONS: count ref", tallies.deletions)
        _write_counts(file, "INSERTIONS: count hyp", tallies.insertions)
        print("\nPER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp", file=file)
        for errors, word, counts in sorted(((c.errors, w, c) for w, c in tallies.words.items()), reverse=True):
            print(f"{word}   {counts.correct} {errors} {counts.in_ref} {counts.in_hyp}", file=file)


def write_wer_summary(path: Path, wers: dict[str, float]) -> None:
    """icefall's wer-summary-*.txt: one line per setting, the best first."""
    rows = [f"{key}\t{float(f'{wer:.2f}')}\n" for key, wer in sorted(wers.items(), key=lambda item: item[1])]
    write_text(path, "settings\tWER\n" + "".join(rows))


class WordCounts(NamedTuple):
    """How often a word was right, replaced, put in another's place, inserted and deleted."""

    correct: int = 0
    replaced: int = 0
    replacing: int = 0
    inserted: int = 0
    deleted: int = 0

    @property
    def errors(self) -> int:
        return self.replaced + self.replacing + self.inserted + self.deleted

    @property
    def in_ref(self) -> int:
        return self.correct + self.replaced + self.deleted

    @property
    def in_hyp(self) -> int:
        return self.correct + self.replacing + self.inserted


class Tallies(NamedTuple):
    substitutions: Counter  # of (reference word, hypothesis word)
    deletions: Counter
    insertions: Counter
    words: dict[str, WordCounts]


def _tally(alignments: Sequence[Alignment]) -> Tallies:
    pairs = Counter(pair for alignment in alignments for pair in alignment)
    tallies = Tallies(Counter(), Counter(), Counter(), {})
    counts: dict[str, Counter] = defaultdict(Counter)
    for (ref, hyp), times in pairs.items():
        if ref == hyp:
            counts[ref]["correct"] += times
        elif ref == NOTHING:
            tallies.insertions[hyp] += times
            counts[hyp]["inserted"] += times
        elif hyp == NOTHING:
            tallies.deletions[ref] += times
            counts[ref]["deleted"] += times
        else:
            tallies.substitutions[ref, hyp] += times
            counts[ref]["replaced"] += times
            counts[hyp]["replacing"] += times
    tallies.words.update((word, WordCounts(**by_kind)) for word, by_kind in counts.items())
    return tallies


def _marked(alignment: Alignment) -> str:
    """`FOR THE FIRST DAY (SIR->*) I THINK`; errors that follow one another share their brackets."""
    pieces = []
    for wrong, pairs in groupby(alignment, key=lambda pair: pair[0] != pair[1]):
        refs, hyps = zip(*pairs, strict=True)
        if wrong:
            said, heard = (" ".join(w for w in words if w != NOTHING) or SHOWN_NOTHING for words in (refs, hyps))
            pieces.append(f"({said}->{heard})")
        else:
            pieces.extend(refs)
    return " ".join(pieces)


def _write_counts(file: TextIO, title: str, counts: Counter) -> None:
    print(f"\n{title}", file=file)
    for times, what in sorted(((times, what) for what, times in counts.items()), reverse=True):
        print(f"{times}   {' -> '.join(what) if isinstance(what, tuple) else what}", file=file)
