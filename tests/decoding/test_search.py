"""Greedy and modified beam search: against slow references, batched, and continued."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kdstream.config.sections import ModelConfig
from kdstream.decoding.search import Result, Search
from kdstream.errors import UserError
from kdstream.models.presets import resolve
from kdstream.models.transducer import Transducer, build_model
from support.decoding import log_probs, talkative_model

SEARCHES = (
    Search("greedy_search"),
    Search("greedy_search", max_sym_per_frame=3),
    Search("modified_beam_search", beam_size=4),
    Search("modified_beam_search", beam_size=1),
)
LENS = (24, 15, 1, 20, 0, 24)


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda size: f"context{size}")
def model(request) -> Transducer:
    return talkative_model(context_size=request.param)


def encoder_frames(model: Transducer, count: int = len(LENS), frames: int = 24, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(count, frames, model.encoder.output_dim, generator=generator)


def decode(model: Transducer, search: Search, encoder_out: Tensor, lens) -> list[Result]:
    return search.advance(model, encoder_out, torch.tensor(lens), search.start(model, len(lens))).results()


def assert_same(ours: Result, theirs: Result) -> None:
    assert ours.tokens == theirs.tokens
    assert ours.timestamps == theirs.timestamps
    assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-3)
    assert ours.token_log_probs == pytest.approx(theirs.token_log_probs, abs=1e-3)


def slow_greedy(model: Transducer, frames: Tensor, max_sym_per_frame: int) -> Result:
    tokens, times, token_scores, total = [], [], [], 0.0
    for t, frame in enumerate(frames):
        for _ in range(max_sym_per_frame):
            scores = log_probs(model, frame, tuple(tokens))
            best = int(scores.argmax())
            total += float(scores[best])
            if best == 0:
                break
            tokens.append(best)
            times.append(t)
            token_scores.append(float(scores[best]))
    return Result(tokens, times, total, token_scores)


def slow_beam(model: Transducer, frames: Tensor, beam: int) -> Result:
    """Paths in a dict from tokens to (log probability, timestamps, the tokens' own), as the definition reads."""
    paths: dict[tuple[int, ...], tuple[float, list[int], list[float]]] = {(): (0.0, [], [])}
    for t, frame in enumerate(frames):
        candidates = []
        for tokens, (total, times, own) in paths.items():
            for token, score in enumerate(log_probs(model, frame, tokens).tolist()):
                said = ((token,), [t], [score]) if token != 0 else ((), [], [])
                candidates.append((total + score, tokens + said[0], times + said[1], own + said[2]))
        candidates.sort(key=lambda candidate: -candidate[0])
        paths = {}
        for total, tokens, times, own in candidates[:beam]:
            if tokens in paths:
                before, times, own = paths[tokens]
                total = math.log(math.exp(before - total) + 1.0) + total
            paths[tokens] = (total, times, own)
    best = max(paths, key=lambda tokens: paths[tokens][0] / (model.config.context_size + len(tokens)))
    return Result(list(best), paths[best][1], paths[best][0], paths[best][2])


@pytest.mark.parametrize("max_sym_per_frame", [1, 3])
def test_greedy_equals_a_slow_reference(model, max_sym_per_frame):
    encoder_out = encoder_frames(model)
    ours = decode(model, Search(max_sym_per_frame=max_sym_per_frame), encoder_out, LENS)
    for result, frames, length in zip(ours, encoder_out, LENS, strict=True):
        assert_same(result, slow_greedy(model, frames[:length], max_sym_per_frame))
    assert len(set(ours[0].tokens)) > 5  # else the model says too little for these tests to mean much


@pytest.mark.parametrize("beam", [1, 2, 4, 7])
def test_modified_beam_search_equals_a_slow_reference(model, beam):
    encoder_out = encoder_frames(model)
    ours = decode(model, Search("modified_beam_search", beam_size=beam), encoder_out, LENS)
    for result, frames, length in zip(ours, encoder_out, LENS, strict=True):
        assert_same(result, slow_beam(model, frames[:length], beam))


def test_equal_hypotheses_are_merged(model):
    """A beam that holds everything holds each sequence of at most two tokens once, and probability 1 in all."""
    others = model.config.vocab_size - 1
    search = Search("modified_beam_search", beam_size=(others + 1) ** 2)
    state = search.advance(model, encoder_frames(model, count=1), torch.tensor([2]), search.start(model, 1))
    assert int(state.log_prob.isfinite().sum()) == 1 + others + others**2
    assert float(state.log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_beam_one_equals_greedy(model):
    encoder_out = encoder_frames(model, seed=1)
    greedy = decode(model, Search("greedy_search"), encoder_out, LENS)
    beam = decode(model, Search("modified_beam_search", beam_size=1), encoder_out, LENS)
    for one, other in zip(greedy, beam, strict=True):
        assert_same(one, other)


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
def test_states_survive_unstacking_and_another_order(model, search):
    encoder_out = encoder_frames(model)
    halfway = search.advance(
        model, encoder_out[:, :12], torch.tensor(LENS).clamp(max=12), search.start(model, len(LENS))
    )
    order = [3, 0, 5, 1]
    singles = halfway.unstack()
    state = type(halfway).stack([singles[n] for n in order])
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
            most = search.max_sym_per_frame if search.method == "greedy_search" else 1
            assert all(result.timestamps.count(t) <= most for t in result.timestamps)


def test_one_predictor_and_one_joiner_call_per_frame(model):
    """For all streams and paths together, and the predictor once to begin with: that is what makes a batch fast."""
    calls: list[int] = []
    hooks = [module.register_forward_hook(lambda *_: calls.append(1)) for module in (model.decoder, model.joiner)]
    decode(model, Search("modified_beam_search"), encoder_frames(model), LENS)
    for hook in hooks:
        hook.remove()
    assert len(calls) == 1 + 2 * max(LENS)


def test_a_batch_costs_at_most_a_third_of_its_utterances_one_by_one():
    torch.manual_seed(0)
    config = resolve(ModelConfig(preset="tiny", causal=True, vocab_size=500))
    model = build_model(config).eval()
    encoder_out, search = encoder_frames(model, count=16, frames=50), Search("modified_beam_search", beam_size=4)

    def seconds(pieces: Sequence[Tensor]) -> float:
        """Of processor time, the least of three."""
        taken = []
        for _ in range(3):
            start = time.process_time()
            for piece in pieces:
                decode(model, search, piece, [piece.size(1)] * piece.size(0))
            taken.append(time.process_time() - start)
        return min(taken)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would count twice while they wait for each other
    try:
        assert 3 * seconds([encoder_out]) <= seconds(encoder_out.split(1))
    finally:
        torch.set_num_threads(threads)


def test_without_k2_fast_beam_search_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "kdstream.decoding.fast_beam_search", raising=False)
    monkeypatch.delattr("kdstream.decoding.fast_beam_search", raising=False)
    with pytest.raises(UserError, match=r"fast_beam_search: needs k2 .*setup_env\.sh --k2"):
        Search("fast_beam_search")


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(method="prefix_search"), "--decoding-method"),
        (dict(beam_size=0), "--beam-size"),
        (dict(max_sym_per_frame=0), "--max-sym-per-frame"),
        (dict(beam=0.0), "--beam"),
        (dict(max_contexts=0), "--max-contexts"),
        (dict(max_states=-1), "--max-states"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(UserError, match=named):
        Search(**settings)
