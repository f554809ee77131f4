"""ScaledAdam and Eden: the optimiser and the learning rate schedule of icefall's Zipformer recipe.

The arithmetic is that of the Zipformer paper (arXiv 2310.11230, section 3.5) with the details of
icefall's `zipformer/optim.py`, so that its learning rates carry over unchanged.
Shapes: B parameters of equal size in a stack, n elements in each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

EARLY_ESTIMATES = (10, 20, 40)  # steps at which the clipping threshold is set before a full period has passed
EARLY_SLACK = 2.0  # gradient norms still move fast at those steps
MAX_LOG_SCALE_STEP = 0.1  # limit of one update of a tensor's log scale


@dataclass
class _Stack:
    """Parameters of one shape, updated together as a matrix (B, n) to save kernel launches."""

    params: list[Tensor]
    names: list[str]

    @property
    def scalar(self) -> bool:
        return self.params[0].numel() == 1

    def grads(self) -> list[Tensor]:
        """A parameter without a gradient counts as one whose gradient is zero."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]

    def gather(self, tensors: list[Tensor], workspace: Tensor) -> Tensor:
        """Copies tensors of the parameters' shape into the workspace; returns that part of it as (B, n)."""
        matrix = workspace[: len(tensors) * tensors[0].numel()].view(len(tensors), -1)
        torch.stack(tensors, out=matrix.view(len(tensors), *tensors[0].shape))
        return matrix

    def add(self, delta: Tensor) -> None:
        """Adds the rows of delta (B, n) to the parameters."""
        rows = list(delta.view(-1, *self.params[0].shape).unbind(0))
        torch._foreach_add_(self.params, rows)  # pyright: ignore[reportPrivateImportUsage]  # torch.optim calls it too


