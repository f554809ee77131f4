"""What a training tells: its size in the log, its curves in TensorBoard, and notes on batches that failed."""

from __future__ import annotations

import json
import logging
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdstream.config.sections import ModelConfig, TrainConfig
from kdstream.data.batch import Batch
from kdstream.errors import UserError, option
from kdstream.files import write_text
from kdstream.models.rnnt_loss import backend
from kdstream.training.partners import is_of_communication
from kdstream.training.step import tokens_of
from kdstream.units import FRAMES_PER_SECOND


def log_start(config: TrainConfig, device: torch.device, log_path: Path) -> None:
    """Logs what runs where.  Raises UserError for a --rnnt-backend that is not there."""
    rnnt_backend = backend(config.rnnt_backend, device)
    logging.info(f"Training started: {' '.join(sys.argv)}")
    logging.info(f"Device: {device}; log: {log_path}")
    logging.info(f"RNN-T loss: {rnnt_backend} ({option('rnnt_backend', config.rnnt_backend)})")


def log_model_size(model: nn.Module, branches: nn.Module | None, model_config: ModelConfig) -> None:
    """Logs what is trained and how large it is."""
    logging.info(f"{model_config}")
    logging.info(f"Number of model parameters: {sum(p.numel() for p in model.parameters())}")
    if branches is not None:
        count = sum(p.numel() for p in branches.parameters())
        logging.info(f"Number of parameters of the auxiliary branches, which inference does without: {count}")


def note_batch(exp_dir: Path, batch: Batch, error: BaseException) -> Path:
    """Writes ids, seconds and token counts of the batch in which `error` was raised to EXP_DIR/batch-<uuid>.json."""
    path = exp_dir / f"batch-{uuid.uuid4()}.json"
    columns = batch.cut_ids, batch.feature_lens.tolist(), tokens_of(batch).lens.tolist(), batch.texts
    cuts = [
        {"id": cut_id, "seconds": frames / FRAMES_PER_SECOND, "tokens": tokens, "text": text}
        for cut_id, frames, tokens, text in zip(*columns, strict=True)
    ]
    note = {"error": f"{type(error).__name__}: {error}", "features": list(batch.features.shape), "cuts": cuts}
    write_text(path, json.dumps(note, indent=2) + "\n")
    return path


@contextmanager
def noting_its_cuts(exp_dir: Path, batch: Batch) -> Iterator[None]:
    """Writes down the cuts of `batch` if the step on it raises an error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_of_communication(error):
            raise
        path = note_batch(exp_dir, batch, error)
        logging.error(f"{type(error).__name__} in the batch of cuts {' '.join(batch.cut_ids)}; see {path}")
        raise


def tensorboard_writer(exp_dir: Path, batch_idx: int) -> Any:
    """A SummaryWriter for EXP_DIR/tensorboard; it drops what a killed run wrote of batches after `batch_idx`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        fix = f"pip install tensorboard, or give {option('tensorboard', 0)}"
        raise UserError("tensorboard is not installed", flag=option("tensorboard", 1), fix=fix) from error
    return SummaryWriter(log_dir=str(exp_dir / "tensorboard"), purge_step=batch_idx + 1 if batch_idx else None)
