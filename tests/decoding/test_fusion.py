"""Shallow fusion and LODR: modified beam search with them against a slow one, in chunks, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from kdstream.checkpoints.store import save_pretrained
from kdstream.config.experiment import TOKENS_FILE
from kdstream.decoding.beam import ModifiedBeamSearch
from kdstream.decoding.fusion import Lodr, ShallowFusion
from kdstream.decoding.hotwords import ContextGraph
from kdstream.decoding.search import Result, Scorer
from kdstream.errors import UserError
from kdstream.lm.bigram import BIGRAM_FILE, Bigram
from kdstream.lm.model import RnnLm
from kdstream.lm.text import SOS_EOS_ID
from kdstream.models.transducer import Transducer
from support.decoding import log_probs, talkative_model
from support.lm import random_bigram, tiny_lm
from support.searches import LENS, assert_same, decode, decode_in_pieces, encoder_frames
from support.tokenizers import tiny_tokenizer

SCALE, LODR_SCALE = 0.4, -0.2


@pytest.fixture(scope="module")
def model() -> Transducer:
    return talkative_model()


@pytest.fixture(scope="module")
def lm(model) -> RnnLm:
    return tiny_lm(model.config.vocab_size)


@pytest.fixture(scope="module")
def bigram(model) -> Bigram:
    return random_bigram(model.config.vocab_size)


def fused(scorers: Sequence[Scorer], beam: int = 4, nbest: int = 0) -> ModifiedBeamSearch:
    search = ModifiedBeamSearch(beam_size=beam, lm_exp_dir="lm", nbest=nbest)
    object.__setattr__(search, "scorers", tuple(scorers))
    return search


@torch.no_grad()
def score_of(lm: RnnLm, bigram: Bigram, tokens: Sequence[int]) -> float:
    """By the definition, from the first token on: SCALE log p(LSTM) + LODR_SCALE log p(bigram)."""
    total = 0.0
    for place, token in enumerate(tokens):
        heard = [SOS_EOS_ID, *tokens[:place]]
        hidden, _ = lm.step(torch.tensor([heard]), lm.start(1))
        total += SCALE * float(lm.log_probs(hidden)[0, -1, token])
        seen = np.flatnonzero(bigram.pairs == heard[-1] * lm.vocab_size + token)
        own = bigram.pair[seen[0]] if len(seen) else bigram.backoff[heard[-1]] + bigram.unigram[token]
        total += LODR_SCALE * float(own)
    return total


def slow_beam(model: Transducer, frames: Tensor, beam: int, score: Callable[[Sequence[int]], float]) -> list[Result]:
    """All paths, the best one first: sherpa-onnx's definition, with the model's and the LM's scores apart."""
    paths: dict[tuple[int, ...], tuple[float, list[int], list[float]]] = {(): (0.0, [], [])}
    for t, frame in enumerate(frames):
        candidates = []
        for tokens, (total, times, own) in paths.items():
            before = total + score(tokens)
            for token, log_prob in enumerate(log_probs(model, frame, tokens).tolist()):
                said = ((token,), [t], [log_prob]) if token else ((), [], [])
                candidates.append(
                    (before + log_prob, total + log_prob, tokens + said[0], times + said[1], own + said[2])
                )
        candidates.sort(key=lambda candidate: -candidate[0])
        kept: dict[tuple[int, ...], list[tuple[float, list[int], list[float]]]] = {}
        for _, total, tokens, times, own in candidates[:beam]:
            kept.setdefault(tokens, []).append((total, times, own))
        paths = {
            tokens: (math.log(sum(math.exp(total) for total, _, _ in same)), *same[0][1:])
            for tokens, same in kept.items()
        }
    results = [Result(list(k), times, total + score(k), own) for k, (total, times, own) in paths.items()]
    return sorted(results, key=lambda r: -r.log_prob / (model.config.context_size + len(r.tokens)))


@pytest.mark.parametrize("beam", [1, 4])
def test_the_search_equals_a_slow_reference(model, lm, bigram, beam):
    encoder_out = encoder_frames(model)
    scorers = [ShallowFusion(lm, SCALE), Lodr(bigram, LODR_SCALE)]
    ours = decode(model, fused(scorers, beam, nbest=beam), encoder_out, LENS)
    plain = decode(model, ModifiedBeamSearch(beam_size=beam), encoder_out, LENS)
    for result, frames, length in zip(ours, encoder_out, LENS, strict=True):
        theirs = slow_beam(model, frames[:length], beam, lambda tokens: score_of(lm, bigram, tokens))
        assert len(result.nbest) == len(theirs)
        assert_same(result, theirs[0])
        for one, other in zip(result.nbest, theirs, strict=True):
            assert_same(one, other)
    if beam > 1:
        assert [r.tokens for r in ours] != [r.tokens for r in plain]


