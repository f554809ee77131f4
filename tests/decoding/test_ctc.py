"""CTC searches against slow references, and chunk by chunk against whole streams."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.decoding.ctc import CtcGreedySearch, CtcPrefixBeamSearch, ctc_log_probs
from kdstream.decoding.search import Result, Search
from kdstream.errors import UserError
from kdstream.models.transducer import Transducer
from support.decoding import talkative_model
from support.searches import LENS, assert_same, decode, decode_in_pieces, decode_with_unknown, encoder_frames

SEARCHES = [CtcGreedySearch(), *(CtcPrefixBeamSearch(beam_size=size) for size in (1, 3, 8))]


@pytest.fixture(scope="module")
def model() -> Transducer:
    model = talkative_model(use_ctc=True)
    with torch.no_grad():
        model.ctc_output[1].weight.normal_(std=0.5)
        model.ctc_output[1].bias[0] += 1.0
    return model


def slow_greedy(frames: Tensor) -> Result:
    """Over (T, V) log probabilities: the best symbols, without repetitions and blanks."""
    tokens, times, own, before = [], [], [], 0
    for t, frame in enumerate(frames):
        best = int(frame.argmax())
        if best not in (0, before):
            tokens, times, own = [*tokens, best], [*times, t], [*own, float(frame[best])]
        before = best
    return Result(tokens, times, float(frames.max(dim=1).values.sum()), own)


def slow_beam(frames: Tensor, beam: int) -> Result:
    """Prefixes in a dict, as the recursion reads: log probabilities that end with blank and with the last token."""
    prefixes: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    said: dict[tuple[int, ...], tuple[list[int], list[float]]] = {(): ([], [])}
    for t, frame in enumerate(frames.tolist()):
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        times = dict(said)
        for prefix, (blank, token) in prefixes.items():
            total = add(blank, token)
            grown[prefix][0] = add(grown[prefix][0], total + frame[0])
            if prefix:
                grown[prefix][1] = add(grown[prefix][1], token + frame[prefix[-1]])
            for symbol in range(1, len(frame)):
                before = blank if prefix and symbol == prefix[-1] else total
                longer = (*prefix, symbol)
                grown[longer][1] = add(grown[longer][1], before + frame[symbol])
                if longer not in prefixes:
                    times[longer] = ([*said[prefix][0], t], [*said[prefix][1], frame[symbol]])
        best = sorted(grown, key=lambda prefix: -add(*grown[prefix]))[:beam]
        prefixes = {prefix: (grown[prefix][0], grown[prefix][1]) for prefix in best}
        said = {prefix: times[prefix] for prefix in best}
    best = max(prefixes, key=lambda prefix: add(*prefixes[prefix]))
    return Result(list(best), said[best][0], add(*prefixes[best]), said[best][1])


def add(*values: float) -> float:
    most = max(values)
    return most if most == -math.inf else most + math.log(sum(math.exp(value - most) for value in values))


def slow(search: Search, frames: Tensor) -> Result:
    return slow_beam(frames, search.beam_size) if isinstance(search, CtcPrefixBeamSearch) else slow_greedy(frames)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)
def test_a_search_equals_a_slow_reference(model, search):
    encoder_out = encoder_frames(model)
    ours, frames = decode(model, search, encoder_out, LENS), ctc_log_probs(model, encoder_out).detach()
    for result, log_probs, length in zip(ours, frames, LENS, strict=True):
        assert_same(result, slow(search, log_probs[:length]))
    assert any(len(result.tokens) > 3 for result in ours)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)
def test_chunk_by_chunk_and_stacked_streams_equal_whole_ones(model, search):
    encoder_out = encoder_frames(model)
    whole = decode(model, search, encoder_out, LENS)
    for ours, theirs in zip(decode_in_pieces(model, search, encoder_out, LENS), whole, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)
@pytest.mark.parametrize("symbols", [[0, 3, 3, 3, 0, 4], [0, 3, 0, 3, 3, 4], [0, 3, 3, 4, 4, 3]])
def test_a_token_that_lasts_beyond_an_endpoint_is_said_once(search, symbols):
    model = talkative_model(use_ctc=True)
    model.ctc_output = nn.LogSoftmax(dim=2)
    frames = 20.0 * F.one_hot(torch.tensor([symbols]), model.config.vocab_size)
    for end in range(1, len(symbols)):
        before = search.advance(model, frames[:, :end], torch.tensor([end]), search.start(model, 1))
        lens = torch.tensor([len(symbols) - end])
        (after,) = search.advance(model, frames[:, end:], lens, search.restart(model, before)).results()
        (said,), whole = before.results(), slow_greedy(frames[0].log_softmax(dim=1))
        assert said.tokens + after.tokens == whole.tokens and said.timestamps + after.timestamps == whole.timestamps
        assert said.log_prob + after.log_prob == pytest.approx(whole.log_prob, abs=1e-5)


def test_a_beam_that_holds_all_prefixes_has_the_probability_of_all_alignments(model):
    encoder_out = encoder_frames(model, count=1, frames=4)
    (result,) = decode(model, CtcPrefixBeamSearch(beam_size=2000), encoder_out, [4])
    log_probs = ctc_log_probs(model, encoder_out).detach().transpose(0, 1)
    target = torch.tensor([result.tokens])
    loss = F.ctc_loss(log_probs, target, torch.tensor([4]), torch.tensor([len(result.tokens)]), reduction="sum")
    assert result.tokens and result.log_prob == pytest.approx(-float(loss), abs=1e-4)


@pytest.mark.parametrize("search", [SEARCHES[0], SEARCHES[2]], ids=lambda search: search.name)
def test_unknown_is_taken_for_blank(model, search):
    encoder_out = encoder_frames(model)
    unknown, ours = decode_with_unknown(model, search, encoder_out)
    log_probs = model.ctc_output(encoder_out).detach()
    log_probs[:, :, 0] = torch.logaddexp(log_probs[:, :, 0], log_probs[:, :, unknown])
    log_probs[:, :, unknown] = -torch.inf
    for result, frames, length in zip(ours, log_probs, LENS, strict=True):
        assert_same(result, slow(search, frames[:length]))
    assert not any(unknown in result.tokens for result in ours)


def test_a_model_without_a_ctc_head_is_refused():
    with pytest.raises(UserError, match="--decoding-method ctc_greedy_search: the model has no CTC head; train with"):
        CtcGreedySearch().start(talkative_model(), 1)
