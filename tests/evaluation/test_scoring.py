"""Counts, intervals and files of word error rates."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from kdstream.errors import UserError
from kdstream.evaluation import scoring
from kdstream.evaluation.scoring import Score, Transcript
from support.records import random_transcripts

FIRST_DAY = [
    Transcript("b-1", "FOR THE FIRST DAY SIR I THINK".split(), "FOR THE FIRST DAY I THINK".split()),
    Transcript("a-2", "EDISON ILLUMINATING COMPANIES".split(), "ADDISON ILLUMINATING COMPANIES OF MEN".split()),
    Transcript("c-3", "I THINK".split(), "I THINK".split()),
]


def score(transcripts: list[Transcript]) -> Score:
    return scoring.score(scoring.align(transcripts))


def slow_edit_distance(ref: list[str], hyp: list[str]) -> int:
    row = list(range(len(hyp) + 1))
    for i, word in enumerate(ref, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(hyp, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def test_errors_are_counted_by_kind():
    result = score(FIRST_DAY)
    assert (result.insertions, result.deletions, result.substitutions) == (2, 1, 1)
    assert (result.errors, result.words) == (4, 12)
    assert result.wer == pytest.approx(100 * 4 / 12)
    assert result.utterance_errors.tolist() == [1, 3, 0]
    assert result.utterance_words.tolist() == [7, 3, 2]


def test_errors_equal_a_slow_edit_distance():
    transcripts = random_transcripts(200)
    expected = [slow_edit_distance(t.ref, t.hyp) for t in transcripts]
    assert score(transcripts).utterance_errors.tolist() == expected
    assert sum(expected) > 100


def test_empty_hypotheses_are_all_deletions():
    result = score([Transcript("a", ["ONE", "TWO"], []), Transcript("b", [], ["NOISE"])])
    assert (result.insertions, result.deletions, result.substitutions, result.words) == (1, 2, 0, 2)


def test_a_star_is_a_word_like_any_other(tmp_path):
    transcripts = [
        Transcript("a", ["*", "B"], ["B"]),  # deleted
        Transcript("b", ["*"], ["*", "*"]),  # right, and one inserted
        Transcript("c", ["A"], ["*"]),  # in the place of another
    ]
    alignments = scoring.align(transcripts)
    result = scoring.score(alignments)
    assert (result.insertions, result.deletions, result.substitutions, result.words) == (1, 1, 1, 4)
    assert [slow_edit_distance(t.ref, t.hyp) for t in transcripts] == result.utterance_errors.tolist()
    scoring.write_errs(tmp_path / "errs.txt", transcripts, alignments, result)
    lines = (tmp_path / "errs.txt").read_text().splitlines()
    assert lines[1].endswith("1 insertions, 1 deletions, 1 substitutions, over 4 reference words (2 correct)")
    assert "*   1 3 2 3" in lines  # correct, errors, in references, in hypotheses
    rng = random.Random(0)
    for _ in range(200):
        ref, hyp = (rng.choices(["*", "A", "**"], k=rng.randint(1, 6)) for _ in "rh")
        assert score([Transcript("a", ref, hyp)]).errors == slow_edit_distance(ref, hyp)


def test_no_reference_words_at_all_is_an_error():
    with pytest.raises(UserError, match="no reference words"):
        score([Transcript("a", [], ["NOISE"])])


def test_log_line_is_icefalls():
    line = Score(165, 127, 1317, np.array([1609]), np.array([52576])).log_line("test-clean-greedy_search")
    assert line == "[test-clean-greedy_search] %WER 3.06% [1609 / 52576, 165 ins, 127 del, 1317 sub ]"
    line = Score(1, 0, 0, np.array([1]), np.array([4])).log_line("test-greedy_search", "CER")
    assert line == "[test-greedy_search] %CER 25.00% [1 / 4, 1 ins, 0 del, 0 sub ]"


def test_characters_have_the_rate_of_words_beside_them_where_blanks_part_some():
    def rates(unit: str, *texts: tuple[str, str]) -> dict[str, float]:
        transcripts = [Transcript("x", [], [], texts=some) for some in texts]
        return {name: other.wer for name, other in scoring.other_scores(transcripts, unit).items()}

    assert rates("char", ("今天 天气", "今天 天")) == {"WER": 50.0}
    assert rates("char", ("今天天气", "今天天"), ("好", "好")) == {}
    assert rates("mixed", ("我有OK 手机", "我有O 手机")) == {"CER": pytest.approx(100 / 6), "WER": 50.0}
    assert rates("word", ("A B", "A")) == {}


def test_interval_equals_a_slow_reference():
    """Other draws of as many resamples: percentiles agree within the noise of drawing, stated as 4 % of the width."""
    result = score(random_transcripts(60))
    rng = random.Random(1)
    pairs = list(zip(result.utterance_errors.tolist(), result.utterance_words.tolist(), strict=True))
    wers = []
    for _ in range(10000):
        drawn = rng.choices(pairs, k=len(pairs))
        wers.append(100.0 * sum(errors for errors, _ in drawn) / sum(words for _, words in drawn))
    low, high = scoring.bootstrap_wer(result)
    expected = np.percentile(wers, [2.5, 97.5])
    assert [low, high] == pytest.approx(expected.tolist(), abs=0.04 * (expected[1] - expected[0]))
    assert low < result.wer < high


def test_intervals_are_repeatable_and_independent_of_block_size(monkeypatch):
    result = score(random_transcripts(50))
    interval = scoring.bootstrap_wer(result)
    assert scoring.bootstrap_wer(result) == interval
    with monkeypatch.context() as other:
        other.setattr(scoring, "SEED", 1)
        assert scoring.bootstrap_wer(result) != interval
    seeds = runs_of(3, seed=1), runs_of(2, seed=2)
    over_seeds = scoring.bootstrap_reduction(*seeds)
    monkeypatch.setattr(scoring, "DRAWS_AT_ONCE", 777)
    assert scoring.bootstrap_wer(result) == interval
    assert scoring.bootstrap_reduction(*seeds) == over_seeds


@pytest.mark.slow
def test_interval_narrows_with_the_square_root_of_the_utterances():
    few, many = (score(random_transcripts(n)) for n in (100, 1600))
    widths = [high - low for low, high in map(scoring.bootstrap_wer, (few, many))]
    assert widths[0] / widths[1] == pytest.approx(4.0, rel=0.25)


def test_paired_interval_is_far_narrower_than_unpaired_ones():
    """A system with one error less in every tenth utterance is better, though both intervals overlap widely."""
    baseline = score(random_transcripts(400, noise=0.5))
    fewer = np.maximum(baseline.utterance_errors - (np.arange(400) % 10 == 0), 0)
    system = Score(0, 0, int(fewer.sum()), fewer, baseline.utterance_words)
    low, high = scoring.bootstrap_reduction([baseline], [system])
    point = scoring.relative_reduction(baseline.wer, system.wer)
    assert 0 < low < point < high < 2 * point
    assert scoring.bootstrap_wer(system)[1] > scoring.bootstrap_wer(baseline)[0]


def test_paired_interval_of_a_system_with_itself_is_nothing():
    result = score(random_transcripts(30))
    assert scoring.bootstrap_reduction([result], [result]) == (0.0, 0.0)


def test_draws_without_errors_of_either_system_are_no_gain():
    """Three errors in 200 utterances: a twentieth of the draws has none of them."""
    errors, words = np.zeros(200, dtype=int), np.full(200, 4)
    errors[:3] = 1
    few, none = Score(0, 0, 3, errors, words), Score(0, 0, 0, 0 * errors, words)
    assert scoring.bootstrap_reduction([few], [few]) == (0.0, 0.0)
    assert scoring.bootstrap_reduction([few], [none]) == (0.0, 100.0)
    assert scoring.bootstrap_reduction([few, none], [none])[1] == 100.0  # half an error in the mean is saved whole


def test_paired_interval_refuses_other_utterances():
    one, other = score(random_transcripts(30)), score(random_transcripts(30, seed=1))
    with pytest.raises(ValueError, match="same utterances"):
        scoring.bootstrap_reduction([one], [other])
    with pytest.raises(ValueError, match="same utterances"):
        scoring.bootstrap_wer(one, other)


def runs_of(count: int, seed: int, noise: float = 0.3) -> list[Score]:
    """Scores of several runs over the same 40 utterances, which err differently."""
    references = random_transcripts(40)
    rng = random.Random(seed)
    spoilt = [
        [t._replace(hyp=[word if rng.random() > noise else "X" for word in t.ref]) for t in references]
        for _ in range(count)
    ]
    return list(map(score, spoilt))


def alike(*errors: int) -> list[Score]:
    """A training for each number of errors; it makes so many in each of 300 utterances of 50 words."""
    return [Score(0, 0, 300 * n, np.full(300, n), np.full(300, 50)) for n in errors]


@pytest.mark.parametrize("seeds", [1, 3])
def test_of_one_training_each_the_intervals_are_those_of_utterances_alone(seeds, monkeypatch):
    monkeypatch.setattr(scoring, "DRAWS_AT_ONCE", 4_000)
    baseline, system = runs_of(1, seed=1), runs_of(1, seed=2, noise=0.25)
    drawn = np.random.default_rng(0).integers(40, size=(10000, 40))
    before, after, words = (
        counts[drawn].sum(axis=1)
        for counts in (baseline[0].utterance_errors, system[0].utterance_errors, system[0].utterance_words)
    )
    assert scoring.bootstrap_wer(*system * seeds) == pytest.approx(np.percentile(100 * after / words, [2.5, 97.5]))
    expected = np.percentile(100 * (before - after) / before, [2.5, 97.5])
    assert scoring.bootstrap_reduction(baseline, system * seeds) == pytest.approx(expected)  # copies are no seeds


def test_where_utterances_are_alike_the_interval_is_that_of_the_seeds():
    """All draws of seeds are counted; percentiles agree within the noise of drawing, stated as 4 % of the width."""
    baseline, system = (20, 23, 25, 30, 31), (11, 14, 17)
    means = [[np.mean(drawn) for drawn in product(seeds, repeat=len(seeds))] for seeds in (baseline, system)]
    reductions = [100 * (1 - after / before) for before, after in product(*means)]
    expected = np.percentile(reductions, [2.5, 97.5]).tolist()
    interval = scoring.bootstrap_reduction(alike(*baseline), alike(*system))
    assert interval == pytest.approx(expected, abs=0.04 * (expected[1] - expected[0]))
    expected = np.percentile([2 * mean for mean in means[0]], [2.5, 97.5]).tolist()
    assert scoring.bootstrap_wer(*alike(*baseline)) == pytest.approx(expected, abs=0.04 * (expected[1] - expected[0]))


def test_an_interval_of_seeds_has_the_width_that_their_deviation_gives():
    """1.96 standard errors to either side, times the root of (n - 1) / n, within 6 %."""
    errors = np.random.default_rng(4).normal(25, 4, size=24).round().astype(int)
    low, high = scoring.bootstrap_wer(*alike(*errors.tolist()))
    standard_error = 2 * errors.std(ddof=1) / 24**0.5  # two per cent for each error
    assert high - low == pytest.approx(2 * 1.96 * standard_error * (23 / 24) ** 0.5, rel=0.06)


def test_seeds_of_the_same_number_are_drawn_apart():
    """Pairs of seeds would show a gain of 10 % everywhere; new trainings of either may lie anywhere."""
    low, high = scoring.bootstrap_reduction(alike(20, 40, 30), alike(18, 36, 27))
    assert low < -20 < 35 < high


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(3, 3), (2, 5)])
def test_interval_over_seeds_and_utterances_equals_a_slow_reference(seeds):
    """Other draws of as many resamples: percentiles agree within the noise of drawing, stated as 4 % of the width."""
    baseline, system = runs_of(seeds[0], seed=1), runs_of(seeds[1], seed=2, noise=0.25)
    system[0] = runs_of(1, seed=7, noise=0.5)[0]  # a seed that fell out
    rng = random.Random(3)
    reductions = []
    for _ in range(10000):
        drawn = rng.choices(range(40), k=40)
        before, after = (
            sum(int(run.utterance_errors[n]) for run in rng.choices(runs, k=len(runs)) for n in drawn) / len(runs)
            for runs in (baseline, system)
        )
        reductions.append(100 * (before - after) / before)
    low, high = scoring.bootstrap_reduction(baseline, system)
    expected = np.percentile(reductions, [2.5, 97.5])
    assert [low, high] == pytest.approx(expected.tolist(), abs=0.04 * (expected[1] - expected[0]))


def test_mean_and_deviation_are_those_of_a_sample():
    mean, deviation = scoring.mean_and_deviation([2.0, 4.0, 9.0])
    assert (mean, deviation) == (5.0, pytest.approx(((9 + 1 + 16) / 2) ** 0.5))
    assert scoring.mean_and_deviation([3.0]) == (3.0, None)


def test_recogs_file_is_icefalls(tmp_path):
    path = tmp_path / "recogs.txt"
    scoring.write_recogs(path, FIRST_DAY[2:])
    assert path.read_text() == "c-3:\tref=['I', 'THINK']\nc-3:\thyp=['I', 'THINK']\n"


def test_recogs_file_survives_reading(tmp_path):
    path = tmp_path / "recogs.txt"
    transcripts = [*FIRST_DAY, Transcript("d", ["DON'T", 'SAY "YES"', "ÄÖ"], [])]
    scoring.write_recogs(path, transcripts)
    assert scoring.read_recogs(path) == transcripts


@pytest.mark.parametrize("content", ["nonsense", "a:\tref=['A']\n", "a:\tref=['A'\na:\thyp=[]\n"])
def test_a_damaged_recogs_file_is_named(tmp_path, content):
    path = tmp_path / "recogs.txt"
    path.write_text(content)
    with pytest.raises(UserError, match="recogs.txt"):
        scoring.read_recogs(path)


ERRS = """\
%WER = 33.33
Errors: 2 insertions, 1 deletions, 1 substitutions, over 12 reference words (10 correct)
Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, PER-WORD STATS:

PER-UTT DETAILS: corr or (ref->hyp)\x20\x20
b-1:\tFOR THE FIRST DAY (SIR->*) I THINK
a-2:\t(EDISON->ADDISON) ILLUMINATING COMPANIES (*->OF MEN)
c-3:\tI THINK

SUBSTITUTIONS: count ref -> hyp
1   EDISON -> ADDISON

DELETIONS: count ref
1   SIR

INSERTIONS: count hyp
1   OF
1   MEN

PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp
SIR   0 1 1 0
OF   0 1 0 1
MEN   0 1 0 1
EDISON   0 1 1 0
ADDISON   0 1 0 1
THINK   2 0 2 2
THE   1 0 1 1
ILLUMINATING   1 0 1 1
I   2 0 2 2
FOR   1 0 1 1
FIRST   1 0 1 1
DAY   1 0 1 1
COMPANIES   1 0 1 1
"""


def test_errs_file_is_icefalls(tmp_path):
    alignments = scoring.align(FIRST_DAY)
    scoring.write_errs(tmp_path / "errs.txt", FIRST_DAY, alignments, scoring.score(alignments))
    assert (tmp_path / "errs.txt").read_text() == ERRS


def test_errs_file_sums_up(tmp_path):
    """Per word, counts in reference and hypothesis add up to their lengths."""
    transcripts = random_transcripts(50)
    alignments = scoring.align(transcripts)
    result = scoring.score(alignments)
    scoring.write_errs(tmp_path / "errs.txt", transcripts, alignments, result)
    stats = (tmp_path / "errs.txt").read_text().split("\nPER-WORD STATS:")[1].splitlines()[1:]
    counts = np.array([[int(n) for n in line.split()[1:]] for line in stats])
    assert counts[:, 2].sum() == result.words
    assert counts[:, 3].sum() == sum(len(t.hyp) for t in transcripts)
    assert counts[:, 1].sum() == result.errors + result.substitutions  # one word replaced, one in its place


def test_wer_summary_is_icefalls(tmp_path):
    scoring.write_wer_summary(tmp_path / "wer.txt", {"beam_size_4": 3.061, "greedy_search": 3.0})
    assert (tmp_path / "wer.txt").read_text() == "settings\tWER\ngreedy_search\t3.0\nbeam_size_4\t3.06\n"
