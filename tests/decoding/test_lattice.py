"""fast_beam_search with the real k2: against a slow reference, batched, continued, and through the scripts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from torch import Tensor

from kdstream.checkpoints.store import load_checkpoint, save_checkpoint
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import TrainConfig
from kdstream.decoding.chunk_step import chunk_step
from kdstream.decoding.lattice import FastBeamSearch
from kdstream.decoding.search import Result
from kdstream.decoding.stream import StreamingDecoder, decode_streams, decode_whole
from kdstream.errors import UserError
from kdstream.evaluation.records import load_records
from kdstream.evaluation.scoring import read_recogs
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer
from support.decoding import SCRIPTS, log_probs, noise_test_set, run_script, talkative_model
from support.searches import LENS, assert_same, decode, encoder_frames

pytestmark = pytest.mark.k2

try:
    import k2  # noqa: F401
except ImportError:
    pytest.skip("needs k2: bash local/setup_env.sh --k2", allow_module_level=True)

EVERYTHING = FastBeamSearch(beam=1000.0, max_contexts=1000, max_states=1000)
USUAL = FastBeamSearch()


@pytest.fixture(scope="module", params=[1, 2], ids=lambda size: f"context{size}")
def model(request) -> Transducer:
    return talkative_model(context_size=request.param, vocab_size=9)


@torch.no_grad()
def most_probable(model: Transducer, frames: Tensor, silent: tuple[int, ...] = (0,)) -> Result:
    """Of all token sequences the one with the highest log probability per symbol, by summing over all alignments."""
    totals: dict[tuple[int, ...], float] = {(): 0.0}
    alignments: dict[tuple[int, ...], Result] = {(): Result([], [], 0.0)}  # the best of each sequence
    for t, frame in enumerate(frames):
        before, totals, best, alignments = totals, {}, alignments, {}
        for tokens, total in before.items():
            for token, score in enumerate(log_probs(model, frame, tokens).tolist()):
                said = [] if token in silent else [token]
                longer, path = tokens + tuple(said), best[tokens]
                totals[longer] = np.logaddexp(totals.get(longer, -np.inf), total + score)
                if longer not in alignments or path.log_prob + score > alignments[longer].log_prob:
                    times = path.timestamps + [t] * len(said)
                    own = path.token_log_probs + [score] * len(said)
                    alignments[longer] = Result(list(longer), times, path.log_prob + score, own)
    answer = max(totals, key=lambda tokens: totals[tokens] / (model.config.context_size + len(tokens)))
    return replace(alignments[answer], log_prob=totals[answer])


def test_with_nothing_pruned_it_finds_the_most_probable_sequence():
    for seed, context_size in ((0, 1), (1, 2), (2, 2)):
        model = talkative_model(context_size=context_size, vocab_size=4, seed=seed)
        with torch.no_grad():
            model.joiner.output_linear.bias[0] = 0.0
        encoder_out, lens = encoder_frames(model, seed=seed)[:, :5], (5, 4, 1, 5, 0, 3)
        ours = decode(model, EVERYTHING, encoder_out, lens)
        for result, frames, length in zip(ours, encoder_out, lens, strict=True):
            assert_same(result, most_probable(model, frames[:length]))
        assert max(len(result.tokens) for result in ours) > 2
        assert ours[lens.index(0)] == Result([], [], 0.0)


def test_unknown_is_taken_for_blank():
    for seed, context_size in ((0, 1), (1, 2), (2, 2)):
        model = talkative_model(context_size=context_size, vocab_size=4, seed=seed)
        with torch.no_grad():
            model.joiner.output_linear.bias[0] = 0.0
        model.unk_id = 2
        encoder_out, lens = encoder_frames(model, seed=seed)[:, :5], (5, 4, 1, 5, 0, 3)
        ours = decode(model, EVERYTHING, encoder_out, lens)
        assert any(result.tokens for result in ours) and not any(2 in result.tokens for result in ours)
        for result, frames, length in zip(ours, encoder_out, lens, strict=True):
            theirs = most_probable(model, frames[:length], silent=(0, 2))
            assert result.tokens == theirs.tokens
            assert result.log_prob == pytest.approx(theirs.log_prob, abs=1e-3)


def test_a_narrow_beam_finds_less_probable_sequences(model):
    wide, narrow = (
        sum(result.log_prob for result in decode(model, search, encoder_frames(model), LENS))
        for search in (EVERYTHING, FastBeamSearch(beam=0.1, max_contexts=1, max_states=1))
    )
    assert narrow < wide - 0.1


def test_batched_equals_one_at_a_time(model):
    encoder_out = encoder_frames(model)
    together = decode(model, USUAL, encoder_out, LENS)
    for n, length in enumerate(LENS):
        assert_same(together[n], decode(model, USUAL, encoder_out[n : n + 1], [length])[0])


def test_continued_in_another_order_equals_whole(model):
    """In pieces of 1 to 7 frames, each stream with a different part of what is left, the streams reshuffled between."""
    encoder_out = encoder_frames(model)
    expected = decode(model, USUAL, encoder_out, LENS)
    state = USUAL.start(model, len(LENS))
    order, done = list(range(len(LENS))), [0] * len(LENS)
    generator = torch.Generator().manual_seed(3)
    while done != list(LENS):
        lens = [min(int(torch.randint(0, 8, (), generator=generator)), LENS[n] - done[n]) for n in order]
        piece = torch.stack([torch.nn.functional.pad(encoder_out[n, done[n] :][:7], (0, 0, 0, 7))[:7] for n in order])
        state = USUAL.advance(model, piece, torch.tensor(lens), state)
        for n, length in zip(order, lens, strict=True):
            done[n] += length
        assert state.frames == [done[n] for n in order]
        state.results()  # partial results disturb nothing
        shuffle = torch.randperm(len(LENS), generator=generator).tolist()
        state = type(state).stack([state.row(place) for place in shuffle])
        order = [order[place] for place in shuffle]
    for n, result in zip(order, state.results(), strict=True):
        assert_same(result, expected[n])


def test_looking_at_results_changes_none_of_them(model):
    """However often, in the middle and at the end, and where the search prunes most."""
    for search in (USUAL, FastBeamSearch(beam=4.0, max_contexts=2, max_states=4)):
        encoder_out = encoder_frames(model)
        pieces = [encoder_out[:, begin : begin + 4] for begin in range(0, 24, 4)]
        lens = [(torch.tensor(LENS) - begin).clamp(0, 4) for begin in range(0, 24, 4)]
        unseen, seen = search.start(model, len(LENS)), search.start(model, len(LENS))
        for piece, length in zip(pieces, lens, strict=True):
            unseen = search.advance(model, piece, length, unseen)
            seen = search.advance(model, piece, length, seen)
            first = seen.results()
            assert seen.results() == first
            assert [seen.row(n).results()[0] for n in range(len(LENS))] == first
        assert seen.results() == unseen.results() == decode(model, search, encoder_out, LENS)


def test_the_results_of_a_state_stay_when_the_search_goes_on(model):
    encoder_out, lens = encoder_frames(model), torch.tensor(LENS)
    state = USUAL.advance(model, encoder_out, lens, USUAL.start(model, len(LENS)))
    before = state.results()
    USUAL.advance(model, encoder_out, lens, state)
    assert state.results() == before


def test_a_stream_that_has_heard_nothing_says_nothing(model):
    assert USUAL.start(model, 2).results() == [Result([], [], 0.0)] * 2


@pytest.mark.parametrize("engine", ["", "torch"], ids=["python", "torch"])
def test_chunk_by_chunk_equals_simulated(engine):
    model = talkative_model(causal=True)
    with torch.no_grad():
        model.joiner.output_linear.bias[0] = 1.0  # some words in little speech
    generator = torch.Generator().manual_seed(0)
    utterances = [torch.randn(frames, 80, generator=generator) * 3 - 6 for frames in (150, 97, 23, 40)]
    lens = torch.tensor([len(x) for x in utterances])
    padded = torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True)
    chunk = ChunkConfig(8, 32)
    expected = decode_whole(model, padded, lens, chunk, USUAL)
    decoder = StreamingDecoder(model, chunk, USUAL, 3, chunk_step(model, chunk, engine))
    results = dict(decode_streams(decoder, enumerate(utterances)))
    for n, result in enumerate(expected):
        assert_same(results[n], result)
    assert sum(len(set(result.tokens)) > 3 for result in expected) >= 2


def test_both_scripts_decode_a_bare_checkpoint_to_the_same_hypotheses(tmp_path, monkeypatch):
    data = noise_test_set(tmp_path)
    vocab_size = sentencepiece.SentencePieceProcessor(model_file=data.bpe_model).get_piece_size()
    model = talkative_model(causal=True, vocab_size=vocab_size, chunk_size=(8,))
    exp_dir = tmp_path / "exp"
    exp_dir.mkdir()
    ExperimentConfig(model.config, data, TrainConfig(exp_dir=str(exp_dir)), DistillConfig()).save(exp_dir)
    torch.save({"model": model.state_dict()}, exp_dir / "pretrained.pt")
    weights = ("--exp-dir", exp_dir, "--checkpoint", exp_dir / "pretrained.pt")
    search = ("--decoding-method", "fast_beam_search", "--beam", 8, "--max-contexts", 4, "--max-states", 16)
    for script in SCRIPTS.values():
        assert run_script(monkeypatch, script, *weights, *search) == ""
    simulated, chunkwise = load_records(exp_dir / "results.json")
    assert simulated.search == chunkwise.search == "fast_beam_search_beam-8.0_max-contexts-4_max-states-16"
    assert Path(simulated.recogs).name.startswith("recogs-noise-pretrained_chunk-8_left-context-32_beam-8.0_max-con")
    assert Path(chunkwise.recogs).name.startswith("recogs-noise_beam-8.0_max-contexts-4_max-states-16_pretrained_c")
    first, second = (read_recogs(exp_dir / record.recogs) for record in (simulated, chunkwise))
    assert first == second and any(transcript.hyp for transcript in first)


@pytest.mark.skipif(int(torch.__version__.split(".")[0]) >= 2, reason="this torch can read a training's checkpoints")
def test_a_checkpoint_that_this_torch_cannot_read_is_told_from_a_damaged_one(tmp_path):
    model = talkative_model()
    save_checkpoint(tmp_path / "epoch-1.pt", model, params={"batch_idx_train": 1, "best_valid_loss": 0.5})
    with pytest.raises(UserError, match=r"epoch-1\.pt: torch 1.* cannot read .*--checkpoint pretrained\.pt"):
        load_checkpoint(tmp_path / "epoch-1.pt")
