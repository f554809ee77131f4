"""Linear layers that keep little for the backward pass.

Under autocast torch keeps the half-precision copy of each weight until the backward pass has used it, beside the
parameter itself.  Here the weight is rounded again then, which costs nothing beside the product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.models.scaling import FloatLike, SharedDropout, scale_init_, working_dtype


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


class ActivationDropoutAndLinear(Linear):
    """Swoosh, dropout shared over time, then a linear layer: the second half of a bottleneck."""

    def __init__(
        self, in_channels: int, out_channels: int, activation: nn.Module, dropout: FloatLike, initial_scale: float
    ) -> None:
        super().__init__(in_channels, out_channels)
        scale_init_(self, initial_scale)
        self.activation = activation
        self.dropout = SharedDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.dropout(self.activation(x)))


def scaled_linear(in_channels: int, out_channels: int, initial_scale: float, bias: bool = True) -> nn.Linear:
    """A linear layer with a scaled start."""
    return scale_init_(Linear(in_channels, out_channels, bias=bias), initial_scale)
