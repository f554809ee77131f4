"""The transducer loss by groups of utterances against the loss of the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from kdstream.models import rnnt_in_groups
from kdstream.models.rnnt_in_groups import blocks, can_be_grouped, summed_over_groups
from kdstream.models.rnnt_loss import RNNT_TYPES, LossSettings, RnntLosses
from kdstream.models.transducer import Tokens, Transducer
from support.models import random_batch, tiny_test_model

N, T, S, V = 4, 12, 5, 30
SETTINGS = LossSettings(prune_range=3, delay_penalty=0.1)
PARTS = ("simple_am_proj", "simple_lm_proj", "joiner")


@pytest.fixture(autouse=True)
def small_groups(monkeypatch) -> None:
    """Groups of two utterances in the simple loss and of one in the pruned loss, and blocks of seven cells."""
    monkeypatch.setattr(rnnt_in_groups, "GROUP_ELEMENTS", 2 * T * V)
    monkeypatch.setattr(rnnt_in_groups, "BLOCK_ELEMENTS", 7 * V)


class Problem:
    """The heads of a model on random outputs of its encoder and predictor, `leaves`; one utterance has no symbols."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.model: Transducer = tiny_test_model(causal=True, vocab_size=V).to(dtype)
        generator = torch.Generator().manual_seed(0)
        shapes = ((N, T, self.model.encoder.output_dim), (N, S + 1, self.model.config.decoder_dim))
        self.leaves = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
        self.tokens = torch.randint(1, V, (N, S), generator=generator)

    def losses(self, grouped: bool, settings: LossSettings = SETTINGS) -> RnntLosses:
        encoder_out, decoder_out = self.leaves
        frames, symbols = torch.tensor([12, 10, 7, 9]), torch.tensor([5, 3, 0, 4])
        args = (encoder_out, frames, decoder_out, Tokens(self.tokens, symbols), settings)
        return self.model.rnnt_losses(*args, want_logits=not grouped)

    def gradients(self, losses: RnntLosses) -> list[Tensor]:
        parameters = [p for part in PARTS for p in getattr(self.model, part).parameters()]
        total = 0.3 * losses.simple + 1.7 * losses.pruned
        return [grad.double() for grad in torch.autograd.grad(total, [*self.leaves, *parameters])]


@pytest.mark.parametrize("lm_scale", (0.0, 0.25))
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-6)])
def test_losses_ranges_and_gradients_equal_those_of_the_whole_batch(rnnt_type, lm_scale, dtype, tolerance) -> None:
    problem, settings = Problem(dtype), SETTINGS._replace(rnnt_type=rnnt_type, lm_scale=lm_scale)
    ours, whole = problem.losses(True, settings), problem.losses(False, settings)
    assert ours.logits is None and whole.logits is not None
    assert torch.equal(ours.ranges, whole.ranges)
    torch.testing.assert_close((ours.simple, ours.pruned), (whole.simple, whole.pruned), rtol=tolerance, atol=0)
    for a, b in zip(problem.gradients(ours), problem.gradients(whole), strict=True):
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def test_under_bfloat16_losses_are_float32_and_gradients_point_where_float32_has_them() -> None:
    problem = Problem(torch.float32)
    exact = problem.gradients(problem.losses(False))
    with torch.autocast("cpu", torch.bfloat16):
        ours, whole = problem.losses(True), problem.losses(False)
    assert ours.simple.dtype == ours.pruned.dtype == torch.float32
    torch.testing.assert_close((ours.simple, ours.pruned), (whole.simple, whole.pruned), rtol=1e-3, atol=0)
    for grad, expected in zip(problem.gradients(ours), exact, strict=True):
        assert torch.cosine_similarity(grad.flatten(), expected.flatten(), dim=0) >= 0.999


@torch.no_grad()
def test_without_gradients_the_losses_are_the_same() -> None:
    problem = Problem()
    ours, whole = problem.losses(True), problem.losses(False)
    torch.testing.assert_close((ours.simple, ours.pruned), (whole.simple, whole.pruned), rtol=1e-12, atol=0)


class RowsOfLogits(TorchDispatchMode):
    """Collects how many rows of V columns the tensors have that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_flatten(result)[0] if isinstance(x, Tensor)]
        self.found |= {x.numel() // V for x in tensors if x.ndim > 1 and x.size(-1) == V}
        return result


def test_no_tensor_holds_the_logits_of_the_whole_batch() -> None:
    problem, rows = Problem(), {}
    config = problem.model.config
    weights = {problem.model.encoder.output_dim, config.decoder_dim, config.joiner_dim}
    for grouped in (True, False):
        with RowsOfLogits() as mode:
            problem.gradients(problem.losses(grouped))
        rows[grouped] = max(mode.found - weights)
    assert rows == {True: max(2 * T, N * (S + 1), T * 3), False: N * T * 3}


def test_who_looks_at_the_logits_gets_them() -> None:
    problem, seen = Problem(), []
    for module in (problem.model.joiner, problem.model.joiner.output_linear, problem.model.simple_am_proj):
        module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    whole = problem.losses(False)
    seen.clear()
    assert problem.losses(True).pruned.equal(whole.pruned)
    assert seen == [(N, T, V), (N, T, 3, V), (N, T, 3, V)]


def test_what_cannot_be_grouped_is_computed_at_once() -> None:
    assert can_be_grouped(torch.device("cpu"), SETTINGS)
    assert not can_be_grouped(torch.device("cuda"), SETTINGS._replace(backend="torch"))
    assert not can_be_grouped(torch.device("cpu"), SETTINGS._replace(am_scale=0.1))
    assert Problem().losses(True, SETTINGS._replace(am_scale=0.1)).logits is not None


def test_training_and_validation_of_a_model_take_the_groups(monkeypatch) -> None:
    model, (features, lens, tokens) = tiny_test_model(causal=True), random_batch()
    monkeypatch.setattr("kdstream.models.transducer.transducer_losses", None)
    model(features, lens, tokens, None, SETTINGS)["pruned_loss"].backward()
    with torch.no_grad():
        model(features, lens, tokens, None, SETTINGS)


def test_a_sum_over_groups_passes_on_scale_rows_and_shared_gradients() -> None:
    rows, shared = torch.randn(5, 3).requires_grad_(), torch.randn(3).requires_grad_()
    sizes = []

    def loss_of(x: Tensor, numbers: Tensor, factor: Tensor):
        sizes.append(len(x))
        return (x * factor).square().sum(), (numbers * 10,)

    loss, tens = summed_over_groups(loss_of, (rows, torch.arange(5)), (shared,), 2)
    (2 * loss).backward()
    assert sizes == [2, 2, 1] and tens.tolist() == [0, 10, 20, 30, 40]
    torch.testing.assert_close(rows.grad, 4 * rows.detach() * shared.detach().square())
    torch.testing.assert_close(shared.grad, 4 * shared.detach() * rows.detach().square().sum(0))


def test_blocks_cover_all_rows_once() -> None:
    assert [row for block in blocks(17, V) for row in range(17)[block]] == list(range(17))
    assert len(list(blocks(3, 10**9))) == 3
