"""Activations, normalisation and the gradient shaping that keeps a Zipformer trainable.

`Balancer` and `Whiten` are identities in the forward pass and act on gradients only, `ScheduledFloat`
is a number that depends on how far training has come.  None of them owns a parameter, so checkpoints
do not see them.  The arithmetic follows "Zipformer: A faster and better encoder for automatic speech
recognition" (arXiv 2310.11230) and the icefall recipe that accompanies it.

Shapes: N batch, T frames, D channels (always the last dimension here).
"""

from __future__ import annotations

import math
import random
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.models.in_blocks import at_least_float32, blocks_of_rows, in_blocks, rows_in_block

EXP_LIMIT = 80.0  # exp overflows in float32 a little above; log(1 + exp(x)) is x from far below on


class ScheduledFloat(nn.Module):
    """A number that is piecewise linear in the (duration-scaled) count of training batches.

    Args:
      points: (batch_count, value) pairs, in order; constant before the first and after the last.
    """

    def __init__(self, *points: tuple[float, float]) -> None:
        super().__init__()
        self.points = points
        self.batch_count = 0.0

    def __float__(self) -> float:
        (left, value), *rest = self.points
        if self.batch_count <= left:
            return value
        for right, next_value in rest:
            if self.batch_count <= right:
                return value + (next_value - value) * (self.batch_count - left) / (right - left)
            left, value = right, next_value
        return value


FloatLike = float | ScheduledFloat


def set_batch_count(model: nn.Module, batch_count: float) -> None:
    """Moves every ScheduledFloat of `model` to `batch_count`."""
    for module in model.modules():
        if isinstance(module, ScheduledFloat):
            module.batch_count = batch_count


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which products of x are computed: autocast's, or its own where there is no autocast."""
    if not hasattr(torch, "get_autocast_dtype"):  # torch before 2.4
        on = torch.is_autocast_enabled() if x.is_cuda else torch.is_autocast_cpu_enabled()
        return (torch.get_autocast_gpu_dtype() if x.is_cuda else torch.get_autocast_cpu_dtype()) if on else x.dtype
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else x.dtype


def swoosh(x: Tensor, shift: float, offset: float) -> Tensor:
    """log(1 + exp(x - shift)) - 0.08 x - offset."""
    if x.device.type != "cpu":
        return F.softplus(x - shift).add_(x, alpha=-0.08).sub_(offset)

    def chain(x: Tensor, out: Tensor | None = None) -> Tensor:
        # On a CPU torch's softplus takes log1p of one number after the other, in four times the time of this.
        # So does onnxruntime's, which is why exported files hold these operators too.
        y = x - (shift + offset)
        softplus = y.clamp(max=EXP_LIMIT).exp_().add_(math.exp(-offset)).log_()  # less the offset
        return torch.add(y.clamp_(min=softplus), x, alpha=-0.08, out=out)

    return in_blocks(chain, x)


