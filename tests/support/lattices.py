"""A small lattice of two utterances and logits on it, with an obvious place for every cell."""

from __future__ import annotations

import torch

from kdstream.kd.taps import Lattice

BLANK, V, R = 0, 6, 3
FRAMES, SYMBOLS = [7, 5], [4, 2]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_lattice(rows=(0, 1)) -> Lattice:
    """Of the utterances `rows` of two, padded to the longest of them."""
    frames, symbols = [FRAMES[n] for n in rows], [SYMBOLS[n] for n in rows]
    T, S = max(frames), max(symbols)
    starts = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 0]])[list(rows), :T]
    tokens = torch.tensor([[3, 1, 4, 1], [5, 2, 0, 0]])[list(rows), :S]
    return Lattice(
        encoder_lens=torch.tensor(frames),
        tokens=tokens,
        token_lens=torch.tensor(symbols),
        decoder_out=torch.zeros(len(rows), S + 1, 1),
        ranges=starts.unsqueeze(2) + torch.arange(R),
        logits=torch.zeros(len(rows), T, R, V),
    )


def logits(seed: int) -> torch.Tensor:
    return random(2, 7, R, V, seed=seed)
