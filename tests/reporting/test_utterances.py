"""Hypotheses of several systems: how they are aligned, and which are shown."""

from __future__ import annotations

from dataclasses import replace

from kdstream.evaluation import scoring
from kdstream.reporting.utterances import GAP, Comparison, align_systems, comparable, worth_reading
from support.records import make_record, random_transcripts


def test_systems_are_aligned_word_under_word():
    compared = align_systems("x", list("ABC"), {"one": list("AXBC"), "two": list("AYZBD"), "none": []})
    assert compared.reference == ["A", GAP, GAP, "B", "C"]
    assert compared.hypotheses["one"] == ["A", "X", GAP, "B", "C"]
    assert compared.hypotheses["two"] == ["A", "Y", "Z", "B", "D"]
    assert compared.hypotheses["none"] == [GAP] * 5
    assert (compared.words, compared.total, compared.spread) == (3, 1 + 3 + 3, 2)


def test_alignments_keep_every_word_and_count_errors_as_scoring_does():
    first, second = random_transcripts(40, seed=1), random_transcripts(40, seed=2)
    for one, two in zip(first, second, strict=True):
        hypotheses = {"one": one.hyp, "two": two.hyp, "star": ["*", *one.hyp]}
        compared = align_systems(one.cut_id, one.ref, hypotheses)
        assert [word for word in compared.reference if word] == one.ref
        for system, hypothesis in hypotheses.items():
            assert [word for word in compared.hypotheses[system] if word] == hypothesis
        aligned = scoring.align([one, two._replace(ref=one.ref)])
        assert [compared.errors(s) for s in ("one", "two")] == list(scoring.score(aligned).utterance_errors)


def test_hypotheses_beside_each_other_are_all_of_words_or_all_of_characters(tmp_path):
    (tmp_path / "recogs.txt").touch()
    one, two, three = (make_record(system=system, recogs="recogs.txt") for system in ("one", "two", "three"))
    sooner = replace(two, unit="char", mode="chunkwise")  # which would be shown, were it of words
    runs = {tmp_path / "results.json": [replace(one, unit="char"), one, two, sooner, three]}
    assert {system: record for system, (record, _) in comparable(runs, "test-clean").items()} == {
        "one": one, "two": two, "three": three
    }  # fmt: skip
    assert comparable(runs, "test-other") == {}


def test_utterances_where_systems_differ_come_first_then_the_worst():
    def compared(name: str, one: str, two: str) -> Comparison:
        return align_systems(name, list("AAAAAA"), {"one": list(one), "two": list(two)})

    alike, better, best = (
        compared("alike", "B", "B"),
        compared("better", "AAAABB", "AAAAAA"),
        compared("best", "", "AAA"),
    )
    worse, right = compared("worse", "BB", "BB"), compared("right", "AAAAAA", "AAAAAA")
    assert worth_reading([right, alike, better, worse, best], differing=2, worst=9) == ([best, better], [alike, worse])
    assert worth_reading([right, alike, better, best], differing=1, worst=1) == ([best], [alike])
