"""What makes the models fast on a CPU: the arithmetic is that of plain convolutions and products, the order is ours.

    depthwise_conv2d    the front end's depthwise convolution, with a weight gradient of our own
    depthwise_conv      a depthwise convolution over time, by way of one in two dimensions
    by_products         for a chunk of few frames: the convolution as a sum of products
    one_column          the predictor's convolution at one place, as matrix products
    turned              a weight with its columns in the order of channels-last activations

Shapes: N batch, C channels, T frames, F frequencies, D model width, k kernel width (odd).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.models.in_blocks import BLOCK, at_least_float32

FRAMES_TOGETHER = 64  # of a weight gradient; measured, flat between 32 and 100
CHANNELS_LAST = {"cpu"}  # types of devices; `kdstream bench-train-step --layouts 1` measures both
FEW_PRODUCTS = 2**16  # per stream, up to which a chunk is convolved by a sum of products


def channels_last(device: torch.device) -> bool:
    """Whether depthwise convolutions get their activations with the channels as the last dimension in memory.

    On CPUs that is several times as fast, and torch's own kernels for CUDA take the other layout.
    """
    return device.type in CHANNELS_LAST


def depthwise_conv2d(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """x (N, C, T, F) in channels-last memory with weight (C, 1, k, k) to (N, C, T - k + 1 + 2 * padding, F).

    Pads T by `padding` on both sides, and F by k // 2.  The gradient is that of torch's convolution.  Under
    autocast x comes in bfloat16 from the layer before, and the weight follows it.

    On a CPU torch's own weight gradient takes several times as long as the convolution, most of all in bfloat16.
    """
    if not channels_last(x.device):
        x = x.contiguous()
    if x.device.type != "cpu" or not x.requires_grad or not channels_last(x.device):
        return F.conv2d(x, weight, padding=(padding, weight.size(3) // 2), groups=x.size(1))
    return _DepthwiseConv2d.apply(x, weight.to(x.dtype), padding)


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, padding=(padding, weight.size(3) // 2), groups=x.size(1))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        kernel = weight.size(2)
        mirrored = (kernel - 1 - ctx.padding, kernel // 2)
        grad_x = F.conv2d(grad, weight.flip(2, 3), padding=mirrored, groups=x.size(1))
        return grad_x, weight_gradient(x, grad, ctx.padding, kernel).to(weight.dtype), None


def weight_gradient(x: Tensor, grad: Tensor, padding: int, kernel: int) -> Tensor:
    """(C, 1, k, k) in float32: for each channel and offset, the sum over all frames of grad times the x it met.

    That is a depthwise convolution of x with its grad as the kernel, done for a few frames at a time: they stay in
    the core's cache while each of the k * k offsets goes over them.

    Args:
      x: (N, C, T, F) input; grad: (N, C, T', F) by the output.
    """
    total = torch.zeros(x.size(1), 1, kernel, kernel)
    for seen, kernels in zip(x.split(1), grad.split(1), strict=True):
        seen, kernels = F.pad(seen, (0, 0, padding, padding)), kernels.transpose(0, 1)
        for start, some in enumerate(kernels.split(FRAMES_TOGETHER, dim=2)):
            around = seen[:, :, start * FRAMES_TOGETHER :][:, :, : int(some.size(2)) + kernel - 1]
            total += F.conv2d(around.float(), some.float(), padding=(0, kernel // 2), groups=x.size(1)).transpose(0, 1)
    return total


class DepthwiseConv1d(nn.Conv1d):
    """A depthwise convolution over time, with a bias."""

    bias: nn.Parameter

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, groups=channels)


def depthwise_conv(x: Tensor, conv: DepthwiseConv1d, left: int, right: int) -> Tensor:
    """`conv` along T of every row of x (N, rows, T, D), with `left` zeros before each row and `right` ones after it.

    Channels-last, it is a convolution in two dimensions, on a CPU up to ten times as fast as the one-dimensional one.
    In training half precision is computed in float32 there: it takes as long, it is more exact, and oneDNN 3.12 can
    hang in bfloat16.

    Of a training step of the tiny preset (24 x 6 s, one core) torch's gradients of these convolutions take a twentieth
    in float32 and a twelfth in bfloat16; ours take a third of that.
    """
    if not channels_last(x.device):
        return _along_time(x, conv.weight, conv.bias, left, right)
    if x.device.type != "cpu" or not x.requires_grad:
        return _along_rows(x, conv.weight, conv.bias, left, right)
    return _DepthwiseConv.apply(x, conv.weight, conv.bias, left, right)


def _along_rows(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, right: int) -> Tensor:
    """x (N, rows, T, D) with weight (D, 1, k) and bias (D) to (N, rows, T - k + 1 + left + right, D)."""
    both = max(left, right)
    x = F.conv2d(x.permute(0, 3, 1, 2), weight.unsqueeze(2), bias, padding=(0, both), groups=x.size(3))
    x = x.permute(0, 2, 3, 1)
    return x if left == right else x[:, :, both - left : right - both or None]  # cheaper than a padded copy of x


def _along_time(x: Tensor, weight: Tensor, bias: Tensor, left: int, right: int) -> Tensor:
    """The same with T as the last dimension in memory."""
    rows = F.pad(x.flatten(0, 1).transpose(1, 2), (left, right))  # (N * rows, D, T)
    return F.conv1d(rows, weight, bias, groups=x.size(3)).transpose(1, 2).unflatten(0, x.shape[:2])


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, left: int, right: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = left, right
        with torch.autocast("cpu", enabled=False):
            return _along_rows(at_least_float32(x), weight, bias, left, right).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x, weight), (left, right) = ctx.saved_tensors, ctx.padding
        x, grad, kernel = at_least_float32(x), at_least_float32(grad).contiguous(), weight.size(2)
        grad_x = _along_rows(grad, weight.flip(2), None, kernel - 1 - left, kernel - 1 - right)
        grad_weight = shifted_products(x.flatten(0, 1), grad.flatten(0, 1), left, kernel)
        return grad_x, grad_weight.t().unsqueeze(1), grad.sum(dim=(0, 1, 2)), None, None


def shifted_products(x: Tensor, grad: Tensor, left: int, kernel: int) -> Tensor:
    """(k, D): for each tap, the sum over all frames of grad times the x that the tap met; over blocks of rows.

    Args:
      x: (rows, T, D) input of a convolution along T with `left` zeros before it; grad: (rows, T', D) by its output.
    """
    rows, frames, channels = grad.shape
    total = grad.new_zeros(kernel, channels)
    together = max(1, BLOCK // (frames * channels))
    for x_block, grad_block in zip(x.split(together), grad.split(together), strict=True):
        for tap, sums in enumerate(total):
            first, end = max(0, left - tap), min(frames, x.size(1) + left - tap)  # the others met zeros
            if first < end:
                met = x_block[:, first + tap - left : end + tap - left]
                sums += (met * grad_block[:, first:end]).sum(dim=(0, 1))
    return total


def by_products(seen: int, frames: int, channels: int) -> bool:
    """Whether the convolution of a chunk is better done by `sum_of_products`: a sixth of the time for small chunks."""
    return seen * frames * channels <= FEW_PRODUCTS


def sum_of_products(x: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """(N, S, D), the frames that are seen, with kernels (T, S, D) and bias (D) or (T, D) to (N, T, D)."""
    return (x.unsqueeze(1) * kernels).sum(dim=2) + bias


def shifted_kernels(weight: Tensor, frames: int, seen: int) -> Tensor:
    """The kernel (D, 1, k) where each of T frames meets S = `seen` frames, the first at its first tap: (T, S, D)."""
    offset = torch.arange(seen, device=weight.device) - torch.arange(frames, device=weight.device).unsqueeze(1)
    taps = weight.squeeze(1).t()  # (k, D)
    inside = (offset >= 0) & (offset < taps.size(0))
    return taps[offset.clamp(0, taps.size(0) - 1)] * inside.unsqueeze(2)


def convolve_chunk(
    past: Tensor, frames: int, causal: DepthwiseConv1d, chunkwise: DepthwiseConv1d, scale: Tensor
) -> Tensor:
    """Two depthwise convolutions of a chunk in one sum of products.

    Args:
      past: (N, k // 2 + T, D), a chunk of T = `frames` frames after its past.
      causal: of k // 2 + 1 taps; it sees the past and the frame itself.
      chunkwise: of k taps; it sees what is in the chunk alone.
      scale: (T, D), by which the output of `chunkwise` is multiplied.
    Returns:
      (N, T, D).
    """
    seen = int(past.size(1))
    # both kernels begin k // 2 frames before the frame itself, one of them with what is in the chunk alone
    within = shifted_kernels(chunkwise.weight, frames, seen)[:, seen - frames :] * scale.unsqueeze(1)
    kernels = shifted_kernels(causal.weight, frames, seen) + F.pad(within, (0, 0, seen - frames, 0))
    return sum_of_products(past, kernels, causal.bias + chunkwise.bias * scale)


def one_column(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """(N, C, D) to (N, 1, D): a grouped convolution where it has one place to be, as a matrix product per group.

    A search asks the predictor for this at every frame, and a CPU's grouped convolution takes several times as long.
    """
    groups = conv.groups
    x = x.unflatten(2, (groups, -1)).permute(2, 0, 1, 3).flatten(2)  # (groups, N, C * inputs)
    weight = conv.weight.unflatten(0, (groups, -1)).permute(0, 3, 2, 1).flatten(1, 2)
    return (x @ weight).transpose(0, 1).flatten(1).unsqueeze(1)  # (groups, N, outputs) to (N, 1, D)


def turned(weight: Tensor, channels: int, width: int) -> Tensor:
    """A weight (D, C * F), C = channels before F = width, as (D, F * C): cheaper than to turn the activations."""
    return weight.view(-1, channels, width).transpose(1, 2).flatten(1)
