"""ScaledAdam and Eden: the properties that the recipe relies on."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from kdstream.checkpoints.store import load_checkpoint, restore, save_checkpoint
from kdstream.training.optim import Eden, ScaledAdam


def make_params(seed: int = 0) -> list[nn.Parameter]:
    """Tensors of different and of equal shapes, a scalar, and one in channels_last order."""
    torch.manual_seed(seed)
    shapes = [(4, 6), (4, 6), (6,), (), (3, 4, 2, 2), (6, 4)]
    params = [nn.Parameter(torch.randn(shape) * 0.3) for shape in shapes]
    params[4] = nn.Parameter(params[4].detach().contiguous(memory_format=torch.channels_last))
    return params


def set_grads(params: list[nn.Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * scale


def take_steps(optimizer: ScaledAdam, params: list[nn.Parameter], steps: range, scale: float = 1.0) -> None:
    for step in steps:
        set_grads(params, step, scale)
        optimizer.step()


def reference_step(p: torch.Tensor, grad: torch.Tensor, state: dict, step: int, lr: float) -> torch.Tensor:
    """One tensor's update without clipping, written out plainly from the definition."""
    beta1, beta2, period, eps = 0.9, 0.98, 4, 1e-8

    def rms(x):
        return x.square().mean().sqrt()

    state["v"] = beta2 * state.get("v", torch.zeros_like(p)) + (1 - beta2) * grad**2
    correction = 1 - beta2 ** (step + 1)
    v = state["v"] / correction if correction < 0.99 else state["v"]
    update = -lr * grad / (v.sqrt() + eps)
    if p.numel() == 1:
        update = 0.1 * update
    else:
        state.setdefault("rms", rms(p))
        state.setdefault("scale_grads", []).append((p * grad).sum())
        if step % period == period - 1:
            state["rms"] = rms(p)
        update = update * state["rms"].clamp(min=1e-5)
        if step % period == period - 1:
            grads = torch.stack(state["scale_grads"][-period:])
            state["scale_v"] = beta2**period * state.get("scale_v", 0.0) + (1 - beta2**period) * grads.square().mean()
            correction = 1 - (beta2**period) ** ((step + 1) // period)
            log_step = -0.1 * lr * correction**0.5 * grads.sum() / (state["scale_v"].sqrt() + eps)
            update = update + p * torch.minimum(log_step.clamp(-0.1, 0.1), (3.0 - state["rms"]) / state["rms"])
    state["delta"] = beta1 * state.get("delta", torch.zeros_like(p)) + (1 - beta1) * update
    return p + state["delta"]


def test_update_equals_the_definition_written_out():
    params = make_params()
    references = [p.detach().clone().contiguous() for p in params]
    states: list[dict] = [{} for _ in params]
    optimizer = ScaledAdam(params, lr=0.03)
    for step in range(230):  # past the bias correction's end
        set_grads(params, step)
        references = [
            reference_step(r, p.grad, s, step, 0.03) for r, p, s in zip(references, params, states, strict=True)
        ]
        optimizer.step()
    for p, reference in zip(params, references, strict=True):
        torch.testing.assert_close(p.detach(), reference, atol=1e-5, rtol=1e-5)


def test_step_does_not_depend_on_the_scale_of_the_gradient():
    one, other = make_params(), make_params()
    take_steps(ScaledAdam(one, lr=0.03, clipping_scale=2.0), one, range(30))
    take_steps(ScaledAdam(other, lr=0.03, clipping_scale=2.0), other, range(30), scale=1000.0)
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-5)


def test_relative_change_does_not_depend_on_the_scale_of_the_parameter():
    one, other = make_params(), make_params()
    with torch.no_grad():
        for p in other:
            if p.numel() > 1:
                p.mul_(5.0)
    take_steps(ScaledAdam(one, lr=0.01), one, range(20))
    take_steps(ScaledAdam(other, lr=0.01), other, range(20))
    for p, q in zip(one, other, strict=True):
        if p.numel() > 1:
            torch.testing.assert_close(5.0 * p, q, atol=1e-4, rtol=1e-4)


def test_rms_and_scalars_stay_within_their_bounds():
    weight, scalar = nn.Parameter(torch.full((5, 5), 2.9)), nn.Parameter(torch.tensor(9.9))
    optimizer = ScaledAdam([weight, scalar], lr=0.01)
    for _ in range(400):
        weight.grad, scalar.grad = -weight.detach().clone(), torch.tensor(-1.0)  # grow!
        optimizer.step()
    # Between two updates of the scale, 4 steps of 1 % move every element: 3 / (1 - 0.04).
    assert weight.square().mean().sqrt().item() == pytest.approx(3.125, abs=0.02)
    assert scalar.item() == pytest.approx(10.0, abs=1e-5)