def test_chunk_by_chunk_and_stacked_streams_equal_whole_ones(model, lm, bigram):
    encoder_out = encoder_frames(model)
    graph = ContextGraph([(3, 4, 5), (7,)], [2.0, 0.5], model.config.vocab_size)
    search = fused([graph, ShallowFusion(lm, SCALE), Lodr(bigram, LODR_SCALE)], nbest=3)
    whole = decode(model, search, encoder_out, LENS)
    for ours, theirs in zip(decode_in_pieces(model, search, encoder_out, LENS), whole, strict=True):
        assert_same(ours, theirs)
        assert [path.tokens for path in ours.nbest] == [path.tokens for path in theirs.nbest]


def test_the_lstm_runs_once_in_frames_in_which_some_path_speaks_and_in_no_other(model, lm):
    calls: list[int] = []
    hook = lm.rnn.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    silent = talkative_model(blank=1e4)
    encoder_out = encoder_frames(model)
    decode(silent, fused([ShallowFusion(lm, SCALE)], beam=1), encoder_out, LENS)
    assert calls == [1]  # <sos/eos>
    decode(model, fused([ShallowFusion(lm, SCALE)]), encoder_out, LENS)
    hook.remove()
    assert len(calls) <= 2 + max(LENS) and 0 < max(calls[2:]) <= 4 * len(LENS)


def test_scales_of_zero_change_nothing(model, lm, bigram):
    encoder_out = encoder_frames(model)
    plain = decode(model, ModifiedBeamSearch(nbest=2), encoder_out, LENS)
    ours = decode(model, fused([ShallowFusion(lm, 0.0), Lodr(bigram, 0.0)], nbest=2), encoder_out, LENS)
    assert ours == plain


def test_an_nbest_list_begins_with_the_result_and_has_no_path_twice(model):
    encoder_out = encoder_frames(model)
    plain = decode(model, ModifiedBeamSearch(beam_size=7), encoder_out, LENS)
    for one, listed in zip(
        plain, decode(model, ModifiedBeamSearch(beam_size=7, nbest=5), encoder_out, LENS), strict=True
    ):
        assert_same(one, listed)
        assert_same(one, listed.nbest[0])
        assert not one.nbest and 1 <= len(listed.nbest) <= 5
        paths = [tuple(path.tokens) for path in listed.nbest]
        scores = [path.log_prob / (model.config.context_size + len(path.tokens)) for path in listed.nbest]
        assert len(set(paths)) == len(paths) and scores == sorted(scores, reverse=True)


def test_it_is_fitted_to_the_tokens_by_name(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "bpe.model", ["A SECOND DAY", "NO MORE"])
    tokenizer.save_tokens(tmp_path / TOKENS_FILE)
    save_pretrained(tmp_path, tiny_lm(tokenizer.vocab_size))
    search = ModifiedBeamSearch(lm_exp_dir=str(tmp_path), lm_scale_decode=0.25)
    assert search.name == f"modified_beam_search_beam-size-4_{tmp_path.name}-lm-scale-0.25"
    assert [type(scorer) for scorer in search.for_tokens(tokenizer).scorers] == [ShallowFusion]
    with_lodr = ModifiedBeamSearch(lm_exp_dir=str(tmp_path), lodr_scale=-0.1)
    assert with_lodr.name.endswith(f"_{tmp_path.name}-lm-scale-0.3_LODR-2gram-scale--0.1")
    with pytest.raises(UserError, match="bigram.npz: no such file"):
        with_lodr.for_tokens(tokenizer)
    random_bigram(tokenizer.vocab_size).save(tmp_path / BIGRAM_FILE)
    assert [type(scorer) for scorer in with_lodr.for_tokens(tokenizer).scorers] == [ShallowFusion, Lodr]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"lodr_scale": 0.1, "lm_exp_dir": "lm"}, "--lodr-scale 0.1: must be at most 0"),
        ({"lodr_scale": -0.1}, "--lodr-scale -0.1: goes with --lm-exp-dir"),
        ({"nbest": 5}, "--nbest 5: --beam-size 4 has fewer paths"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, problem):
    with pytest.raises(UserError, match=problem):
        ModifiedBeamSearch(**settings)
