"""What the parts of a layer compute in one pass is what their formulas say, gradients too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdstream.models.scaling import ScheduledFloat
from kdstream.models.streaming import ChunkConfig
from kdstream.models.zipformer import add_masked
from kdstream.models.zipformer_modules import Bypass, ChunkCausalDepthwiseConv1d, Convolution


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def assert_same_gradients(ours, plain, leaves):
    grad = torch.randn_like(plain)
    assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-6)
    for value, expected in zip(*(torch.autograd.grad(y, leaves, grad) for y in (ours, plain)), strict=True):
        assert (value - expected).norm() <= 5e-6 * expected.norm()


@pytest.mark.parametrize("skip_rate", [0.0, 0.5])
def test_bypass_interpolates(skip_rate):
    bypass = Bypass(8, ScheduledFloat((0, skip_rate)))
    nn.init.uniform_(bypass.bypass_scale, 0.95, 1.0)  # within its limits
    before, after = torch.randn(2, 6, 5, 8, requires_grad=True)
    torch.manual_seed(1)
    ours = bypass(before, after)
    torch.manual_seed(1)
    keep = torch.rand(6, 1, 1) > skip_rate if skip_rate else 1.0
    assert_same_gradients(
        ours, before + (after - before) * bypass.bypass_scale * keep, (before, after, bypass.bypass_scale)
    )


def test_what_is_masked_is_not_added():
    x, y = torch.randn(2, 6, 5, 8, requires_grad=True)
    keep = (torch.rand(6, 1, 1) > 0.5).float()
    assert_same_gradients(add_masked(x, y, keep), x + y * keep, (x, y))
    assert torch.equal(add_masked(x, y, None), x + y)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_gated_unit_before_a_convolution(balanced, monkeypatch):
    module = Convolution(8, 5, ChunkCausalDepthwiseConv1d).train()
    for balancer in (module.balancer1, module.balancer2):
        balancer.prob = ScheduledFloat((0, 0.0))
    if balanced:  # acts as an identity whose result is another tensor
        monkeypatch.setattr(module.balancer1, "forward", lambda gate: gate.view_as(gate))
    module.whiten.prob = 0.0
    x, padding = torch.randn(3, 9, 8, requires_grad=True), torch.arange(9) >= torch.tensor([[9], [5], [7]])
    value, gate = module.in_proj(x).chunk(2, dim=2)
    gated = (value * gate.sigmoid()).masked_fill(padding.unsqueeze(2), 0.0)
    plain = module.out_proj(module.depthwise_conv(gated, ChunkConfig(4, 4), None)[0])
    assert_same_gradients(module(x, padding, ChunkConfig(4, 4), None)[0], plain, (x, *module.in_proj.parameters()))
