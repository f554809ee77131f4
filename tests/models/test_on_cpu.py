"""The gradients of our depthwise convolutions are those of torch's."""

import pytest
import torch
import torch.nn.functional as F

from kdstream.models.on_cpu import (
    FRAMES_TOGETHER,
    DepthwiseConv1d,
    depthwise_conv,
    depthwise_conv2d,
    weight_gradient,
)
from kdstream.models.subsampling import Conv2dSubsampling


def speech_like(batch, channels, frames, width, dtype=torch.float32):
    x = torch.randn(batch, channels, frames, width, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("frames", [1, 2, 9, FRAMES_TOGETHER, 2 * FRAMES_TOGETHER + 1])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("batch, channels, width", [(1, 1, 1), (3, 5, 19)])
def test_weight_gradients_equal_torchs_in_float64(batch, channels, width, frames, padding):
    torch.manual_seed(0)
    x = speech_like(batch, channels, frames + 6 - 2 * padding, width, torch.float64)
    weight = torch.randn(channels, 1, 7, 7, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(x, weight, padding=(padding, 3), groups=channels)
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, weight, grad)
    assert (weight_gradient(x, grad, padding, 7) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("padding", [0, 3])
def test_gradients_under_bfloat16_autocast_are_torchs_within_its_rounding(padding):
    torch.manual_seed(0)
    x = speech_like(2, 16, 21, 19).requires_grad_()
    weight = (torch.randn(16, 1, 7, 7) / 7).requires_grad_()
    expected = F.conv2d(x, weight, padding=(padding, 3), groups=16)
    grad = torch.randn_like(expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = depthwise_conv2d(x.bfloat16(), weight, padding)
    assert out.dtype == torch.bfloat16 and type(out.grad_fn).__name__ == "_DepthwiseConv2dBackward"
    ours = (out, *torch.autograd.grad(out, (x, weight), grad.bfloat16()))
    for value, wanted in zip(ours, (expected, *torch.autograd.grad(expected, (x, weight), grad)), strict=True):
        assert (value.float() - wanted).norm() <= 5e-3 * wanted.norm()  # eight bits of mantissa: 2**-9 a number


def test_the_front_end_takes_it_under_autocast():
    torch.manual_seed(0)
    front_end = Conv2dSubsampling(80, 16, channels=(8, 8, 128), hidden=16, dropout=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _, _ = front_end(torch.randn(1, 30, 80), torch.tensor([30]))
    seen, nodes = set(), [out.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
    assert "_DepthwiseConv2dBackward" in {type(node).__name__ for node in seen}


@pytest.mark.parametrize("padding", [0, 3])
def test_gradients_in_float32_are_torchs_within_its_rounding(padding):
    torch.manual_seed(0)
    x, weight = speech_like(2, 16, 21, 19).requires_grad_(), torch.randn(16, 1, 7, 7, requires_grad=True)
    out = depthwise_conv2d(x, weight, padding)
    expected = F.conv2d(x, weight, padding=(padding, 3), groups=16)
    assert torch.equal(out, expected) and type(out.grad_fn).__name__ == "_DepthwiseConv2dBackward"
    grad = torch.randn_like(out)
    for value, wanted in zip(*(torch.autograd.grad(y, (x, weight), grad) for y in (out, expected)), strict=True):
        assert (value - wanted).norm() <= 1e-6 * wanted.norm()


def test_without_gradients_it_is_torchs_own_convolution():
    x, weight = speech_like(1, 4, 9, 5), torch.randn(4, 1, 7, 7, requires_grad=True)
    out = depthwise_conv2d(x, weight, 3)
    assert torch.equal(out, F.conv2d(x, weight, padding=3, groups=4)) and "Convolution" in type(out.grad_fn).__name__


@pytest.mark.parametrize("rows, frames, padding", [(1, 37, 0), (6, 8, 7), (9, 2, 7), (1, 40, 7), (400, 16, 7)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_gradients_along_time_are_torchs_within_rounding(rows, frames, padding, dtype, tolerance):
    torch.manual_seed(0)
    conv = DepthwiseConv1d(16, 15).double()
    x = torch.randn(3, rows, frames + 14 - 2 * padding, 16, dtype=torch.float64, requires_grad=True)
    leaves = (x, conv.weight, conv.bias)
    expected = F.conv1d(x.flatten(0, 1).mT, conv.weight, conv.bias, padding=padding, groups=16).mT
    expected = expected.unflatten(0, (3, rows))
    grad = torch.randn_like(expected)
    wanted = (expected, *torch.autograd.grad(expected, leaves, grad))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = depthwise_conv(x.to(dtype), conv if dtype == torch.float64 else conv.float(), padding, padding)
    assert out.dtype == dtype and type(out.grad_fn).__name__ == "_DepthwiseConvBackward"
    leaves = (x, conv.weight, conv.bias)
    ours = (out, *torch.autograd.grad(out, leaves, grad.to(dtype)))
    for value, plain in zip(ours, wanted, strict=True):
        assert (value.double() - plain).norm() <= tolerance * plain.norm()
