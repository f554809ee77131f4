"""A bigram over tokens: what a transducer has learned of its own transcripts, which LODR takes away.

LODR (low-order density ratio, arXiv 2203.16776) subtracts it while a better language model is added.

The estimate is interpolated Kneser-Ney with one discount D per order, n1 / (n1 + 2 n2), where n1 and n2 are the counts
that are 1 and 2.  A pair that was seen has its own probability; another one has the backoff weight of its first token
times the probability of its second.  Sentences begin and end with <sos/eos>.

Shapes: V vocabulary, P pairs that were seen.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdstream.errors import UserError, option
from kdstream.files import replacing
from kdstream.lm.text import SOS_EOS_ID, TokenText

BIGRAM_FILE = "bigram.npz"
FST_FILE = "2gram.fst"


@dataclass(frozen=True)
class Bigram:
    """Natural logarithms of probabilities.

    pairs: (P,) int64 in ascending order, first * V + second.
    pair: (P,) float32.
    unigram: (V,) float32, of each second token where its pair was not seen.
    backoff: (V,) float32, of each first token; with `unigram` it is added.
    """

    pairs: np.ndarray
    pair: np.ndarray
    unigram: np.ndarray
    backoff: np.ndarray

    @property
    def is_whole(self) -> bool:
        """Whether there is a pair, and the tables have as many pairs and as many tokens as each other."""
        rows = [(self.pairs, self.pair), (self.unigram, self.backoff)]
        return all(one.ndim == 1 and one.shape == other.shape and one.size > 0 for one, other in rows)

    def save(self, path: Path) -> None:
        with replacing(path, ".npz") as temporary:
            np.savez(temporary, **vars(self))


def load_bigram(exp_dir: Path, vocab_size: int) -> Bigram:
    """EXP_DIR/bigram.npz.  Raises UserError if there is none, or one of another number of tokens."""
    path = exp_dir / BIGRAM_FILE
    fix = f"write it with kdstream train-lm {option('transcripts')}, or give {option('lodr_scale', 0)}"
    if not path.is_file():
        raise UserError(f"{path}: no such file", flag=option("lodr_scale"), fix=fix)
    try:
        with np.load(path, allow_pickle=False) as file:
            bigram = Bigram(**{name: file[name] for name in Bigram.__dataclass_fields__})
    except Exception as error:  # bytes that are no archive end in errors of any kind
        raise UserError(f"{path}: cannot be read ({error})", flag=option("lodr_scale"), fix=fix) from error
    if not bigram.is_whole:
        raise UserError(f"{path}: its tables do not fit each other", flag=option("lodr_scale"), fix=fix)
    if len(bigram.unigram) != vocab_size:
        raise UserError(f"{path}: {len(bigram.unigram)} tokens, the model has {vocab_size}", fix=fix)
    return bigram


def estimate_bigram(text: TokenText, vocab_size: int) -> Bigram:
    """The bigram of some sentences."""
    pairs, counts = np.unique(text.stream[:-1].astype(np.int64) * vocab_size + text.stream[1:], return_counts=True)
    first, second = np.divmod(pairs, vocab_size)
    # how many tokens each token was seen after, interpolated with the same probability for all
    continued = np.bincount(second, minlength=vocab_size).astype(np.float64)
    discount = _discount(continued)
    left = discount * np.count_nonzero(continued) / len(pairs)
    unigram = np.maximum(continued - discount, 0.0) / len(pairs) + left / vocab_size

    discount = _discount(counts)
    total = np.bincount(first, weights=counts, minlength=vocab_size)  # (V,)
    kinds = np.bincount(first, minlength=vocab_size)
    backoff = np.where(total > 0, discount * kinds / np.maximum(total, 1), 1.0)
    pair = (counts - discount) / total[first] + backoff[first] * unigram[second]
    logs = (np.log(values).astype(np.float32) for values in (pair, unigram, backoff))
    return Bigram(pairs, *logs)


def _discount(counts: np.ndarray) -> float:
    ones, twos = (int(np.count_nonzero(counts == n)) for n in (1, 2))
    return ones / (ones + 2 * twos) if ones and twos else 0.5


def write_fst(bigram: Bigram, path: Path) -> None:
    """Writes the bigram as OpenFst's binary file of a vector FST over the tropical semiring, as sherpa-onnx reads it.

    State 0 has heard <sos/eos>; state 1 has forgotten what it heard; state 2 + i has heard token i.  An arc's labels
    are the token and its weight is -log p.  From each state but 1 a backoff arc leads to state 1.  Its input label is
    V, which is no token; its output label is 0, by which sherpa-onnx knows it.
    """
    size = len(bigram.unigram)
    arc = np.dtype([("input", "<i4"), ("output", "<i4"), ("weight", "<f4"), ("next", "<i4")])

    def arcs(tokens: np.ndarray, log_probs: np.ndarray, backoff: np.ndarray) -> np.ndarray:
        out = np.zeros(len(tokens) + len(backoff), dtype=arc)
        out["input"] = [*tokens, *[size] * len(backoff)]
        out["output"] = [*tokens, *[0] * len(backoff)]
        out["weight"] = [*-log_probs, *-backoff]
        out["next"] = [*(tokens + 2), *[1] * len(backoff)]
        return out

    def heard(token: int) -> np.ndarray:
        begin, end = np.searchsorted(bigram.pairs, [token * size, (token + 1) * size])
        return arcs(bigram.pairs[begin:end] % size, bigram.pair[begin:end], bigram.backoff[token : token + 1])

    states = [heard(SOS_EOS_ID), arcs(np.arange(size), bigram.unigram, np.zeros(0)), *map(heard, range(size))]
    texts = [struct.pack("<i", len(text)) + text for text in (b"vector", b"standard")]
    expanded_and_mutable = 3
    numbers = (0, expanded_and_mutable, 0, len(states), sum(map(len, states)))  # flags, properties, start, states, arcs
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<i", 2125659606) + b"".join(texts) + struct.pack("<iiQqqq", 2, *numbers))
        for state in states:
            file.write(struct.pack("<fq", 0.0, len(state)) + state.tobytes())  # every state is final
