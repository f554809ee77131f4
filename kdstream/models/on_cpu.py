"""The ConvNeXt's depthwise convolution, with a weight gradient of our own on CPUs.

Of a training step of the tiny preset (54 s of speech, one core) torch's own takes a tenth in float32 and a quarter in
bfloat16.  In float32 the gradient is a convolution again, in a third to half of its time (1171 ms a step with torch's,
1071 ms with this one); in bfloat16 it is matrix products, which processors with bfloat16 do faster still (713, 580 ms).

Shapes: N batch, C channels, T frames, F frequencies, k kernel width (odd).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FRAMES_TOGETHER = 2  # frames whose products are one matrix product; measured, flat between 1 and 4


def depthwise_conv2d(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """x (N, C, T, F) in channels-last memory with weight (C, 1, k, k) to (N, C, T - k + 1 + 2 * padding, F).

    Pads T by `padding` on both sides, and F by k // 2.  The gradient is that of torch's convolution.  Under
    autocast x comes in bfloat16 from the layer before, and the weight follows it.
    """
    if x.is_cuda or not x.requires_grad:
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
        weight_gradient = products if x.dtype == torch.bfloat16 else convolutions
        return grad_x, weight_gradient(x, grad, ctx.padding, kernel).to(weight.dtype), None


def convolutions(x: Tensor, grad: Tensor, padding: int, kernel: int) -> Tensor:
    """(C, 1, k, k): for each channel and offset, the sum over all frames of grad times the x it met.

    That is each utterance's x convolved with a kernel as large as the utterance, its grad.

    Args:
      x: (N, C, T, F) input; grad: (N, C, T', F) by the output.
    """
    around = (padding, kernel // 2)
    return sum(  # over utterances
        F.conv2d(one, kernels.unsqueeze(1), padding=around, groups=x.size(1))
        for one, kernels in zip(x.split(1), grad, strict=True)
    ).transpose(0, 1)


def products(x: Tensor, grad: Tensor, padding: int, kernel: int) -> Tensor:
    """The same in float32, summed by matrix products.

    Blocks of B frames of grad, times the B + k - 1 padded frames of x around each, summed over blocks, give
    products of all pairs of (frame, frequency) in a block; those at one offset lie on a diagonal.
    """
    batch, channels, frames, width = grad.shape
    together, half = FRAMES_TOGETHER, kernel // 2
    filler = -frames % together
    blocks = (frames + filler) // together
    seen, wide = together + kernel - 1, width + 2 * half
    grad = F.pad(grad.transpose(0, 1), (0, 0, 0, filler)).reshape(channels, batch * blocks, together * width)
    x = F.pad(x.transpose(0, 1), (half, half, padding, padding + filler)).contiguous()  # (C, N, T' + k - 1, F + k - 1)
    strides = (x.stride(0), x.stride(1), together * wide, 1)
    windows = x.as_strided((channels, batch, blocks, seen * wide), strides).flatten(1, 2)
    products = grad.transpose(1, 2) @ windows  # (C, B * F, (B + k - 1) * (F + k - 1))
    row = seen * wide
    diagonals = products.as_strided(
        (channels, together, width, kernel, kernel), (together * width * row, width * row + wide, row + 1, wide, 1)
    )
    return diagonals.float().sum(dim=(1, 2)).unsqueeze(1)
