"""The bigram: its probabilities, its files, and the FST's paths against them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kdstream.errors import UserError
from kdstream.lm.bigram import BIGRAM_FILE, Bigram, estimate_bigram, load_bigram, write_fst
from kdstream.lm.text import SOS_EOS_ID, TokenText
from support.lm import read_fst

SIZE = 7
SENTENCES = ([3, 4, 3, 4, 5], [3, 4], [5, 5, 3], [4, 3], [3, 4, 4])


def text_of(sentences) -> TokenText:
    lens = np.array([len(s) for s in sentences])
    stream = [SOS_EOS_ID, *(token for s in sentences for token in (*s, SOS_EOS_ID))]
    return TokenText(np.array(stream), np.concatenate([[1], 1 + np.cumsum(lens + 1)[:-1]]), lens)


def log_prob(bigram: Bigram, first: int, second: int) -> float:
    """As the definition reads."""
    place = np.flatnonzero(bigram.pairs == first * SIZE + second)
    return float(bigram.pair[place[0]] if len(place) else bigram.backoff[first] + bigram.unigram[second])


@pytest.fixture(scope="module")
def bigram() -> Bigram:
    return estimate_bigram(text_of(SENTENCES), SIZE)


def test_probabilities_of_what_follows_each_token_sum_to_one(bigram):
    """With the backoff, the mass of unseen pairs is D * kinds / count times the unigram, interpolated in seen ones."""
    assert np.exp(bigram.unigram).sum() == pytest.approx(1.0, abs=1e-6)
    for first in range(SIZE):
        assert sum(math.exp(log_prob(bigram, first, second)) for second in range(SIZE)) == pytest.approx(1.0, abs=1e-5)


def test_frequent_pairs_are_more_probable_and_all_are_possible(bigram):
    assert log_prob(bigram, 3, 4) > log_prob(bigram, 3, SOS_EOS_ID) > log_prob(bigram, 3, 6)
    assert log_prob(bigram, 6, 6) == pytest.approx(float(bigram.unigram[6]), abs=1e-6)  # never heard: no discount
    assert all(math.isfinite(log_prob(bigram, a, b)) for a in range(SIZE) for b in range(SIZE))


def test_what_is_saved_is_read(bigram, tmp_path):
    bigram.save(tmp_path / BIGRAM_FILE)
    for name, values in vars(load_bigram(tmp_path, SIZE)).items():
        np.testing.assert_array_equal(values, getattr(bigram, name))
    with pytest.raises(UserError, match="7 tokens, the model has 8"):
        load_bigram(tmp_path, 8)
    (tmp_path / BIGRAM_FILE).write_bytes(b"PK no archive")
    with pytest.raises(UserError, match="--lodr-scale: .*cannot be read"):
        load_bigram(tmp_path, SIZE)
    (tmp_path / BIGRAM_FILE).unlink()
    with pytest.raises(UserError, match="no such file; write it with kdstream train-lm --transcripts"):
        load_bigram(tmp_path, SIZE)


@pytest.mark.parametrize(
    "change",
    [
        lambda it: {"pair": it.pair[1:]},
        lambda it: {"backoff": it.backoff[1:]},
        lambda it: {"pairs": it.pairs[:0], "pair": it.pair[:0]},
        lambda it: {"pairs": it.pairs[None], "pair": it.pair[None]},
    ],
)
def test_tables_that_do_not_fit_each_other_are_refused(bigram, tmp_path, change):
    replace(bigram, **change(bigram)).save(tmp_path / BIGRAM_FILE)
    with pytest.raises(UserError, match="^--lodr-scale: .*bigram.npz: its tables do not fit each other; write it with"):
        load_bigram(tmp_path, SIZE)


def test_the_best_path_of_the_fst_is_the_bigrams(bigram, tmp_path):
    """As sherpa-onnx walks: an arc of the token, or the backoff arc and then one; the cheaper counts."""
    write_fst(bigram, tmp_path / "2gram.fst")
    states = read_fst(tmp_path / "2gram.fst")
    assert {arc[SIZE][0] for n, arc in enumerate(states) if n != 1} == {0} and SIZE not in states[1]
    for first in range(SIZE):
        state = 0 if first == SOS_EOS_ID else 2 + first
        for second in range(SIZE):
            _, forgotten, weight = states[state][SIZE]
            _, to, more = states[forgotten][second]
            assert to == 2 + second
            costs = [weight + more, *([states[state][second][2]] if second in states[state] else [])]
            assert -min(costs) == pytest.approx(log_prob(bigram, first, second), abs=1e-5)
