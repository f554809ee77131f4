"""Greedy search against a slow reference, and its names in files."""

from __future__ import annotations

import pytest
from torch import Tensor

from kdstream.decoding.greedy import TOGETHER, GreedySearch
from kdstream.decoding.search import Result
from kdstream.errors import UserError
from kdstream.models.transducer import Transducer
from support.decoding import log_probs, talkative_model
from support.searches import LENS, assert_same, decode, decode_with_unknown, encoder_frames, said_in


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda size: f"context{size}")
def model(request) -> Transducer:
    return talkative_model(context_size=request.param)


def slow_greedy(
    model: Transducer, frames: Tensor, max_sym_per_frame: int, silent: tuple[int, ...] = (0,), penalty: float = 0.0
) -> Result:
    tokens, times, token_scores, total = [], [], [], 0.0
    for t, frame in enumerate(frames):
        for _ in range(max_sym_per_frame):
            own = log_probs(model, frame, tuple(tokens))
            scores = log_probs(model, frame, tuple(tokens), penalty)
            best = int(scores.argmax())
            total += float(scores[best])
            if best in silent:
                break
            tokens.append(best)
            times.append(t)
            token_scores.append(float(own[best]))
    return Result(tokens, times, total, token_scores)


@pytest.mark.parametrize("max_sym_per_frame", [1, 3])
def test_greedy_equals_a_slow_reference(model, max_sym_per_frame):
    encoder_out = encoder_frames(model)
    ours = decode(model, GreedySearch(max_sym_per_frame=max_sym_per_frame), encoder_out, LENS)
    for result, frames, length in zip(ours, encoder_out, LENS, strict=True):
        assert_same(result, slow_greedy(model, frames[:length], max_sym_per_frame))
    assert len(set(ours[0].tokens)) > 5  # else the model says too little for these tests to mean much


@pytest.mark.parametrize("max_sym_per_frame", [1, 3])
def test_unknown_is_taken_for_blank(model, max_sym_per_frame):
    """It is not said and moves no context, but its log probability counts, as sherpa-onnx has it."""
    encoder_out, search = encoder_frames(model), GreedySearch(max_sym_per_frame=max_sym_per_frame)
    unknown, ours = decode_with_unknown(model, search, encoder_out)
    for result, frames, length in zip(ours, encoder_out, LENS, strict=True):
        assert_same(result, slow_greedy(model, frames[:length], max_sym_per_frame, silent=(0, unknown)))
    assert ours[0].tokens and not any(unknown in result.tokens for result in ours)


@pytest.mark.parametrize("max_sym_per_frame", [1, 3])
def test_a_blank_penalty_is_taken_from_blanks_logit_alone(model, max_sym_per_frame):
    """More is said, and the tokens' own log probabilities stay the model's."""
    encoder_out, settings = encoder_frames(model), {"max_sym_per_frame": max_sym_per_frame}
    plain, penalised = (
        decode(model, GreedySearch(**settings, blank_penalty=penalty), encoder_out, LENS) for penalty in (0.0, 2.0)
    )
    for result, frames, length in zip(penalised, encoder_out, LENS, strict=True):
        assert_same(result, slow_greedy(model, frames[:length], max_sym_per_frame, penalty=2.0))
    assert said_in(penalised) > said_in(plain)


def test_its_names_are_icefalls():
    plain, several = GreedySearch(), GreedySearch(max_sym_per_frame=3)
    assert (plain.name, plain.streaming_name) == ("greedy_search", "greedy-search")
    assert several.name == "greedy_search_max-sym-per-frame-3"
    assert several.streaming_name == "greedy-search_max-sym-per-frame-3"
    assert plain.file_suffix(context_size=2) == "_context-2_max-sym-per-frame-1"
    penalised = GreedySearch(blank_penalty=2.5)
    assert (penalised.name, penalised.streaming_name) == (
        "greedy_search_blank-penalty-2.5", "greedy-search_blank-penalty-2.5",
    )  # fmt: skip
    assert penalised.file_suffix(context_size=2) == "_context-2_max-sym-per-frame-1_blank-penalty-2.5"


def test_no_symbols_per_frame_are_refused():
    with pytest.raises(UserError, match="--max-sym-per-frame 0: must be at least 1"):
        GreedySearch(max_sym_per_frame=0)


def test_the_joiner_is_asked_about_several_frames_at_once(model):
    """Once for every block of frames, and once more for each symbol that is not on a block's last frame."""
    blocks, calls = 3, []
    encoder_out = encoder_frames(model, count=1, frames=blocks * TOGETHER)
    hook = model.joiner.register_forward_hook(lambda *_: calls.append(1))
    (result,) = decode(model, GreedySearch(), encoder_out, [blocks * TOGETHER])
    hook.remove()
    assert any(t % TOGETHER == TOGETHER - 1 for t in result.timestamps)
    assert len(calls) == blocks + sum(t % TOGETHER != TOGETHER - 1 for t in result.timestamps) < blocks * TOGETHER
