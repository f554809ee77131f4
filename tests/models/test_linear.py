"""What layers keep for the backward pass, and that their gradients stay those of torch."""

import pytest
import torch
import torch.nn.functional as F

from kdstream.models.linear import Linear
from kdstream.models.scaling import BiasNorm
from kdstream.models.zipformer_modules import BypassFunction


def kept_by(function, *leaves):
    """The tensors that the backward pass of `function` keeps under autocast, but the leaves."""
    kept = {}

    def pack(x):
        if x.data_ptr() not in {leaf.data_ptr() for leaf in leaves}:
            kept[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", dtype=torch.bfloat16):
        function()
    return list(kept.values())


@pytest.mark.parametrize("bias", [True, False])
def test_under_autocast_a_linear_layer_has_torchs_values_and_gradients_and_keeps_its_input_alone(bias):
    torch.manual_seed(0)
    ours = Linear(24, 40, bias=bias)
    x = torch.randn(3, 50, 24, requires_grad=True)
    grad = torch.randn(3, 50, 40).bfloat16()
    leaves = (x, *ours.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outs = ours(x), F.linear(x, ours.weight, ours.bias)
    assert torch.equal(*outs)
    for value, wanted in zip(*(torch.autograd.grad(out, leaves, grad) for out in outs), strict=True):
        assert value.dtype == torch.float32 and (value - wanted).norm() <= 2**-8 * wanted.norm()
    kept = kept_by(lambda: ours(x), *leaves)
    assert [(k.dtype, k.shape) for k in kept] == [(torch.bfloat16, x.shape)]


def test_the_norm_keeps_its_input_in_half_precision_and_its_gradients_are_torchs():
    torch.manual_seed(0)
    norm = BiasNorm(16).double().eval()
    norm.bias.data.normal_()
    x = torch.randn(2, 70, 16, dtype=torch.float64, requires_grad=True)
    leaves, grad = (x, norm.bias, norm.log_scale), torch.randn(2, 70, 16, dtype=torch.float64)
    plain = x * (x - norm.bias).square().mean(dim=2, keepdim=True).rsqrt() * norm.log_scale.exp()
    for value, wanted in zip(*(torch.autograd.grad(y, leaves, grad) for y in (norm(x), plain)), strict=True):
        assert (value - wanted).norm() <= 1e-12 * wanted.norm()
    small = norm.float()
    kept = kept_by(lambda: small(x.detach().float().requires_grad_()), *small.parameters())
    assert sorted(k.numel() for k in kept if k.numel() >= 140) == [140, x.numel()]
    assert all(k.dtype == torch.bfloat16 for k in kept if k.numel() == x.numel())


@pytest.mark.parametrize("shape", [(16,), (2, 1, 16)])
def test_the_bypass_keeps_one_tensor_and_its_gradients_are_torchs(shape):
    torch.manual_seed(0)
    before, after = (torch.randn(2, 70, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    leaves, grad = (before, after, scale), torch.randn(2, 70, 16, dtype=torch.float64)
    outs = BypassFunction.apply(*leaves), torch.lerp(*leaves)
    assert torch.equal(*outs)
    for value, wanted in zip(*(torch.autograd.grad(y, leaves, grad) for y in outs), strict=True):
        assert (value - wanted).norm() <= 1e-12 * wanted.norm()
    floats = [leaf.detach().float().requires_grad_() for leaf in leaves]
    assert [k.dtype for k in kept_by(lambda: BypassFunction.apply(*floats), *floats)] == [torch.bfloat16]
