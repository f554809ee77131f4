"""Checkpoints of a training that may have several processes: the first one writes, and all of them read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdstream.checkpoints.average import round_to_float32
from kdstream.checkpoints.store import restore, save_checkpoint
from kdstream.training import dist


@dataclass
class Saver:
    """What a checkpoint is made of; see `save_checkpoint`.

    model_avg: in the first process, which writes; None in the others.
    """

    model: nn.Module
    model_avg: nn.Module | None
    branches: nn.Module | None
    optimizer: Any
    scheduler: Any
    scaler: Any
    world_size: int
    device: torch.device

    def save(self, path: Path, sampler: dict[str, Any], params: dict[str, Any]) -> None:
        """Writes a checkpoint.  All processes call it, and go on when the file is there.

        Raises:
          UserError: in all of them, where the file cannot be written.
        """
        error = None
        try:
            if self.model_avg is not None:
                round_to_float32(self.model_avg)
                save_checkpoint(path, *self._parts(), sampler=sampler, params=params)
        except Exception as failure:
            error = failure
        dist.raise_together(error, self.world_size, self.device)

    def restore(self, saved: dict[str, Any], path: Path) -> None:
        """Puts the parts of a checkpoint, which is at `path`, back where they came from.  UserError if one is odd."""
        restore(saved, path, *self._parts())

    def _parts(self) -> tuple[Any, ...]:
        """In the order in which `save_checkpoint` and `restore` take them."""
        return self.model, self.model_avg, self.branches, self.optimizer, self.scheduler, self.scaler
