"""Activation checkpointing: of a layer only its inputs are kept, and the backward pass computes the rest again."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class CheckpointedLayer(nn.Module):
    """A layer that is computed once more in the backward pass where `recompute` is set.

    All that is random in it is drawn again as before: torch's numbers and those of Python's `random`.
    """

    recompute = False

    def __call__(self, *args: Any) -> Any:
        if not (self.recompute and torch.is_grad_enabled()):
            return super().__call__(*args)
        state, calls = random.getstate(), 0

        def run(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                return super(CheckpointedLayer, self).__call__(*args)
            now = random.getstate()
            random.setstate(state)
            try:
                return super(CheckpointedLayer, self).__call__(*args)
            finally:
                random.setstate(now)

        return checkpoint(run, *args, use_reentrant=False)


def checkpoint_layers(model: nn.Module, recompute: bool) -> None:
    """Sets `recompute` of all layers of `model`."""
    for module in model.modules():
        if isinstance(module, CheckpointedLayer):
            module.recompute = recompute
