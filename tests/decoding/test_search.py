"""What every search keeps to: streams in batches, in pieces and in any order, and results that change nothing."""

from __future__ import annotations

import pytest
import torch

from kdstream.decoding.beam import ModifiedBeamSearch
from kdstream.decoding.greedy import GreedySearch
from kdstream.models.transducer import Transducer
from support.decoding import log_probs, talkative_model
from support.searches import LENS, assert_same, decode, encoder_frames

SEARCHES = (
    GreedySearch(),
    GreedySearch(max_sym_per_frame=3),
    ModifiedBeamSearch(beam_size=4),
    ModifiedBeamSearch(beam_size=1),
    GreedySearch(blank_penalty=2.0),
    ModifiedBeamSearch(beam_size=4, blank_penalty=2.0),
)


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda size: f"context{size}")
def model(request) -> Transducer:
    return talkative_model(context_size=request.param)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_batched_equals_one_at_a_time(model, search):
    encoder_out = encoder_frames(model)
    together = decode(model, search, encoder_out, LENS)
    for n, length in enumerate(LENS):
        assert_same(together[n], decode(model, search, encoder_out[n : n + 1], [length])[0])


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_continued_equals_whole(model, search):
    """Pieces of 1 to 7 frames, in which each stream has a different part of what is left."""
    encoder_out = encoder_frames(model)
    state = search.start(model, len(LENS))
    done, generator = [0] * len(LENS), torch.Generator().manual_seed(3)
    while done != list(LENS):
        lens = [
            min(int(torch.randint(0, 8, (), generator=generator)), left - at)
            for at, left in zip(done, LENS, strict=True)
        ]
        piece = torch.stack(
            [
                torch.nn.functional.pad(x[a : a + n], (0, 0, 0, 7 - n))
                for x, a, n in zip(encoder_out, done, lens, strict=True)
            ]
        )
        state = search.advance(model, piece, torch.tensor(lens), state)
        done = [at + n for at, n in zip(done, lens, strict=True)]
    assert state.frames == list(LENS)
    for continued, whole in zip(state.results(), decode(model, search, encoder_out, LENS), strict=True):
        assert_same(continued, whole)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_frames_beyond_a_streams_length_change_nothing(model, search):
    encoder_out = encoder_frames(model)
    before = decode(model, search, encoder_out, LENS)
    for n, length in enumerate(LENS):
        encoder_out[n, length:] = 100.0
    assert decode(model, search, encoder_out, LENS) == before


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_states_survive_being_taken_apart_and_another_order(model, search):
    encoder_out = encoder_frames(model)
    halfway = search.advance(
        model, encoder_out[:, :12], torch.tensor(LENS).clamp(max=12), search.start(model, len(LENS))
    )
    order = [3, 0, 5, 1]
    state = type(halfway).stack([halfway.row(n) for n in order])
    state = search.advance(model, encoder_out[order, 12:], torch.tensor(LENS)[order] - 12, state)
    whole = decode(model, search, encoder_out, LENS)
    for n, result in zip(order, state.results(), strict=True):
        assert_same(result, whole[n])


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_state_is_not_modified_by_going_on(model, search):
    encoder_out = encoder_frames(model)
    lens = torch.tensor(LENS)
    state = search.advance(model, encoder_out, lens, search.start(model, len(LENS)))
    before = state.results()
    search.advance(model, encoder_out, lens, state)
    assert state.results() == before


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_confidence_is_the_geometric_mean_of_the_tokens_probabilities_and_none_where_nothing_is_said(model, search):
    encoder_out = encoder_frames(model)
    results = decode(model, search, encoder_out, LENS)
    for result, frames in zip(results, encoder_out, strict=True):
        if not result.tokens:
            assert result.confidence is None
            continue
        product = 1.0
        for place, (token, t) in enumerate(zip(result.tokens, result.timestamps, strict=True)):
            product *= float(log_probs(model, frames[t], tuple(result.tokens[:place])).softmax(dim=-1)[token])
        assert result.confidence == pytest.approx(product ** (1 / len(result.tokens)), rel=1e-3)
        assert 0 < result.confidence <= 1
    assert results[LENS.index(0)].confidence is None
    assert sum(result.confidence is not None for result in results) >= 4


def test_timestamps_never_fall_and_stay_within_the_stream(model):
    for search in SEARCHES:
        for result, length in zip(decode(model, search, encoder_frames(model), LENS), LENS, strict=True):
            assert len(result.timestamps) == len(result.tokens)
            assert result.timestamps == sorted(result.timestamps)
            assert all(0 <= t < length for t in result.timestamps)
            most = search.max_sym_per_frame if isinstance(search, GreedySearch) else 1
            assert all(result.timestamps.count(t) <= most for t in result.timestamps)
