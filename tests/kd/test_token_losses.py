"""Token distillation against slow, obvious references, and the properties that its forms share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdstream.config.distillation import TOKEN_FORMS
from kdstream.kd import divergence as divergences
from kdstream.kd.token_losses import cell_weights, path_weights, token_loss
from kdstream.models.rnnt_lattice import best_path
from support.lattices import BLANK, FRAMES, V, logits, make_lattice, random


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    return float(sum(a * (a / b).log() for a, b in zip(p, q, strict=True) if a > 0))


def three_classes(p: torch.Tensor, symbol) -> torch.Tensor:
    symbol_p = p[symbol] if symbol is not None else torch.zeros(())
    return torch.stack([symbol_p, p[BLANK], 1 - symbol_p - p[BLANK]])


def best_alignment(log_probs, ranges, tokens, frames):
    """The likeliest path's cells (t, s), by trying all of them."""
    symbols = len(tokens)

    def score_from(t, s):
        if t == frames:
            return (0.0, []) if s == symbols else (-1e30, [])
        if s not in ranges[t]:
            return -1e30, []
        cell = log_probs[t, s - ranges[t][0]]
        options = [(cell[BLANK] + (rest := score_from(t + 1, s))[0], [(t, s), *rest[1]])]
        if s < symbols:
            options.append((cell[tokens[s]] + (rest := score_from(t, s + 1))[0], [(t, s), *rest[1]]))
        return max(options, key=lambda option: option[0])

    return score_from(0, 0)[1]


def reference(teacher, student, lattice, form, temperature, shift) -> float:
    total = 0.0
    for n in range(len(lattice.tokens)):
        frames, symbols = int(lattice.encoder_lens[n]), int(lattice.token_lens[n])
        tokens, ranges = lattice.tokens[n, :symbols].tolist(), lattice.ranges[n].tolist()
        cells = [[(t, s) for s in ranges[t] if s <= symbols] for t in range(frames)]
        weights = {cell: 1 / len(row) for row in cells for cell in row}
        if form == "one-best":
            path = best_alignment(teacher[n].log_softmax(-1), ranges, tokens, frames)
            weights = {cell: frames / len(path) for cell in path}
        for (t, s), weight in weights.items():
            if t < shift:
                continue
            p, q = (x[n, t, s - ranges[t][0]].div(temperature).softmax(-1) for x in (teacher, student))
            if form == "collapsed":
                symbol = tokens[s] if s < symbols else None
                p, q = three_classes(p, symbol), three_classes(q, symbol)
            total += weight * temperature**2 * divergence(p, q)
    return total


@pytest.mark.parametrize("form", TOKEN_FORMS)
@pytest.mark.parametrize("temperature, shift", [(1.0, 0), (2.0, 0), (1.0, 2)])
def test_token_losses_equal_a_sum_over_cells_written_with_loops(form, temperature, shift):
    lattice, teacher, student = make_lattice(), logits(1), logits(2)
    expected = reference(teacher, student, lattice, form, temperature, shift)
    loss = token_loss(teacher, student, lattice, BLANK, form, temperature, shift)
    assert loss.item() == pytest.approx(expected, rel=1e-6) and expected > 0.5


@pytest.mark.parametrize("form", TOKEN_FORMS)
def test_identical_models_at_equal_ranges_have_no_loss_and_no_gradient(form):
    teacher = logits(1)
    student = teacher.clone().requires_grad_()
    loss = token_loss(teacher, student, make_lattice(), BLANK, form, 2.0, 0)
    loss.backward()
    assert abs(loss.item()) < 1e-6 and student.grad.abs().max() < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("form", TOKEN_FORMS)
def test_gradients_pass_gradcheck(form):
    lattice, teacher = make_lattice(), logits(1)
    student = logits(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_loss(teacher, x, lattice, BLANK, form, 2.0, 1), (student,))


@pytest.mark.parametrize("form", ["full", "one-best"])
def test_blocks_of_cells_equal_autograd_over_all_cells(form, monkeypatch):
    monkeypatch.setattr(divergences, "BLOCK_ELEMENTS", 4 * V)
    lattice, teacher, student = make_lattice(), logits(1).float(), logits(2).float().requires_grad_()
    weights = path_weights(teacher, lattice, BLANK, 1) if form == "one-best" else cell_weights(lattice, 1)
    p, q = ((x / 2.0).log_softmax(dim=-1) for x in (teacher, student))
    expected = 4.0 * (weights * torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)).sum()
    loss = token_loss(teacher, student, lattice, BLANK, form, 2.0, 1)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    ours, theirs = (torch.autograd.grad(3 * x, student)[0] for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("form", TOKEN_FORMS)
def test_the_batch_costs_the_sum_of_its_utterances_and_padding_gets_no_gradient(form):
    lattice, teacher, student = make_lattice(), logits(1), logits(2).requires_grad_()
    together = token_loss(teacher, student, lattice, BLANK, form, 1.0, 1)
    together.backward()
    alone = sum(
        token_loss(teacher[n : n + 1, :T], student[n : n + 1, :T], make_lattice((n,)), BLANK, form, 1.0, 1)
        for n, T in enumerate(FRAMES)
    )
    assert together.item() == pytest.approx(alone.item(), rel=1e-9)
    assert student.grad[1, FRAMES[1] :].abs().max() == 0 and student.grad[:, :1].abs().max() == 0
    assert student.grad[1, 1 : FRAMES[1]].abs().amax(dim=(1, 2)).min() > 0


def test_weights_of_the_one_best_path_add_up_to_the_frames():
    lattice = make_lattice()
    torch.testing.assert_close(path_weights(logits(1), lattice, BLANK, 0).sum(dim=(1, 2)), torch.tensor([7.0, 5.0]))


def test_an_utterance_without_symbols_is_compared_on_its_blanks():
    lattice = replace(make_lattice((1,)), token_lens=torch.tensor([0]))
    for form in TOKEN_FORMS:
        teacher, student = logits(1)[:1, :5], logits(2)[:1, :5].requires_grad_()
        token_loss(teacher, student, lattice, BLANK, form, 1.0, 0).backward()
        assert student.grad[:, :, 0].abs().amax(dim=2).min() > 0 and student.grad[:, :, 1:].abs().max() == 0


@pytest.mark.parametrize("form", TOKEN_FORMS)
def test_logits_in_bfloat16_are_compared_in_float32(form):
    lattice = make_lattice()
    teacher, student = (10 * logits(seed).float() for seed in (0, 1))
    rough = [x.bfloat16() for x in (teacher, student)]
    exact = token_loss(*(x.float() for x in rough), lattice, BLANK, form, 2.0, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = token_loss(*rough, lattice, BLANK, form, 2.0, 1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)


def test_best_path_is_the_best_of_all_paths():
    px, py = random(2, 4, 8, seed=3), random(2, 5, 7, seed=4)
    px[:, :, 7] = float("-inf")
    px[1, :, 5] = float("-inf")
    boundary = torch.tensor([[0, 0, 4, 7], [0, 0, 2, 5]])
    path = best_path(px, py, boundary)
    for n, (S, T) in enumerate(boundary[:, 2:].tolist()):
        log_probs = torch.full((T, S + 1, 2), float("-inf"), dtype=torch.float64)
        log_probs[:, :, BLANK], log_probs[:, :S, 1] = py[n, : S + 1, :T].T, px[n, :S, :T].T
        expected = best_alignment(log_probs, [list(range(S + 1))] * T, [1] * S, T)
        assert sorted((t, s) for s, t in path[n].nonzero().tolist()) == sorted(expected) and len(expected) == S + T
