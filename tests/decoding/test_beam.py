"""Modified beam search against a slow reference, what a batch of it costs, and its names in files."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kdstream.config.sections import ModelConfig
from kdstream.decoding.beam import ModifiedBeamSearch
from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.search import Result
from kdstream.errors import UserError
from kdstream.models.presets import resolve
from kdstream.models.transducer import Transducer, build_model
from support.decoding import log_probs, talkative_model
from support.searches import LENS, assert_same, decode, decode_with_unknown, encoder_frames, said_in


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda size: f"context{size}")
def model(request) -> Transducer:
    return talkative_model(context_size=request.param)


def slow_beam(
    model: Transducer, frames: Tensor, beam: int, silent: tuple[int, ...] = (0,), blank_penalty: float = 0.0
) -> Result:
    """Paths in a dict from tokens to (log probability, timestamps, the tokens' own), as the definition reads."""
    paths: dict[tuple[int, ...], tuple[float, list[int], list[float]]] = {(): (0.0, [], [])}
    for t, frame in enumerate(frames):
        candidates = []
        for tokens, (total, times, own) in paths.items():
            scores = (log_probs(model, frame, tokens, penalty).tolist() for penalty in (blank_penalty, 0.0))
            for token, (score, log_prob) in enumerate(zip(*scores, strict=True)):
                said = ((token,), [t], [log_prob]) if token not in silent else ((), [], [])
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


@pytest.mark.parametrize("beam", [1, 2, 4, 7])
def test_modified_beam_search_equals_a_slow_reference(model, beam):
    encoder_out = encoder_frames(model)
    ours = decode(model, ModifiedBeamSearch(beam_size=beam), encoder_out, LENS)
    for result, frames, length in zip(ours, encoder_out, LENS, strict=True):
        assert_same(result, slow_beam(model, frames[:length], beam))


@pytest.mark.parametrize("beam", [1, 4])
def test_unknown_is_taken_for_blank(model, beam):
    """A path that takes it has the tokens of its parent's that takes blank, and they become one."""
    encoder_out, search = encoder_frames(model), ModifiedBeamSearch(beam_size=beam)
    unknown, ours = decode_with_unknown(model, search, encoder_out)
    for result, frames, length in zip(ours, encoder_out, LENS, strict=True):
        assert_same(result, slow_beam(model, frames[:length], beam, silent=(0, unknown)))
    assert ours[0].tokens and not any(unknown in result.tokens for result in ours)


@pytest.mark.parametrize("beam", [1, 4])
def test_a_blank_penalty_is_taken_from_blanks_logit_alone(model, beam):
    """More is said, and the tokens' own log probabilities stay the model's."""
    encoder_out = encoder_frames(model)
    plain, penalised = (
        decode(model, ModifiedBeamSearch(beam_size=beam, blank_penalty=penalty), encoder_out, LENS)
        for penalty in (0.0, 2.0)
    )
    for result, frames, length in zip(penalised, encoder_out, LENS, strict=True):
        assert_same(result, slow_beam(model, frames[:length], beam, blank_penalty=2.0))
    assert said_in(penalised) > said_in(plain)


def test_equal_hypotheses_are_merged(model):
    """A beam that holds everything holds each sequence of at most two tokens once, and probability 1 in all."""
    others = model.config.vocab_size - 1
    search = ModifiedBeamSearch(beam_size=(others + 1) ** 2)
    state = search.advance(model, encoder_frames(model, count=1), torch.tensor([2]), search.start(model, 1))
    assert int(state.log_prob.isfinite().sum()) == 1 + others + others**2
    assert float(state.log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_beam_one_equals_greedy(model):
    encoder_out = encoder_frames(model, seed=1)
    greedy = decode(model, GreedySearch(), encoder_out, LENS)
    beam = decode(model, ModifiedBeamSearch(beam_size=1), encoder_out, LENS)
    for one, other in zip(greedy, beam, strict=True):
        assert_same(one, other)


def test_one_predictor_and_one_joiner_call_per_frame(model):
    """For all streams and paths together, and the predictor once to begin with: that is what makes a batch fast."""
    calls: list[int] = []
    hooks = [module.register_forward_hook(lambda *_: calls.append(1)) for module in (model.decoder, model.joiner)]
    decode(model, ModifiedBeamSearch(), encoder_frames(model), LENS)
    for hook in hooks:
        hook.remove()
    assert len(calls) == 1 + 2 * max(LENS)


@pytest.mark.slow
def test_a_batch_costs_at_most_a_third_of_its_utterances_one_by_one():
    torch.manual_seed(0)
    config = resolve(ModelConfig(preset="tiny", causal=True, vocab_size=500))
    model = build_model(config).eval()
    encoder_out, search = encoder_frames(model, count=16, frames=50), ModifiedBeamSearch(beam_size=4)

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


def test_its_names_are_icefalls():
    search = ModifiedBeamSearch(beam_size=8)
    assert (search.name, search.streaming_name) == ("modified_beam_search_beam-size-8", "num-active-paths-8")
    assert search.file_suffix(context_size=2) == "__modified_beam_search__beam-size-8"
    penalised = ModifiedBeamSearch(beam_size=8, blank_penalty=1.0)
    assert penalised.name == "modified_beam_search_beam-size-8_blank-penalty-1"
    assert penalised.streaming_name == "num-active-paths-8-blank-penalty-1"
    assert penalised.file_suffix(context_size=2) == "__modified_beam_search__beam-size-8-blank-penalty-1"


def test_a_beam_without_paths_is_refused():
    with pytest.raises(UserError, match="--beam-size 0: must be at least 1"):
        ModifiedBeamSearch(beam_size=0)
