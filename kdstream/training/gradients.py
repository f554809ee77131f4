"""The gradients of one optimiser step, summed over its batches and over all processes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdstream.data.batch import Batch
from kdstream.models.streaming import ChunkConfig
from kdstream.training.diagnostics import InfCheck
from kdstream.training.logs import noting_its_cuts
from kdstream.training.metrics import MetricsTracker, read_sums
from kdstream.training.precision import Precision
from kdstream.training.step import compute_loss, seed_step

IS_LAST = "is_last"  # what processes tell each other beside the sums of losses


class _Reaching(torch.autograd.Function):
    """The loss as it is, whose backward reaches all parameters, without a gradient for those that it depends not on.

    DDP waits for every parameter.  Layers leave out parts of theirs at random, positional scores for one, so that most
    steps lack some.  To find them, DDP would walk through the graph of each step and tell the other processes.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *[None] * ctx.count


@dataclass
class Gradients:
    """Forward and backward of a step's batches.

    Until all of them are on their way, the host waits for nothing that a GPU computes, but for the tokens that a
    teacher finds in unlabelled speech; processes exchange gradients with the last batch alone, and metrics once.

    module: StudentWithBranches or its DDP.
    inf_check: told when a batch begins.
    is_last: whether this process cannot take another step after the next one.
    is_last_of_any: whether any could not, when the last step was taken.
    """

    module: nn.Module
    precision: Precision
    seed: int
    exp_dir: Path
    device: torch.device
    rank: int = 0
    world_size: int = 1
    inf_check: InfCheck | None = None
    is_last: bool = False
    is_last_of_any: bool = False

    def add(self, batches: Sequence[Batch], chunk: ChunkConfig | None, step: int) -> list[MetricsTracker]:
        """Adds the gradients of step number `step`.

        A batch whose loss is not finite in some process adds nothing in any.  That shows when all gradients are
        there; those of the other batches are then computed once more, from the same random draws.

        Returns:
          The metrics of each batch, summed over processes.
        """
        sums = self._backward(batches, range(len(batches)), chunk, step)
        is_last = torch.full((), float(self.is_last), device=self.device)
        metrics = read_sums([{**of_batch, IS_LAST: is_last} for of_batch in sums], self.world_size)
        self.is_last_of_any = any([of_batch.pop(IS_LAST) for of_batch in metrics])
        good = [index for index, of_batch in enumerate(metrics) if math.isfinite(of_batch["loss"])]
        if len(good) == len(batches):
            return metrics
        for batch, of_batch in zip(batches, sums, strict=True):
            if not math.isfinite(of_batch["loss"]):  # here, not in another process
                logging.warning(f"The loss is not finite, the batch is left out; cuts: {' '.join(batch.cut_ids)}")
        self.module.zero_grad(set_to_none=True)
        self._backward(batches, good, chunk, step)
        return metrics

    def _backward(
        self, batches: Sequence[Batch], indices: Sequence[int], chunk: ChunkConfig | None, step: int
    ) -> list[dict[str, Tensor]]:
        """Forward and backward of the batches with these indices; what `compute_loss` says of each."""
        sums = []
        for index in indices:
            seed_step(self.seed, step, index * self.world_size + self.rank)
            if self.inf_check is not None:
                self.inf_check.new_batch()
            with noting_its_cuts(self.exp_dir, batches[index]), self._unexchanged(index != indices[-1]):
                sums.append(self.add_batch(batches[index], chunk, step))
        return sums

    def add_batch(self, batch: Batch, chunk: ChunkConfig | None, step: int) -> dict[str, Tensor]:
        """Adds the gradients of one batch; returns what `compute_loss` says of it."""
        with self.precision.autocast():
            loss, sums = compute_loss(self.module, batch, chunk, step, self.device)
        if isinstance(self.module, DistributedDataParallel):
            loss = _Reaching.apply(loss, *(p for p in self.module.parameters() if p.requires_grad))
        self.precision.backward(loss * self.world_size)  # DDP averages, we want the sum over processes
        return sums

    def _unexchanged(self, is_unexchanged: bool) -> AbstractContextManager[Any]:
        """Within it processes keep their gradients to themselves, if they are told to."""
        if is_unexchanged and isinstance(self.module, DistributedDataParallel):
            return self.module.no_sync()
        return nullcontext()