class ScaledAdam(Optimizer):
    """Adam whose step is proportional to each tensor's root mean square, which is learned as well.

    A tensor of more than one element is thought of as exp(s) * p with p of unit RMS.  The update of
    p is Adam's times the tensor's RMS; s gets an Adam update of its own every `size_update_period`
    steps.  Single-element parameters get plain Adam with a smaller learning rate.

    Gradients are clipped by their norm over the model, each tensor's taken times its RMS, to
    `clipping_scale` times the median of the last `clipping_update_period` norms.  A gradient that
    is not finite counts as zero.

    Args:
      params: parameters, or (name, parameter) pairs, so that log lines can name them.
      lr: learning rate, relative to each tensor's RMS.
      clipping_scale: None switches clipping off.
      betas: decay of the momentum and of the mean squared gradient.
      scalar_lr_scale: learning rate of log scales and of single-element parameters, over `lr`.
      eps: added to the root mean squared gradient.
      param_min_rms, param_max_rms: bounds of a tensor's RMS.
      scalar_max: bound on the magnitude of single-element parameters.
      size_update_period: steps between updates of the tensors' scales.
      clipping_update_period: steps between updates of the norm above which gradients are clipped.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter | tuple[str, nn.Parameter]],
        lr: float = 0.03,
        clipping_scale: float | None = None,
        betas: tuple[float, float] = (0.9, 0.98),
        scalar_lr_scale: float = 0.1,
        eps: float = 1e-8,
        param_min_rms: float = 1e-5,
        param_max_rms: float = 3.0,
        scalar_max: float = 10.0,
        size_update_period: int = 4,
        clipping_update_period: int = 100,
    ) -> None:
        named = [p if isinstance(p, tuple) else (f"parameter {i}", p) for i, p in enumerate(params)]
        defaults = dict(
            lr=lr,
            clipping_scale=clipping_scale,
            betas=betas,
            scalar_lr_scale=scalar_lr_scale,
            eps=eps,
            param_min_rms=param_min_rms,
            param_max_rms=param_max_rms,
            scalar_max=scalar_max,
            size_update_period=size_update_period,
            clipping_update_period=clipping_update_period,
            step=0,
            norms=[],  # of the last clipping_update_period steps, oldest first
            norm_threshold=None,
            num_clipped=0,
        )
        super().__init__([p for _, p in named], defaults)
        by_shape: dict[Any, _Stack] = {}
        for name, p in named:
            stack = by_shape.setdefault((p.dtype, p.shape), _Stack([], []))
            stack.params.append(p)
            stack.names.append(name)
        self._stacks = list(by_shape.values())
        self._workspaces: dict[Any, tuple[Tensor, Tensor, Tensor]] = {}

    @overload
    def step(self, closure: None = None, found_inf: Tensor | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], found_inf: Tensor | None = None) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, found_inf: Tensor | None = None) -> float | None:
        """One update of every parameter from its .grad; `closure` as in torch.optim.

        On a GPU the host waits once, for the norm of the gradient.

        Args:
          found_inf: of a GradScaler that has unscaled the gradients; where it is not 0, nothing is updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        self.allocate()
        clip = self._clipping_factor(group, found_inf)
        if clip is None:
            return loss
        for stack in self._stacks:
            self._update(group, stack, clip)
        group["step"] += 1
        return loss

    @torch.no_grad()
    def allocate(self) -> None:
        """Makes the state of the parameters as they are, unless it is there; else the first step does it."""
        if self.state:
            return
        group = self.param_groups[0]
        for stack in self._stacks:
            p = torch.stack(stack.params).reshape(len(stack.params), -1)  # (B, n)
            state = self.state[stack.params[0]]  # a stack's state lies with its first parameter
            state["exp_avg_sq"] = torch.zeros_like(p)  # (B, n)
            state["delta"] = torch.zeros_like(p)  # (B, n)
            if not stack.scalar:
                state["param_rms"] = _rms(p)  # (B, 1)
                state["scale_exp_avg_sq"] = torch.zeros_like(state["param_rms"])
                state["scale_grads"] = p.new_zeros(group["size_update_period"], len(p), 1)

    def _workspace(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three vectors as long as the largest stack: fresh ones for each stack would cost more than the arithmetic."""
        key = (like.dtype, like.device)
        if key not in self._workspaces:
            size = max(len(stack.params) * stack.params[0].numel() for stack in self._stacks)
            self._workspaces[key] = (like.new_empty(size), like.new_empty(size), like.new_empty(size))
        return self._workspaces[key]

    def _update(self, group: dict[str, Any], stack: _Stack, clip: float) -> None:
        """Updates one stack from its gradients times `clip`."""
        state = self.state[stack.params[0]]
        step, (beta1, beta2), lr = group["step"], group["betas"], group["lr"]
        work_p, work_grad, work_denominator = self._workspace(stack.params[0].detach())
        p = stack.gather(stack.params, work_p)  # (B, n)
        grad = stack.gather(stack.grads(), work_grad)  # (B, n)
        if clip == 0.0:
            grad.zero_()  # 0 * infinity would be NaN
        elif clip < 1.0:
            grad.mul_(clip)
        denominator = work_denominator[: grad.numel()].view_as(grad)
        if not stack.scalar:
            # the gradient with respect to each tensor's log scale
            torch.mul(p, grad, out=denominator)
            state["scale_grads"][step % group["size_update_period"]] = denominator.sum(dim=1, keepdim=True)

        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        torch.sqrt(state["exp_avg_sq"], out=denominator)
        bias_correction = 1 - beta2 ** (step + 1)
        if bias_correction < 0.99:
            denominator.mul_(bias_correction**-0.5)
        update = grad.div_(denominator.add_(group["eps"]))  # (B, n)

        # The momentum gets no bias correction: a slow start of some ten steps helps stability.
        momentum = state["delta"].mul_(beta1)
        if stack.scalar:
            momentum.add_(update, alpha=-lr * group["scalar_lr_scale"] * (1 - beta1))
            bound = group["scalar_max"]
            stack.add((p + momentum).clamp_(-bound, bound).sub_(p))
            return
        last_of_period = step % group["size_update_period"] == group["size_update_period"] - 1
        if last_of_period:
            state["param_rms"].copy_(_rms(p))
        update.mul_(state["param_rms"].clamp(min=group["param_min_rms"]).mul_(-lr))
        if last_of_period:
            update.addcmul_(p, self._log_scale_step(group, state))
        stack.add(momentum.add_(update, alpha=1 - beta1))

    @staticmethod
    def _log_scale_step(group: dict[str, Any], state: dict[str, Tensor]) -> Tensor:
        """(B, 1): what to add to each tensor's log scale, from the gradients of one period."""
        period = group["size_update_period"]
        beta2 = group["betas"][1] ** period
        mean_square, scale_grads, rms = state["scale_exp_avg_sq"], state["scale_grads"], state["param_rms"]
        mean_square.mul_(beta2).add_(scale_grads.square().mean(dim=0), alpha=1 - beta2)
        bias_correction = 1 - beta2 ** ((group["step"] + 1) // period)
        size_lr = group["lr"] * group["scalar_lr_scale"]
        log_step = scale_grads.sum(dim=0) / (mean_square.sqrt() + group["eps"]) * (-size_lr * bias_correction**0.5)
        log_step.masked_fill_(rms < group["param_min_rms"], 0.0)
        log_step.clamp_(-MAX_LOG_SCALE_STEP, MAX_LOG_SCALE_STEP)
        return torch.minimum(log_step, (group["param_max_rms"] - rms) / rms)

    def _clipping_factor(self, group: dict[str, Any], found_inf: Tensor | None = None) -> float | None:
        """The factor in [0, 1] for all gradients of this step; 0 if one of them is not finite, None if `found_inf`."""
        norms = torch.cat([self._scaled_norms(group, stack) for stack in self._stacks])
        norm, *found = torch.stack([norms.norm(), *(() if found_inf is None else (found_inf,))]).tolist()
        if any(found):
            return None
        finite = norm - norm == 0
        if not finite:
            names = [name for name, bad in zip(self._names(), (~norms.isfinite()).tolist(), strict=True) if bad]
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            logging.warning(f"The step counts gradients as zero: {len(names)} parameters' are not finite ({shown})")
        # The first norm is left out: gradients of a fresh model tell nothing about the next ones.
        if group["clipping_scale"] is None or group["step"] == 0:
            return 1.0 if finite else 0.0
        group["norms"] = (group["norms"] + [norm])[-group["clipping_update_period"] :]
        early = group["step"] in EARLY_ESTIMATES and group["step"] < group["clipping_update_period"]
        if early or group["step"] % group["clipping_update_period"] == 0:
            self._set_norm_threshold(group, EARLY_SLACK if early else 1.0)
        if not finite:
            return 0.0
        if group["norm_threshold"] is None:
            return 1.0
        factor = min(1.0, group["norm_threshold"] / (norm + 1e-20))
        group["num_clipped"] += factor < 1.0
        if factor < 0.5:
            largest = int(norms.argmax())
            logging.warning(
                f"Gradients scaled by {factor:.3g} (norm {norm:.3e}, threshold {group['norm_threshold']:.3e}); "
                f"{float(norms[largest] / norm) ** 2:.0%} of the squared norm is in {self._names()[largest]}"
            )
        return factor

    def _names(self) -> list[str]:
        """Names of all parameters, stack by stack."""
        return [name for stack in self._stacks for name in stack.names]

    def _scaled_norms(self, group: dict[str, Any], stack: _Stack) -> Tensor:
        """(B,): norms of the gradients times the RMS of their parameters."""
        scale = group["scalar_lr_scale"] if stack.scalar else self.state[stack.params[0]]["param_rms"].squeeze(1)
        norms = torch._foreach_norm(stack.grads())  # pyright: ignore[reportPrivateImportUsage]  # as above
        return torch.stack(norms) * scale

    def _set_norm_threshold(self, group: dict[str, Any], slack: float) -> None:
        ordered = sorted(group["norms"], key=lambda norm: norm if norm == norm else float("inf"))
        quartiles = [ordered[min(len(ordered) - 1, len(ordered) // 4 * i)] for i in range(5)]
        if not quartiles[2] - quartiles[2] == 0:
            raise RuntimeError(f"more than half of the last {len(ordered)} gradients are not finite")
        group["norm_threshold"] = slack * group["clipping_scale"] * quartiles[2]
        logging.info(
            f"Clipping_scale={group['clipping_scale']}, grad-norm quartiles "
            + " ".join(f"{q:.3e}" for q in quartiles)
            + f", threshold={group['norm_threshold']:.3e}, "
            f"percent-clipped={100 * group['num_clipped'] / len(ordered):.1f}"
        )
        group["num_clipped"] = 0


def _rms(p: Tensor) -> Tensor:
    """(B, n) -> (B, 1)"""
    return p.square().mean(dim=1, keepdim=True).sqrt()


class Eden:
    """lr = base_lr * (1 + (batch / lr_batches)^2)^-1/4 * (1 + (epoch / lr_epochs)^2)^-1/4 * warm-up.

    The warm-up rises linearly from `warmup_start` to 1 over `warmup_batches`.  `epoch` counts
    finished epochs, `batch` finished optimiser steps over all epochs.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_batches: float,
        lr_epochs: float,
        warmup_batches: float = 500.0,
        warmup_start: float = 0.5,
    ) -> None:
        self.optimizer = optimizer
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.lr_batches, self.lr_epochs = lr_batches, lr_epochs
        self.warmup_batches, self.warmup_start = warmup_batches, warmup_start
        self.batch, self.epoch = 0, 0
        self._set_lr()

    def step_batch(self, batch: int | None = None) -> None:
        """Counts one batch, or sets the count."""
        self.batch = self.batch + 1 if batch is None else batch
        self._set_lr()

    def step_epoch(self, epoch: int | None = None) -> None:
        """Counts one epoch, or sets the count."""
        self.epoch = self.epoch + 1 if epoch is None else epoch
        self._set_lr()

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the counts; the base learning rate stays, so that a resumed run may change it."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._set_lr()

    def _set_lr(self) -> None:
        decay = (1 + (self.batch / self.lr_batches) ** 2) ** -0.25 * (1 + (self.epoch / self.lr_epochs) ** 2) ** -0.25
        done = min(1.0, self.batch / self.warmup_batches) if self.warmup_batches > 0 else 1.0
        warmup = self.warmup_start + (1 - self.warmup_start) * done
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * decay * warmup
