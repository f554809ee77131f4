"""Mode consistency: values and gradients against slow forms, and both modes through real models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdstream.config.distillation import DistillConfig
from kdstream.config.sections import TrainConfig
from kdstream.errors import UserError
from kdstream.kd.consistency import both_modes, by_symbols, consistency_loss
from kdstream.kd.divergence import divergence
from kdstream.kd.taps import Taps
from kdstream.kd.token_losses import cell_weights
from kdstream.kd.token_shift import delayed
from kdstream.models.rnnt_loss import LossSettings, next_symbols
from kdstream.models.streaming import ChunkConfig, pad_to_whole_chunks
from kdstream.models.transducer import Transducer
from kdstream.training.step import StudentWithBranches
from support.lattices import BLANK, logits, make_lattice
from support.models import CHEAP_FRONT_END, SETTINGS, batch_of, random_batch, tiny_test_model

CHUNK, AHEAD = ChunkConfig(8, 16), ChunkConfig(8, 16, 8)
MODES = DistillConfig(full_context_scale=0.5, mode_consistency_scale=1.0, kd_warmup_batches=0)


def by_loops(full, streaming, lattice, shift, collapsed, even) -> float:
    """The loss as its definition says it, cell by cell."""
    total = 0.0
    for n in range(len(lattice.tokens)):
        frames, symbols = int(lattice.encoder_lens[n]), int(lattice.token_lens[n])
        cells = []  # weight in a frame, F, S
        for t in range(shift, frames):
            kept = [r for r, s in enumerate(lattice.ranges[n, t].tolist()) if s <= symbols]
            for r in kept:
                f, s = full[n, t, r].softmax(-1), streaming[n, t, r].softmax(-1)
                cells.append((1 / len(kept), f, s, int(lattice.ranges[n, t, r])))
        for forth in (True, False):
            weights = [w if even else w * float(1 - (f if forth else s)[BLANK]) for w, f, s, _ in cells]
            scale = sum(w for w, *_ in cells) / sum(weights)
            for weight, (_, f, s, symbol) in zip(weights, cells, strict=True):
                if collapsed:
                    token = int(lattice.tokens[n, symbol]) if symbol < symbols else None
                    f, s = ([x[token] if token else 0 * x[0], x[BLANK]] for x in (f, s))
                    f, s = (torch.stack([*x, 1 - sum(x)]) for x in (f, s))
                p, q = (f, s) if forth else (s, f)
                there = p > 0
                total += 0.5 * scale * weight * float((p[there] * (p[there] / q[there]).log()).sum())
    return total


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("collapsed", [True, False])
def test_the_loss_equals_a_sum_over_cells_written_with_loops(collapsed, even):
    lattice, full, streaming = make_lattice(), logits(1), logits(2)
    symbols = next_symbols(lattice.tokens, lattice.ranges, BLANK) if collapsed else None
    loss = consistency_loss(full, streaming, cell_weights(lattice, 1), symbols, BLANK, even)
    expected = by_loops(full, streaming, lattice, 1, collapsed, even)
    assert loss.item() == pytest.approx(expected, rel=1e-6) and expected > 0.5


@pytest.mark.parametrize("even", [True, False])
def test_each_side_learns_from_the_other_held_fixed(even):
    """What a CPU does in one pass is the sum of the two divergences, with the gradients of both."""
    lattice = make_lattice()
    weights = cell_weights(lattice, 1)
    full, streaming = (logits(seed).requires_grad_() for seed in (1, 2))
    loss = consistency_loss(full, streaming, weights, None, BLANK, even)
    of_full, of_streaming = (weights if even else by_symbols(x, weights, BLANK) for x in (full, streaming))
    forth = divergence(full.detach(), streaming, of_full, None, BLANK)
    back = divergence(streaming.detach(), full, of_streaming, None, BLANK)
    torch.testing.assert_close(loss, (forth + back) / 2, rtol=1e-9, atol=0)
    ours = torch.autograd.grad(3 * loss, (full, streaming))
    theirs = torch.autograd.grad(1.5 * (forth + back), (full, streaming))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert min(float(x.abs().max()) for x in ours) > 0.01
    assert all(float(x[:, :1].abs().max()) == 0 == float(x[1, 5:].abs().max()) for x in ours)  # shift, and padding


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("collapsed", [True, False])
def test_equal_modes_have_no_loss_and_no_gradient(collapsed, even):
    lattice, full = make_lattice(), logits(1).requires_grad_()
    streaming = logits(1).requires_grad_()
    symbols = next_symbols(lattice.tokens, lattice.ranges, BLANK) if collapsed else None
    loss = consistency_loss(full, streaming, cell_weights(lattice, 0), symbols, BLANK, even)
    loss.backward()
    assert abs(loss.item()) < 1e-12 and max(x.grad.abs().max() for x in (full, streaming)) < 1e-12


def test_weights_by_symbols_add_up_to_the_frames_of_each_utterance():
    weights = cell_weights(make_lattice(), 2)
    uneven = by_symbols(logits(3), weights, BLANK)
    torch.testing.assert_close(uneven.sum(dim=(1, 2)), torch.tensor([5.0, 3.0], dtype=torch.float64))
    assert (uneven[weights == 0] == 0).all() and not torch.allclose(uneven, weights.double(), rtol=0.01)


def losses_of(
    model: Transducer, config: DistillConfig, lens=(120, 90), rows=slice(None), step: int | None = 10**6, chunk=CHUNK
):
    features, feature_lens, tokens = random_batch(lens)
    batch = batch_of(*pad_to_whole_chunks(features[rows], feature_lens[rows], chunk.chunk))
    batch.tokens, batch.token_lens = (x[rows] for x in tokens[:2])
    student = StudentWithBranches(model, None, TrainConfig(), modes=both_modes(config, model))
    return student(batch, chunk, step)


@pytest.mark.parametrize("chunk", [CHUNK, AHEAD], ids=str)
@pytest.mark.parametrize("encoder", SETTINGS)
def test_both_modes_are_what_each_is_alone_and_the_front_end_runs_once(encoder, chunk):
    model = tiny_test_model(True, encoder=encoder, use_ctc=True, **CHEAP_FRONT_END)
    runs = []
    model.encoder_embed.register_forward_hook(lambda *_: runs.append("front end"))
    model.decoder.register_forward_hook(lambda *_: runs.append("predictor"))
    model.requires_grad_(False)
    total, losses = losses_of(model, MODES, chunk=chunk)
    assert runs == ["front end", "predictor"]
    features, lens, tokens = random_batch()
    features, lens = pad_to_whole_chunks(features, lens, chunk.chunk)
    taps = Taps((), lattice=True)
    streaming, full = (model(features, lens, tokens, c, LossSettings(), t) for c, t in ((chunk, taps), (None, None)))
    torch.testing.assert_close({name: losses[name] for name in streaming}, streaming, rtol=1e-6, atol=0)

    def weighed(of_mode):
        return 0.5 * of_mode["simple_loss"] + of_mode["pruned_loss"] + 0.2 * of_mode["ctc_loss"]

    assert float(losses["full_context_loss"]) == pytest.approx(float(weighed(full)), rel=1e-6)
    lattice, encoder_out = taps.lattice, model.encode(features, lens)[0]
    at_cells = model.lattice_logits(delayed(encoder_out, 2), lattice.decoder_out, lattice.ranges)
    expected = consistency_loss(at_cells, lattice.logits, cell_weights(lattice, 2), None, 0, True)
    assert float(losses["mode_consistency_loss"]) == pytest.approx(float(expected), rel=1e-5)
    together = float(weighed(streaming) + 0.5 * weighed(full) + expected)
    assert float(total) == pytest.approx(together, rel=1e-6) and float(expected) > 0.1


def test_validation_is_of_streaming_alone():
    model = tiny_test_model(True, encoder="conformer", **CHEAP_FRONT_END)
    with torch.no_grad():
        assert losses_of(model, MODES, step=None) == losses_of(model, DistillConfig(), step=None)


@pytest.mark.parametrize("weights", ["even", "non-blank"])
def test_a_batch_costs_the_sum_of_its_utterances(weights):
    """So batches may be shared out over processes and accumulated.  A Conformer does not hear where a batch ends."""
    model = tiny_test_model(True, encoder="conformer", **CHEAP_FRONT_END)
    config = replace(MODES, mode_consistency_weights=weights, kd_token_shift="auto:3")
    lens = (121, 89)
    with torch.no_grad():
        together = losses_of(model, config, lens)[1]
        alone = [losses_of(model, config, lens, slice(n, n + 1))[1] for n in range(2)]
    for name, loss in together.items():
        assert float(loss) == pytest.approx(sum(float(one[name]) for one in alone), rel=1e-4), name


def test_the_weight_of_the_comparison_rises_and_a_loss_of_weight_0_is_reported():
    model = tiny_test_model(True, encoder="conformer", **CHEAP_FRONT_END)
    modes = both_modes(replace(MODES, kd_warmup_batches=100), model)
    assert modes.weights(50) == {"full_context_loss": 0.5, "mode_consistency_loss": 0.5}
    with torch.no_grad():
        total, losses = losses_of(model, replace(MODES, full_context_scale=0.0))
    expected = 0.5 * losses["simple_loss"] + losses["pruned_loss"] + losses["mode_consistency_loss"]
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    assert float(losses["full_context_loss"]) > 0
    assert "mode_consistency_loss" not in losses_of(model, replace(MODES, mode_consistency_scale=0.0))[1]


def test_a_student_that_cannot_run_in_two_modes_is_a_clear_error():
    assert both_modes(DistillConfig(), tiny_test_model(False)) is None
    with pytest.raises(UserError, match="--full-context-scale: a --causal 0 student has one mode; give --causal 1"):
        both_modes(MODES, tiny_test_model(False))
    with pytest.raises(UserError, match="--chunk-size -1: every batch is run in full context already; leave out -1"):
        both_modes(MODES, tiny_test_model(True, chunk_size=(8, -1)))