def swoosh_gradient(grad: Tensor, x: Tensor, shift: float) -> Tensor:
    """The gradient by x, where `grad` is that by swoosh(x, shift, ...)."""

    def chain(grad: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mul((x - shift).sigmoid_().sub_(0.08), grad, out=out)

    return in_blocks(chain, grad, x)


class SwooshFunction(torch.autograd.Function):
    """`swoosh`, storing only x for the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, shift: float, offset: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.shift = shift
        return swoosh(x, shift, offset)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return swoosh_gradient(grad, x, ctx.shift), None, None


class SwooshL(nn.Module):
    """Swoosh with a bias to the left: for the inner activation of bottlenecks that are off most of the time."""

    shift, offset = 4.0, 0.035

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:  # at inference, where a Function costs as much as its arithmetic and cannot be traced
            return swoosh(x, self.shift, self.offset)
        return SwooshFunction.apply(x, self.shift, self.offset)


class SwooshR(SwooshL):
    """Swoosh through the origin: for convolution modules."""

    shift, offset = 1.0, 0.313261687


Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d)


class SharedDropout(nn.Module):
    """Dropout whose mask is the same in all frames of an utterance."""

    def __init__(self, rate: FloatLike) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x)
        return x if mask is None else x * mask

    def mask(self, x: Tensor) -> Tensor | None:
        """What x (N, T, D) is to be multiplied by: (N, 1, D), or None where nothing is dropped."""
        rate = float(self.rate)
        if not self.training or rate == 0:
            return None
        return ((torch.rand(x.size(0), 1, x.size(2), device=x.device) > rate) / (1 - rate)).to(x.dtype)


def scale_init_(module: Layer, initial_scale: float) -> Layer:
    """Multiplies a fresh layer's weight by `initial_scale` and redraws its bias as small: a quiet start."""
    with torch.no_grad():
        module.weight.mul_(initial_scale)
        if module.bias is not None:
            module.bias.uniform_(-0.1 * initial_scale, 0.1 * initial_scale)
    return module


class BiasNorm(nn.Module):
    """x / rms(x - bias) * exp(log_scale): LayerNorm that keeps the vector's length (2310.11230, section 3.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.empty(channels).normal_(std=1e-4))

    def forward(self, x: Tensor) -> Tensor:
        log_scale = limit_parameter(self.log_scale, -1.5, 1.5, self.training)
        if x.requires_grad:
            return BiasNormFunction.apply(x, self.bias, log_scale)
        return x * norm_scale(x, self.bias, log_scale)


def norm_scale(x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    """By what BiasNorm multiplies x (..., D): (..., 1)."""
    return (x - bias).square().mean(dim=-1, keepdim=True).rsqrt() * log_scale.exp()


class BiasNormFunction(torch.autograd.Function):
    """`BiasNorm`; of what is as large as x it keeps x alone, in the dtype of autocast."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
        scale = norm_scale(x, bias, log_scale)
        ctx.save_for_backward(x.to(working_dtype(x)), bias, log_scale, scale)
        return x * scale

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, bias, log_scale, scale = ctx.saved_tensors
        result = torch.empty_like(grad, memory_format=torch.contiguous_format)
        by_bias, by_log_scale = torch.zeros_like(bias), torch.zeros_like(log_scale)
        # the gradient of the scale by x is -(x - bias) times this
        slope = scale**3 / ((2 * log_scale).exp() * x.size(-1))
        for out, grad_rows, x_rows, scales, slopes in blocks_of_rows(result, grad, x, scale, slope):
            x_rows = at_least_float32(x_rows)
            by_scale = (grad_rows * x_rows).sum(dim=1, keepdim=True)
            pull = (x_rows - bias).mul_(by_scale * slopes)
            torch.mul(grad_rows, scales, out=out).sub_(pull)
            by_bias += pull.sum(dim=0)
            by_log_scale += (by_scale * scales).sum()
        return result, by_bias, by_log_scale


class LimitFunction(torch.autograd.Function):
    """Turns the gradient of a parameter outside [low, high] towards the interval."""

    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limits = low, high
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        low, high = ctx.limits
        wrong_way = ((x < low) & (grad > 0)) | ((x > high) & (grad < 0))
        return torch.where(wrong_way, -grad, grad), None, None


def limit_parameter(x: Tensor, low: float, high: float, training: bool) -> Tensor:
    """Keeps a parameter mostly within [low, high] by its gradient; acts on 60 % of the calls to save time."""
    return LimitFunction.apply(x, low, high) if training and random.random() < 0.6 else x


class BalancerFunction(torch.autograd.Function):
    """Adds to the gradient a term that pulls each channel's mean/stddev and rms into given ranges.

    The penalty |m - clamp(m)| + |log(clamp(rms) / rms)| depends on a channel's values through its first
    two moments alone, so its gradient is affine in x: a + b x with a and b per channel.  It is scaled to
    `grad_scale` rms and multiplied by |grad|, as icefall's Balancer does.
    """

    @staticmethod
    def forward(ctx, x: Tensor, mean_range: tuple[float, float], rms_range: tuple[float, float], grad_scale: float):
        ctx.save_for_backward(x)
        ctx.settings = mean_range, rms_range, grad_scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        mean_range, rms_range, grad_scale = ctx.settings
        with torch.autocast(device_type=x.device.type, enabled=False):
            mean, square = moments(x)
            square = square.clamp(min=1e-10)  # (D,)
            # the floor is for channels that are constant but for rounding
            stddev = torch.maximum(square - mean * mean, 1e-6 * square).sqrt()
            rms = square.sqrt()
            ratio = mean / stddev
            # d(penalty)/d(ratio) and d(penalty)/d(rms) are signs, 0 inside the ranges
            ratio_sign = (ratio > mean_range[1]).float() - (ratio < mean_range[0]).float()
            rms_sign = (rms > rms_range[1]).float() - (rms < rms_range[0]).float()
            # ratio = mean (square - mean^2)^-1/2:  d/dmean = square / stddev^3,  d/dsquare = -mean / (2 stddev^3)
            cube = stddev**3
            constant = ratio_sign * square / cube
            linear = -ratio_sign * mean / cube + rms_sign / square
            size = ((constant + linear * mean).square() + (linear * stddev).square()).sqrt()  # rms of a + b x
            factor = grad_scale / size.clamp(min=1e-20)
            if x.device.type == "cpu" and not bool(size.any()):  # all within their ranges; a GPU would wait for that
                return grad, None, None, None
            return pushed(grad, x, constant * factor, linear * factor), None, None, None


def moments(x: Tensor) -> Tensor:
    """(2, D) in float32: the mean of x (..., D) and that of its square."""
    totals = torch.zeros(2, x.size(-1), device=x.device)
    for (rows,) in blocks_of_rows(x):
        rows = rows.float()
        totals += torch.stack([rows.sum(dim=0), rows.square().sum(dim=0)])
    return totals / (x.numel() // x.size(-1))


def pushed(grad: Tensor, x: Tensor, constant: Tensor, linear: Tensor) -> Tensor:
    """grad + |grad| (constant + linear x); grad and x (..., D), the others (D,)."""
    result = torch.empty_like(grad, memory_format=torch.contiguous_format)
    # on a CPU a broadcast row would make one short loop of each row
    rows = rows_in_block(x) if x.device.type == "cpu" else 1
    constant, linear = (values.expand(rows, -1).contiguous() for values in (constant, linear))
    for out, grad_rows, x_rows in blocks_of_rows(result, grad, x):
        push = torch.addcmul(constant[: len(out)], linear[: len(out)], x_rows.float())
        torch.addcmul(grad_rows, grad_rows.abs(), push.to(grad.dtype), out=out)
    return result


class Balancer(nn.Module):
    """Identity that keeps each channel's share of positive values and mean absolute value within limits.

    Args:
      min_positive, max_positive: limits on the proportion of positive values, for a Gaussian.
      min_abs, max_abs: limits on the mean absolute value.
      prob: chance to act in a call; by default it falls from 0.5 to 0.125 over training.
    """

    def __init__(
        self,
        min_positive: FloatLike = 0.05,
        max_positive: FloatLike = 0.95,
        min_abs: FloatLike = 0.2,
        max_abs: FloatLike = 100.0,
        grad_scale: float = 0.04,
        prob: FloatLike | None = None,
    ) -> None:
        super().__init__()
        self.prob = ScheduledFloat((0, 0.5), (8000, 0.125)) if prob is None else prob
        self.min_positive, self.max_positive = min_positive, max_positive
        self.min_abs, self.max_abs = min_abs, max_abs
        self.grad_scale = grad_scale

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D); returned as it is."""
        if not (self.training and x.requires_grad and random.random() < float(self.prob)):
            return x
        mean_range = _positive_share_to_mean(self.min_positive), _positive_share_to_mean(self.max_positive)
        abs_to_rms = math.sqrt(math.pi / 2)  # for a Gaussian
        rms_range = abs_to_rms * float(self.min_abs), abs_to_rms * float(self.max_abs)
        return BalancerFunction.apply(x, mean_range, rms_range, self.grad_scale)


def _positive_share_to_mean(share: FloatLike) -> float:
    """mean / stddev of the channel whose share of positive values is `share`, by icefall's approximation."""
    centred = 2 * float(share) - 1
    return 0.8139535143 * 0.5 * (math.log(1 + centred + 1e-10) - math.log(1 - centred + 1e-10))


class WhitenFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, whiten: Whiten) -> Tensor:
        ctx.save_for_backward(x)
        ctx.whiten = whiten
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        with torch.autocast(device_type=x.device.type, enabled=False):
            push = ctx.whiten.penalty_gradient(x.detach().float())
            if push is None:
                return grad, None
            scale = ctx.whiten.grad_scale * grad.float().norm() / (push.norm() + 1e-20)
            return grad + (push * scale).to(grad.dtype), None


