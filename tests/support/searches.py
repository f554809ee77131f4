"""For tests of searches: frames to decode, one call for whole streams, and what equal results are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kdstream.decoding.search import Result, Search
from kdstream.models.transducer import Transducer

LENS = (24, 15, 1, 20, 0, 24)


def encoder_frames(model: Transducer, count: int = len(LENS), frames: int = 24, seed: int = 0) -> Tensor:
    """(count, frames, encoder width) at random."""
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(count, frames, model.encoder.output_dim, generator=generator)


def decode(model: Transducer, search: Search, encoder_out: Tensor, lens: Sequence[int]) -> list[Result]:
    """The results of whole streams, in one call."""
    return search.advance(model, encoder_out, torch.tensor(lens), search.start(model, len(lens))).results()


def decode_in_pieces(model: Transducer, search: Search, encoder_out: Tensor, lens: Sequence[int]) -> list[Result]:
    """The same of one stream after the other, in pieces of 5 frames and each in a batch with a stream that is new."""
    results = []
    for frames, length in zip(encoder_out, lens, strict=True):
        state = search.start(model, 1)
        for piece in frames[:length].unsqueeze(0).split(5, dim=1) if length else ():
            both = type(state).stack([search.start(model, 1), state])
            lens_of_both = torch.tensor([piece.size(1)] * 2)
            state = search.advance(model, torch.cat([piece.flip(1), piece]), lens_of_both, both).row(1)
        results += state.results()
    return results


def decode_with_unknown(model: Transducer, search: Search, encoder_out: Tensor) -> tuple[int, list[Result]]:
    """A token that `model` says, and the results where this token is its <unk>."""
    unknown = decode(model, search, encoder_out, LENS)[0].tokens[0]
    model.unk_id = unknown
    try:
        return unknown, decode(model, search, encoder_out, LENS)
    finally:
        model.unk_id = None


def said_in(results: Sequence[Result]) -> int:
    """The tokens of all streams."""
    return sum(len(result.tokens) for result in results)


def assert_same(ours: Result, theirs: Result) -> None:
    assert ours.tokens == theirs.tokens
    assert ours.timestamps == theirs.timestamps
    assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-3)
    assert ours.token_log_probs == pytest.approx(theirs.token_log_probs, abs=1e-3)
