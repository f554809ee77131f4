"""Repeated words, and which rules hold for which labeller."""

from __future__ import annotations

import random

import pytest

from kdstream.config.labels import LabelConfig
from kdstream.corpus.label_rules import Account, most_repeats


@pytest.mark.parametrize(
    "text, most",
    [("", 0), ("a", 1), ("a b c", 1), ("a a", 2), ("x a b a b a b a", 3), ("a b c d a b c d", 2), ("a b a", 1)],
)
def test_repeats_are_counted_in_a_row(text, most):
    assert most_repeats(text.split()) == most


def test_repeats_equal_those_of_a_slow_count():
    rng = random.Random(0)

    def slow(words: list[str]) -> int:
        return max(
            count
            for begin in range(len(words))
            for size in range(1, len(words) + 1)
            for count in range(1, len(words) // size + 1)
            if words[begin : begin + size * count] == words[begin : begin + size] * count
        )

    for _ in range(300):
        words = rng.choices("ab", k=rng.randint(1, 12))
        assert most_repeats(words) == slow(words)


def test_our_own_teacher_is_judged_by_its_confidence_alone():
    whats = [
        [line.split(" | ")[0][2:] for line in Account([], LabelConfig(labeller, 0.5), 0.0).table().splitlines()[2:-2]]
        for labeller in ("teacher", "faster-whisper")
    ]
    assert whats[0] == ["no text", "letters that no token spells", "confidence"]
    assert whats[1][:3] == whats[0] and len(whats[1]) == 8
