"""Trainers that remember their losses and can be killed, for tests of training."""

from __future__ import annotations

from pathlib import Path

import torch

from kdstream.config.experiment import ExperimentConfig
from kdstream.data.module import AsrDataModule
from kdstream.training import loop, process
from kdstream.training.metrics import MetricsTracker
from kdstream.training.start import with_vocabulary

CPU = torch.device("cpu")


class Killed(BaseException):
    """Ends a training the way a signal does."""


class RecordingTrainer(loop.Trainer):
    """A Trainer that remembers its losses by step, and can be killed before a step."""

    losses: dict[int, float] = {}
    kill_before: int | None = None

    def train_step(self, batches) -> MetricsTracker:
        if self.progress.batch_idx_train + 1 == self.kill_before:
            raise Killed
        metrics = super().train_step(batches)
        self.losses[self.progress.batch_idx_train] = metrics.mean()
        return metrics


def record(config: ExperimentConfig, kill_before: int | None = None) -> dict[int, float]:
    """Trains (until killed) and returns the losses by step."""
    recorder = type("Recorder", (RecordingTrainer,), {"losses": {}, "kill_before": kill_before})
    original, process.Trainer = process.Trainer, recorder
    try:
        process.train_experiment(config)
    except Killed:
        pass
    finally:
        process.Trainer = original
    return recorder.losses


def make_trainer(config: ExperimentConfig, device: torch.device = CPU) -> loop.Trainer:
    data = AsrDataModule(config.data, config.train.seed)
    Path(config.train.exp_dir).mkdir(parents=True, exist_ok=True)
    config = with_vocabulary(config, data.tokenizer.vocab_size)
    return loop.Trainer(config, data, device)
