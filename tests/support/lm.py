"""For tests of language models: small random ones, and how OpenFst files are read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch

from kdstream.lm.bigram import Bigram, estimate_bigram
from kdstream.lm.model import RnnLm
from kdstream.lm.text import SOS_EOS_ID, TokenText


def tiny_lm(vocab_size: int, num_layers: int = 2, seed: int = 0) -> RnnLm:
    """A random model that likes some tokens much better than others."""
    torch.manual_seed(seed)
    lm = RnnLm(vocab_size, embedding_dim=6, hidden_dim=8, num_layers=num_layers).eval()
    with torch.no_grad():
        lm.input_embedding.weight.mul_(3.0)
        lm.output_linear.weight.normal_(std=2.0)
    return lm


def random_bigram(vocab_size: int, seed: int = 0) -> Bigram:
    """Of random sentences."""
    lens = np.full(30, 6)
    stream = np.random.default_rng(seed).integers(3, vocab_size, 30 * 7 + 1)
    stream[::7] = SOS_EOS_ID
    return estimate_bigram(TokenText(stream, 1 + 7 * np.arange(30), lens), vocab_size)


def read_fst(path: Path) -> list[dict[int, tuple[int, int, float]]]:
    """By state: (output label, next state, weight) by input label, of a binary vector FST."""
    data, place = path.read_bytes(), 0

    def take(form: str) -> tuple:
        nonlocal place
        values = struct.unpack_from("<" + form, data, place)
        place += struct.calcsize("<" + form)
        return values

    def text() -> bytes:
        (size,) = take("i")
        return take(f"{size}s")[0]

    assert take("i") == (2125659606,)
    assert (text(), text()) == (b"vector", b"standard")
    version, flags, _, start, states, arcs = take("iiQqqq")
    assert (version, flags, start) == (2, 0, 0)
    read = []
    for _ in range(states):
        _, count = take("fq")
        found = [take("iifi") for _ in range(count)]
        assert [arc[0] for arc in found] == sorted({arc[0] for arc in found})
        read.append({label: (output, to, weight) for label, output, weight, to in found})
    assert place == len(data) and sum(map(len, read)) == arcs
    return read
