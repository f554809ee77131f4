"""How far a training has come, as its checkpoints say."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kdstream.checkpoints.average import averaged_until
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import settings_of


@dataclass
class Progress:
    """What a training has done so far; every field is an entry at the top level of a checkpoint.

    Times: speech_seconds_trained over all processes; compute_seconds is the wall clock of training
    steps (without loading, validation and checkpoints) times the number of processes.
    """

    cur_epoch: int = 1
    batch_idx_train: int = 0  # optimiser steps over all epochs
    batch_idx_finite: int = 0  # the last one that had a finite loss
    batch_idx_averaged: int = 0  # the last one after which the running average was updated
    best_train_loss: float = math.inf
    best_valid_loss: float = math.inf
    best_train_epoch: int = -1
    best_valid_epoch: int = -1
    speech_seconds_trained: float = 0.0
    compute_seconds: float = 0.0
    tot_loss: dict[str, float] = field(default_factory=dict)  # of the epoch so far, of the process that saves

    @staticmethod
    def from_checkpoint(checkpoint: dict[str, Any]) -> Progress:
        found = {f.name: checkpoint[f.name] for f in fields(Progress) if f.name in checkpoint}
        older = {"batch_idx_finite": found.get("batch_idx_train", 0)}
        if {"batch_idx_train", "average_period"} <= set(checkpoint):
            older["batch_idx_averaged"] = averaged_until(checkpoint)
        return Progress(**{**older, **found})


def checkpoint_params(config: ExperimentConfig, progress: Progress) -> dict[str, Any]:
    """The top level of a checkpoint: progress and every setting, as icefall's tools expect."""
    sections = (config.model, config.data, config.train, config.distill)
    return {**{name: value for section in sections for name, value in settings_of(section).items()}, **asdict(progress)}
