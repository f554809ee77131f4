"""A small model and its checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kdstream.checkpoints import store
from kdstream.training.optim import ScaledAdam


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return model


def train_steps(model: nn.Module, optimizer: ScaledAdam, count: int) -> list[dict[str, torch.Tensor]]:
    """The parameters after each step."""
    history = []
    for _ in range(count):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    return history


def save_model(path: Path, model: nn.Module, step: int = 1, **parts) -> None:
    store.save_checkpoint(path, model, params={"batch_idx_train": step, "average_period": 1}, **parts)
