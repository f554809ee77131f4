"""Elementwise chains over blocks give what they give over whole tensors, in every memory order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdstream.models import in_blocks as module
from kdstream.models.in_blocks import BLOCK, in_blocks
from kdstream.models.scaling import Balancer, SwooshL, SwooshR


def tensors_of(layout: str, dtype: torch.dtype) -> list[Tensor]:
    """Two tensors of more than two blocks, of which the last is not full."""
    torch.manual_seed(0)
    wide = 4 * torch.randn(2, 3, 2 * BLOCK // 96 + 1, 4, 8).to(dtype)  # of each (N, C, T, F)
    if layout == "channels_last":
        return [x.contiguous(memory_format=torch.channels_last) for x in wide]
    if layout == "half of a projection":
        return [x.chunk(2, dim=-1)[1] for x in wide]
    if layout == "two layouts":
        return [wide[0], wide[1].transpose(0, 2).contiguous().transpose(0, 2)]
    return list(wide)


def product(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.mul(x.sin(), y + 1, out=out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["plain", "channels_last", "half of a projection", "two layouts"])
def test_blocks_give_the_same_bits_as_whole_tensors(layout, dtype):
    tensors = tensors_of(layout, dtype)
    before = [x.clone() for x in tensors]
    assert torch.equal(in_blocks(product, *tensors), product(*tensors))
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize("layout", ["plain", "half of a projection"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(layout, dtype):
    tensors = tensors_of(layout, dtype)
    result = in_blocks(product, *tensors)
    assert torch.equal(result, product(*(x.float() for x in tensors)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("swoosh", [SwooshL(), SwooshR()])
def test_swoosh_of_a_large_tensor_is_that_of_its_parts(swoosh, dtype, monkeypatch):
    x, grad = tensors_of("plain", dtype)
    x.requires_grad_()

    def value_and_gradient() -> tuple[Tensor, ...]:
        y = swoosh(x)
        return y.detach(), swoosh(x.detach()), *torch.autograd.grad(y, x, grad)

    in_parts = value_and_gradient()
    monkeypatch.setattr(module, "BLOCK", 2 * x.numel())
    for ours, plain in zip(in_parts, value_and_gradient(), strict=True):
        assert ours.dtype == dtype and torch.equal(ours, plain)


@pytest.mark.parametrize("layout", ["plain", "half of a projection"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_a_balancer_of_many_blocks_is_that_of_one(layout, dtype, tolerance, monkeypatch):
    x, grad = tensors_of(layout, dtype)
    x.requires_grad_()

    def gradient() -> Tensor:
        y = Balancer(min_positive=0.6, max_positive=0.7, min_abs=5.0, prob=1.0)(x)
        return torch.autograd.grad(y, x, grad)[0]

    in_parts = gradient()
    monkeypatch.setattr(module, "BLOCK", 2 * x.numel())
    whole = gradient()
    assert (in_parts - whole).norm() <= tolerance * whole.norm() and not torch.equal(whole, grad)