@pytest.mark.slow
def test_converges_on_a_regression_problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))
    x = torch.randn(256, 10)
    y = torch.sin(x.sum(dim=1, keepdim=True))
    optimizer = ScaledAdam(model.named_parameters(), lr=0.04, clipping_scale=2.0)
    scheduler = Eden(optimizer, lr_batches=200, lr_epochs=100, warmup_batches=20)
    first = None
    for _ in range(500):
        loss = (model(x) - y).square().mean()
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step_batch()
    assert loss.item() < 0.05 * first


def test_large_gradients_are_clipped_to_a_multiple_of_the_median():
    params = make_params()
    optimizer = ScaledAdam(params, lr=0.03, clipping_scale=2.0, clipping_update_period=20)
    take_steps(optimizer, params, range(25))
    group = optimizer.param_groups[0]
    set_grads(params, 25, scale=1e4)
    assert optimizer._clipping_factor(group) == pytest.approx(1e-4 * 2, rel=0.5)  # back to twice the usual norm
    assert sorted(group["norms"])[len(group["norms"]) // 2] * 2 == pytest.approx(group["norm_threshold"], rel=0.2)


def test_clipping_names_the_dominant_parameter(caplog):
    params = make_params()
    optimizer = ScaledAdam([(f"layer{i}.weight", p) for i, p in enumerate(params)], lr=0.03, clipping_scale=2.0)
    take_steps(optimizer, params, range(15))
    set_grads(params, 15)
    params[5].grad *= 1e4
    with caplog.at_level(logging.WARNING):
        optimizer.step()
    assert "layer5.weight" in caplog.text


@pytest.mark.parametrize("step", [0, 3, 15])
def test_gradient_that_is_not_finite_leaves_parameters_finite(step: int):
    params = make_params()
    optimizer = ScaledAdam(params, lr=0.03, clipping_scale=2.0)
    take_steps(optimizer, params, range(step))
    set_grads(params, step)
    params[0].grad[0, 0] = math.inf
    params[2].grad[1] = math.nan
    optimizer.step()
    take_steps(optimizer, params, range(step + 1, step + 5))
    assert all(torch.isfinite(p).all() for p in params)


def test_state_dict_round_trip_is_exact(tmp_path: Path):
    params = make_params()
    optimizer = ScaledAdam(params, lr=0.03, clipping_scale=2.0, clipping_update_period=10)
    take_steps(optimizer, params, range(17))
    save_checkpoint(tmp_path / "epoch-1.pt", nn.ParameterList(params), optimizer=optimizer)
    restored = make_params(seed=1)
    other = ScaledAdam(restored, lr=0.5, clipping_scale=9.0)
    restore(load_checkpoint(tmp_path / "epoch-1.pt"), "epoch-1.pt", nn.ParameterList(restored), optimizer=other)
    take_steps(optimizer, params, range(17, 40))
    take_steps(other, restored, range(17, 40))
    for p, q in zip(params, restored, strict=True):
        assert torch.equal(p, q)


def test_missing_gradient_counts_as_zero():
    one, other = make_params(), make_params()
    first, second = ScaledAdam(one, lr=0.03), ScaledAdam(other, lr=0.03)
    for step in range(6):
        set_grads(one, step)
        set_grads(other, step)
        one[1].grad, other[1].grad = None, torch.zeros_like(other[1])
        first.step()
        second.step()
    for p, q in zip(one, other, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    "batch, epoch, expected",
    [
        (0, 0, 0.5),  # the warm-up's start
        (50, 0, 0.75 * (1 + (50 / 1000) ** 2) ** -0.25),
        (100, 0, (1 + (100 / 1000) ** 2) ** -0.25),
        (1000, 0, 2**-0.25),
        (1000, 4, 2**-0.5),
        (3000, 8, 10**-0.25 * 5**-0.25),
    ],
)
def test_eden_has_the_values_of_its_formula(batch: int, epoch: int, expected: float):
    optimizer = ScaledAdam(make_params(), lr=0.04)
    scheduler = Eden(optimizer, lr_batches=1000, lr_epochs=4, warmup_batches=100)
    scheduler.step_epoch(epoch)
    scheduler.step_batch(batch)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.04 * expected, rel=1e-9)


def test_eden_counts_and_restores():
    scheduler = Eden(ScaledAdam(make_params(), lr=0.04), lr_batches=1000, lr_epochs=4)
    for _ in range(7):
        scheduler.step_batch()
    scheduler.step_epoch()
    other = Eden(ScaledAdam(make_params(), lr=0.04), lr_batches=1000, lr_epochs=4)
    other.load_state_dict(scheduler.state_dict())
    assert scheduler.state_dict() == {"epoch": 1, "batch": 7}
    assert other.get_last_lr() == scheduler.get_last_lr()
