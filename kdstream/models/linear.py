"""Linear layers that keep little for the backward pass.

Under autocast torch keeps the half-precision copy of each weight until the backward pass has used it, beside the
parameter itself.  Here the weight is rounded again then, which costs nothing beside the product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.models.scaling import (
    FloatLike,
    SharedDropout,
    SwooshL,
    scale_init_,
    swoosh,
    swoosh_gradient,
    working_dtype,
)


class LinearFunction(torch.autograd.Function):
    """x @ weight^T + bias as autocast computes it; keeps x in the dtype of the product, and the parameter."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.to(working_dtype(x))
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        by_bias = rows.sum(dim=0) if ctx.needs_input_grad[2] else None
        return grad @ weight.to(x.dtype), rows.t() @ x.flatten(0, -2), by_bias


class Linear(nn.Linear):
    """torch's linear layer, which under autocast keeps less for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and working_dtype(x) != self.weight.dtype:
            return LinearFunction.apply(x, self.weight, self.bias)
        return super().forward(x)


class SwooshLinearFunction(torch.autograd.Function):
    """See `swoosh_linear`."""

    @staticmethod
    def forward(
        ctx, x: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor, shift: float, offset: float
    ) -> Tensor:
        ctx.save_for_backward(x, mask, weight)
        ctx.swoosh = shift, offset
        dtype = working_dtype(x)
        return F.linear(_activated(x, mask, shift, offset).to(dtype), weight.to(dtype), bias.to(dtype))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, mask, weight = ctx.saved_tensors
        shift, offset = ctx.swoosh
        rows = grad.flatten(0, -2)
        by_weight = rows.t() @ _activated(x, mask, shift, offset).to(grad.dtype).flatten(0, -2)
        by_activated = (grad @ weight.to(grad.dtype)).to(x.dtype)
        if mask is not None:
            by_activated *= mask
        return swoosh_gradient(by_activated, x, shift), None, by_weight, rows.sum(dim=0), None, None


def _activated(x: Tensor, mask: Tensor | None, shift: float, offset: float) -> Tensor:
    x = swoosh(x, shift, offset)
    return x if mask is None else x.mul_(mask)


def swoosh_linear(x: Tensor, activation: SwooshL, mask: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer of activation(x) * mask, which keeps x alone: the backward pass computes the activation again.

    Args:
      x: (..., D), mostly wider than what comes out.
      mask: broadcasts to x, in its dtype; None: all ones.
      weight, bias: of the linear layer, (C, D) and (C,).
    Returns:
      (..., C).
    """
    if x.requires_grad:
        return SwooshLinearFunction.apply(x, mask, weight, bias, activation.shift, activation.offset)
    x = activation(x)
    return F.linear(x if mask is None else x * mask, weight, bias)


class ActivationDropoutAndLinear(Linear):
    """Swoosh, dropout shared over time, then a linear layer: the second half of a bottleneck."""

    def __init__(
        self, in_channels: int, out_channels: int, activation: SwooshL, dropout: FloatLike, initial_scale: float
    ) -> None:
        super().__init__(in_channels, out_channels)
        scale_init_(self, initial_scale)
        self.activation = activation
        self.dropout = SharedDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return swoosh_linear(x, self.activation, self.dropout.mask(x), self.weight, self.bias)


def scaled_linear(in_channels: int, out_channels: int, initial_scale: float, bias: bool = True) -> nn.Linear:
    """A linear layer with a scaled start."""
    return scale_init_(Linear(in_channels, out_channels, bias=bias), initial_scale)
