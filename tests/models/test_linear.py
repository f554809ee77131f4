"""What layers keep for the backward pass, and that their gradients stay those of torch."""

import pytest
import torch
import torch.nn.functional as F

from kdstream.models.linear import Linear, swoosh_linear
from kdstream.models.scaling import BiasNorm, SwooshL, SwooshR
from kdstream.models.zipformer_modules import BypassFunction, SimpleDownsample


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [SwooshL(), SwooshR()])
@pytest.mark.parametrize("drops", [True, False])
def test_a_linear_layer_of_an_activation_has_the_plain_forms_values_and_gradients_and_keeps_its_input_alone(
    dtype, activation, drops
):
    torch.manual_seed(0)
    x = (3 * torch.randn(3, 50, 40)).to(dtype).requires_grad_()
    weight, bias = torch.randn(24, 40, requires_grad=True), torch.randn(24, requires_grad=True)
    mask = ((torch.rand(3, 1, 40) > 0.3) / 0.7).to(dtype) if drops else None
    leaves, grad = (x, weight, bias), torch.randn(3, 50, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        activated = activation(x)
        plain = F.linear(activated if mask is None else activated * mask, weight, bias)
        ours = swoosh_linear(x, activation, mask, weight, bias)
        with torch.no_grad():
            assert torch.equal(swoosh_linear(x.detach(), activation, mask, weight, bias), plain)
    assert ours.dtype == dtype and torch.equal(ours, plain)
    error = 2**-8 if dtype == torch.bfloat16 else 1e-6
    for value, wanted in zip(*(torch.autograd.grad(out, leaves, grad.to(dtype)) for out in (ours, plain)), strict=True):
        assert value.dtype == wanted.dtype and (value - wanted).norm() <= error * wanted.norm()
    kept = kept_by(lambda: swoosh_linear(x, activation, mask, weight, bias), *leaves)
    assert [k.data_ptr() for k in kept] == ([mask.data_ptr()] if drops else [])


def test_downsampling_keeps_its_input_in_half_precision_and_its_gradients_are_torchs():
    torch.manual_seed(0)
    downsample = SimpleDownsample(3).double()
    downsample.bias.data.normal_()
    x = torch.randn(2, 30, 16, dtype=torch.float64, requires_grad=True)
    leaves, grad = (x, downsample.bias), torch.randn(2, 10, 16, dtype=torch.float64)
    plain = torch.einsum("ntfd,f->ntd", x.unflatten(1, (10, 3)), downsample.bias.softmax(0))
    ours = downsample(x)
    assert torch.allclose(ours, plain, rtol=0, atol=1e-14)
    for value, wanted in zip(*(torch.autograd.grad(y, leaves, grad) for y in (ours, plain)), strict=True):
        assert (value - wanted).norm() <= 1e-12 * wanted.norm()
    small = downsample.float()
    kept = kept_by(lambda: small(x.detach().float().requires_grad_()), small.bias)
    assert [k.dtype for k in kept if k.numel() == x.numel()] == [torch.bfloat16]
