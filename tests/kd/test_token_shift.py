"""The shift of each utterance: the choice against trying all, and what is computed for it."""

from __future__ import annotations

import pytest
import torch

from kdstream.config.distillation import DistillConfig
from kdstream.kd.distiller import Distiller
from kdstream.kd.teacher import TransducerTeacher
from kdstream.kd.token_losses import cell_weights, token_loss
from kdstream.kd.token_shift import HeardCells, delayed, mean_shift, rows, shifted_logits
from kdstream.models.rnnt_loss import LossSettings
from support.distillation import CHUNK
from support.lattices import BLANK, FRAMES, R, V, logits, make_lattice, random
from support.models import CHEAP_FRONT_END, batch_of, random_batch, tiny_test_model

D = 5


def joiner(seed: int):
    """Logits of made-up weights, with one symbol's part for each place in a lattice."""
    weight, of_symbols = random(D, V, seed=seed), random(6, V, seed=seed + 1)

    def logits_at(encoder_out, symbols):
        return (encoder_out @ weight).unsqueeze(2) + of_symbols[symbols]

    return logits_at


def test_delayed_frames_come_later_and_the_first_are_repeated():
    x = torch.arange(5.0).view(1, 5, 1)
    assert delayed(x, 2).flatten().tolist() == [0, 0, 0, 1, 2]
    assert torch.equal(delayed(x, 0), x)


@pytest.mark.parametrize("largest", [1, 3, 9])
def test_every_shift_finds_its_cells_among_those_that_are_computed_once(largest):
    lattice = make_lattice()
    cells = HeardCells(lattice, largest)
    N, T, S = 2, FRAMES[0], lattice.tokens.size(1)
    assert cells.frames.shape == (N, T * R + largest * (S + 1 - R))
    for shift in range(largest + 1):
        index = cells.index(shift)
        expected = (torch.arange(T) - shift).clamp(min=0).view(1, T, 1).expand(N, T, R)
        found = rows(torch.stack([cells.frames, cells.symbols], dim=2), index)
        assert torch.equal(found, torch.stack([expected, lattice.ranges], dim=3))
        assert torch.equal(cells.index(torch.tensor([shift, 0]))[0], index[0])


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_each_utterance_has_the_shift_with_the_smallest_mean_loss(collapsed, temperature):
    form, largest = "collapsed" if collapsed else "full", 4
    chosen = set()
    for seed in range(6):
        lattice, encoder_out, logits_at = make_lattice(), random(2, 9, D, seed=seed), joiner(seed)
        object.__setattr__(lattice, "logits", logits(seed + 20))
        teacher, shift = shifted_logits(
            logits_at, encoder_out, lattice, f"auto:{largest}", BLANK, collapsed, temperature
        )
        for n, T in enumerate(FRAMES):
            alone = make_lattice((n,))
            means = []
            for each in range(largest + 1):
                delayed_logits = logits_at(delayed(encoder_out[n : n + 1, :T], each), alone.ranges)
                loss = token_loss(delayed_logits, lattice.logits[n : n + 1, :T], alone, BLANK, form, temperature, each)
                means.append(float(loss) / float(cell_weights(alone, each).sum()))
            best = means.index(min(means))
            assert int(shift[n]) == best
            expected = logits_at(delayed(encoder_out[n : n + 1, :T], best), alone.ranges)
            torch.testing.assert_close(teacher[n : n + 1, :T], expected, rtol=1e-12, atol=1e-12)
            chosen.add(best)
        together = token_loss(teacher, lattice.logits, lattice, BLANK, form, temperature, shift)
        one_by_one = sum(
            token_loss(teacher[n : n + 1, :T], lattice.logits[n : n + 1, :T], make_lattice((n,)), BLANK, form,
                       temperature, int(shift[n]))
            for n, T in enumerate(FRAMES)
        )  # fmt: skip
        torch.testing.assert_close(together, one_by_one, rtol=1e-6, atol=0)
    assert len(chosen) > 2


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_a_student_that_is_later_is_found_to_be_and_then_costs_nothing(delay):
    lattice, encoder_out, logits_at = make_lattice(), random(2, 7, D), joiner(0)
    late = logits_at(delayed(encoder_out, delay), lattice.ranges)
    object.__setattr__(lattice, "logits", late)
    teacher, shift = shifted_logits(logits_at, encoder_out, lattice, "auto:4", BLANK, False)
    assert shift.tolist() == [delay, delay]
    assert abs(float(token_loss(teacher, late, lattice, BLANK, "full", 1.0, shift))) < 1e-6


def test_an_utterance_that_is_shorter_than_a_shift_has_a_smaller_one():
    lattice, encoder_out = make_lattice((1,)), random(1, 5, D)
    object.__setattr__(lattice, "logits", logits(3)[:1, :5])
    _, shift = shifted_logits(joiner(0), encoder_out, lattice, "auto:30", BLANK, False)
    assert int(shift) < 5


def test_no_gradient_passes_through_the_choice_and_all_of_it_through_the_chosen():
    lattice, logits_at = make_lattice(), joiner(0)
    student = logits(3).requires_grad_()
    object.__setattr__(lattice, "logits", student)
    encoder_out = random(2, 7, D).requires_grad_()
    teacher, shift = shifted_logits(logits_at, encoder_out, lattice, "auto:3", BLANK, False)
    weight = random(2, 7, R, V, seed=9)
    (ours,) = torch.autograd.grad((teacher * weight).sum(), encoder_out)
    frames = (torch.arange(7) - shift.unsqueeze(1)).clamp(min=0)
    shifted = logits_at(encoder_out.gather(1, frames.unsqueeze(2).expand(-1, -1, D)), lattice.ranges)
    (theirs,) = torch.autograd.grad((shifted * weight).sum(), encoder_out)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_mean_shift_is_logged_per_frame_and_a_number_is_not():
    assert mean_shift("token_shift", 2, torch.tensor([10, 30])) == {}
    assert mean_shift("token_shift", torch.tensor([4, 0]), torch.tensor([10, 30])) == {"token_shift": torch.tensor(40)}


@pytest.mark.parametrize("form", ["full", "collapsed", "one-best"])
def test_a_distilled_step_reports_the_shift_that_it_chose(form):
    student = tiny_test_model(True, encoder="conformer", **CHEAP_FRONT_END)
    teacher = TransducerTeacher(tiny_test_model(False, seed=1, encoder="conformer", **CHEAP_FRONT_END))
    alone = dict(kd_feature_scale=0.0, kd_apc_scale=0.0, kd_token_scale=1.0, kd_token_form=form)
    features, lens, tokens = random_batch()
    losses = {}
    for shift in ("auto:3", 0, 1, 2, 3):
        distiller = Distiller(DistillConfig(kd_token_shift=shift, **alone), student, teacher)
        taps = distiller.student_taps()
        student(features, lens, tokens, CHUNK, LossSettings(), taps=taps)
        losses[shift] = distiller(batch_of(features, lens), taps)
    assert losses["auto:3"].keys() == {"token_loss", "token_shift"} and losses[2].keys() == {"token_loss"}
    assert 0 <= float(losses["auto:3"]["token_shift"]) <= 3 * float(sum(lens // 4))
    losses["auto:3"]["token_loss"].backward()
    assert student.joiner.output_linear.weight.grad.abs().max() > 0