class Whiten(nn.Module):
    """Identity whose gradient pushes the channels' covariance towards a multiple of the identity.

    Where icefall acts in 2.5 % or in 25 % of the calls, depending on what the last one found, this acts in
    10 % with a push 2.5 times as large: the same force, but no memory that a checkpoint would have to carry.

    Args:
      groups: channel groups, each with its own covariance.
      limit: eigenvalue spread (1 for white) below which nothing happens.
      grad_scale: size of the push, relative to the gradient, were it applied in 25 % of the calls.
    """

    prob = 0.1

    def __init__(self, groups: int, limit: FloatLike, grad_scale: float) -> None:
        super().__init__()
        self.groups = groups
        self.limit = limit
        self.grad_scale = grad_scale * 0.25 / self.prob

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D); returned as it is."""
        if self.training and x.requires_grad and random.random() < self.prob:
            return WhitenFunction.apply(x, self)
        return x

    def penalty_gradient(self, x: Tensor) -> Tensor | None:
        """Direction of the gradient by x of mean(diag(C C)) / mean(diag C)^2 for covariance C; none below the limit.

        There it is None on a CPU, and zeros elsewhere, where the host would wait for the answer.
        """
        shape = x.shape
        x = x.reshape(-1, self.groups, shape[-1] // self.groups).transpose(0, 1)  # (groups, frames, D / groups)
        x = x - x.mean(dim=1, keepdim=True)
        cov = x.transpose(1, 2) @ x
        size = cov.size(0) * cov.size(1)
        cov = cov / (cov.diagonal(dim1=1, dim2=2).sum() / size + 1e-20)  # mean of the diagonal is 1
        metric = cov.square().sum() / size
        within = metric < float(self.limit)
        if x.device.type == "cpu" and bool(within):
            return None
        push = x @ (cov - metric * torch.eye(cov.size(1), device=x.device)).masked_fill_(within, 0.0)
        return push.transpose(0, 1).reshape(shape)


class ScaleGradFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.scale, None


class ScaleGrad(nn.Module):
    """Identity that multiplies the gradient; keeps the first convolution's within float16's range."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return ScaleGradFunction.apply(x, self.scale) if x.requires_grad else x


class PenalizeLargeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, limit: float, penalty: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.settings = limit, penalty
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        limit, penalty = ctx.settings
        return grad + (x.sign() * (x.abs() > limit) * penalty).to(grad.dtype), None, None


def penalize_large_values(x: Tensor, limit: float, penalty: float) -> Tensor:
    """Identity that adds the gradient of penalty * sum(max(|x| - limit, 0)): a fail-safe for attention scores."""
    return PenalizeLargeFunction.apply(x, limit, penalty)


def convert_channels(x: Tensor, channels: int) -> Tensor:
    """Cuts or zero-pads the last dimension to `channels`."""
    return x[..., :channels] if channels <= x.size(-1) else F.pad(x, (0, channels - x.size(-1)))


def full_width(outputs: list[Tensor], width: int) -> Tensor:
    """Concatenates `outputs` (N, T, D_i) to `width` channels, each channel from the last output that has it."""
    pieces = [outputs[-1]]
    have = outputs[-1].size(-1)
    for output in reversed(outputs[:-1]):
        if output.size(-1) > have:
            pieces.append(output[..., have:])
            have = output.size(-1)
    return torch.cat(pieces, dim=-1)[..., :width] if len(pieces) > 1 else pieces[0]
