"""Gradient shaping against autograd on the penalties it stands for, and activations against their formulas."""

from __future__ import annotations

import random

import pytest
import torch

from kdstream.models.scaling import (
    Balancer,
    BiasNorm,
    ScheduledFloat,
    SwooshL,
    SwooshR,
    Whiten,
    convert_channels,
    full_width,
    limit_parameter,
    set_batch_count,
)


@pytest.mark.parametrize("swoosh", [SwooshL(), SwooshR()])
def test_swoosh_equals_its_formula_and_gradient(swoosh):
    x = torch.cat([torch.linspace(-30, 30, 241), torch.tensor([-1e4, 79.0, 85.0, 1e4])]).double().requires_grad_()
    formula = torch.logaddexp(torch.zeros_like(x), x - swoosh.shift) - 0.08 * x - swoosh.offset
    assert torch.allclose(swoosh(x), formula, atol=1e-8)
    assert torch.equal(swoosh(x.detach()), swoosh(x))  # without a gradient it goes another way
    ours, expected = (torch.autograd.grad(y.sum(), x)[0] for y in (swoosh(x), formula))
    assert torch.allclose(ours, expected, atol=1e-8)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_swoosh_is_exact_to_rounding(dtype, tolerance):
    x = torch.linspace(-20, 20, 401).to(dtype)
    exact = torch.nn.functional.softplus(x.double() - 4) - 0.08 * x.double() - 0.035
    error = (SwooshL()(x).double() - exact).abs()
    assert (error <= tolerance * exact.abs().clamp(min=1.0)).all()


def test_balancer_is_the_identity_and_adds_the_gradient_of_its_penalty():
    torch.manual_seed(0)
    x = torch.randn(3, 50, 4) * torch.tensor([0.01, 1.0, 30.0, 1.0]) + torch.tensor([0.0, 0.0, 0.0, 5.0])
    x.requires_grad_()
    balancer = Balancer(min_positive=0.4, max_positive=0.6, min_abs=0.2, max_abs=4.0, prob=1.0, grad_scale=0.04)
    y = balancer(x)
    assert torch.equal(y, x)
    grad = torch.randn_like(x)
    (ours,) = torch.autograd.grad(y, x, grad)

    mean, square = x.mean(dim=(0, 1)), x.square().mean(dim=(0, 1))
    ratio, rms = mean / (square - mean**2).sqrt(), square.sqrt()
    limit = 0.8139535143 * torch.atanh(torch.tensor(0.2))
    to_rms = (torch.pi / 2) ** 0.5
    penalty = (ratio - ratio.clamp(-limit, limit)).abs() + (rms.clamp(0.2 * to_rms, 4.0 * to_rms) / rms).log().abs()
    (push,) = torch.autograd.grad(penalty.sum(), x)
    size = push.square().mean(dim=(0, 1)).sqrt().clamp(min=1e-20)
    expected = grad + grad.abs() * push * 0.04 / size
    assert torch.allclose(ours, expected, atol=1e-5)
    assert torch.equal(ours[:, :, 1], grad[:, :, 1])  # within its ranges
    assert not torch.allclose(ours[:, :, 3], grad[:, :, 3])


@pytest.mark.parametrize("value", [0.0, 5.0, 1e-12, -3e4])
def test_balancer_and_whiten_stay_finite_on_constant_channels(value):
    for module in (Balancer(prob=1.0), always(Whiten(2, 1.5, 0.01))):
        x = torch.full((2, 40, 4), value, requires_grad=True)
        (grad,) = torch.autograd.grad(module(x).sum(), x)
        assert torch.isfinite(grad).all()


def test_balancer_changes_a_gradient_by_a_few_percent_even_on_nearly_constant_channels():
    torch.manual_seed(0)
    for spread in (1.0, 1e-2, 1e-4, 1e-6):
        x = (3.0 + spread * torch.randn(1000, 8)).requires_grad_()
        grad = torch.randn_like(x)
        (ours,) = torch.autograd.grad(Balancer(prob=1.0, min_positive=0.45, max_positive=0.55)(x), x, grad)
        assert (ours - grad).norm() < 0.1 * grad.norm()


def always(whiten: Whiten) -> Whiten:
    whiten.prob = 1.0
    return whiten


def test_whiten_pushes_along_the_gradient_of_its_metric():
    torch.manual_seed(0)
    x = (torch.randn(2, 60, 8) @ torch.randn(8, 8)).requires_grad_()
    whiten = always(Whiten(2, 1.1, 0.01))
    grad = torch.randn_like(x)
    (ours,) = torch.autograd.grad(whiten(x), x, grad)

    groups = x.reshape(-1, 2, 4).transpose(0, 1)
    groups = groups - groups.mean(dim=1, keepdim=True)
    cov = groups.transpose(1, 2) @ groups
    metric = (cov @ cov).diagonal(dim1=1, dim2=2).mean() / cov.diagonal(dim1=1, dim2=2).mean() ** 2
    (push,) = torch.autograd.grad(metric, x)
    expected = grad + push * whiten.grad_scale * grad.norm() / push.norm()
    assert torch.allclose(ours, expected, atol=1e-6)


def test_bias_norm_has_the_rms_of_its_scale():
    norm = BiasNorm(16).eval()
    y = norm(torch.randn(5, 16) * 7)
    assert torch.allclose(y.square().mean(dim=1).sqrt(), norm.log_scale.exp().expand(5), atol=1e-3)


def test_limited_parameters_get_a_gradient_towards_their_interval():
    random.seed(1)  # acts on 60 % of the calls: this one does
    x = torch.tensor([-2.0, 0.5, 2.0], requires_grad=True)
    (grad,) = torch.autograd.grad((limit_parameter(x, 0.0, 1.0, True) * torch.tensor([1.0, 1.0, -1.0])).sum(), x)
    assert grad.tolist() == [-1.0, 1.0, 1.0]


def test_scheduled_float_is_piecewise_linear_and_moves_with_the_model():
    value = ScheduledFloat((0, 0.5), (100, 0.1), (200, 0.0))
    model = torch.nn.ModuleList([value])
    seen = []
    for count in (0, 50, 100, 150, 1000):
        set_batch_count(model, count)
        seen.append(float(value))
    assert seen == pytest.approx([0.5, 0.3, 0.1, 0.05, 0.0])


def test_width_changes_keep_the_channels_that_are_there():
    x = torch.randn(1, 2, 4)
    assert torch.equal(convert_channels(x, 3), x[..., :3])
    assert torch.equal(convert_channels(x, 6)[..., :4], x) and not convert_channels(x, 6)[..., 4:].any()
    wide, narrow = torch.randn(1, 2, 6), torch.randn(1, 2, 4)
    assert torch.equal(full_width([wide, narrow], 6), torch.cat([narrow, wide[..., 4:]], dim=-1))
