"""Mixed precision: autocast, and the gradient scaler that float16 needs."""

from __future__ import annotations

import contextlib
import logging
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from kdstream.config.sections import TrainConfig
from kdstream.errors import UserError, option
from kdstream.training.optim import ScaledAdam

SMALL_SCALE, HOPELESS_SCALE = 0.01, 1e-5  # icefall's limits: below the first warn, below the second give up
RAISED_EVERY = ((25, 2.0), (100, 8.0), (400, 32.0))  # so many batches a scale below this is doubled, as in icefall


class Precision:
    """float32, or float16/bfloat16 autocast, as --use-fp16 and --use-bf16 say.

    Raises:
      UserError: both at once, or one that the device cannot do.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        if config.use_fp16 and config.use_bf16:
            raise UserError("give one of them", flag=f"{option('use_fp16')} and {option('use_bf16')}")
        if config.use_fp16 and device.type != "cuda":
            fix = f"use {option('use_bf16', 1)} or neither"
            raise UserError("needs a GPU", flag=option("use_fp16"), fix=fix)
        if config.use_bf16 and device.type == "cuda" and not _has_bf16():
            problem = "this GPU has no bfloat16 arithmetic and would imitate it, many times as slowly"
            raise UserError(problem, flag=option("use_bf16", 1), fix=f"use {option('use_fp16', 1)}")
        self.device = device
        self.enabled = config.use_fp16 or config.use_bf16
        self.dtype = torch.float16 if config.use_fp16 else torch.bfloat16 if config.use_bf16 else torch.float32
        self.scaler = torch.amp.GradScaler("cuda", init_scale=1.0, enabled=config.use_fp16)

    def autocast(self) -> AbstractContextManager[Any]:
        if not self.enabled:
            return contextlib.nullcontext()
        return torch.autocast(device_type=self.device.type, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer: ScaledAdam) -> None:
        """Steps unless a float16 gradient overflowed, in which case the scale is halved."""
        if not self.scaler.is_enabled():
            optimizer.step()
            return
        self.scaler.unscale_(optimizer)
        # scaler.step would read on the host whether there was an overflow; the optimiser reads it with its norm
        (found_inf,) = self.scaler._found_inf_per_device(optimizer).values()
        optimizer.step(found_inf=found_inf)
        self.scaler.update()

    @property
    def grad_scale(self) -> float:
        return self.scaler.get_scale()

    def adjust_grad_scale(self, batch_idx: int) -> bool:
        """Helps a small scale up again, as icefall does, for GradScaler alone is slow at it.

        It looks at every 25th batch: the host waits for the scale.

        Returns True if the scale is worryingly small.  Raises UserError if it is hopelessly so.
        """
        if not self.scaler.is_enabled() or batch_idx % RAISED_EVERY[0][0]:
            return False
        scale = self.grad_scale
        if scale < HOPELESS_SCALE:
            raise UserError(
                f"the gradient scale fell to {scale:g}: float16 overflows in every batch",
                fix="use --use-bf16 1, lower --base-lr, or look for the cause with --inf-check 1",
            )
        if scale < SMALL_SCALE:
            logging.warning(f"Grad scale is small: {scale:g}")
        if any(batch_idx % period == 0 and scale < limit for period, limit in RAISED_EVERY):
            self.scaler.update(scale * 2.0)
        return scale < SMALL_SCALE


def _has_bf16() -> bool:
    """Whether the GPU itself computes in bfloat16.  By default torch counts GPUs too that only imitate it."""
    return torch.cuda.is_bf16_supported(including_emulation=False)
