"""An experiment on disk: its config.json, how far it has come, and the checkpoint to go on from."""

from __future__ import annotations

import json
import logging
import math
import uuid
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdstream.checkpoints.store import find_checkpoints, find_epochs, last_epoch, latest_checkpoint
from kdstream.config.experiment import CONFIG_FILE, ExperimentConfig
from kdstream.config.flags import flag_value, settings_of
from kdstream.config.sections import DistillConfig, ModelConfig
from kdstream.data.batch import Batch
from kdstream.errors import UserError
from kdstream.kd.teachers import flags_without_effect
from kdstream.models.presets import resolve

FREE_MODEL_FIELDS = ("preset", "chunk_size", "left_context_frames")  # may change without changing a parameter
RESUMING_FIELDS = ("resume", "start_epoch", "start_batch", "master_port")  # of this start alone


@dataclass
class Progress:
    """What a training has done so far; every field is an entry at the top level of a checkpoint.

    Times: speech_seconds_trained over all processes; compute_seconds is the wall clock of training
    steps (without loading, validation and checkpoints) times the number of processes.
    """

    cur_epoch: int = 1
    batch_idx_train: int = 0  # optimiser steps over all epochs
    best_train_loss: float = math.inf
    best_valid_loss: float = math.inf
    best_train_epoch: int = -1
    best_valid_epoch: int = -1
    speech_seconds_trained: float = 0.0
    compute_seconds: float = 0.0
    tot_loss: dict[str, float] = field(default_factory=dict)  # of the epoch so far, of the process that saves

    @staticmethod
    def from_checkpoint(checkpoint: dict[str, Any]) -> Progress:
        return Progress(**{f.name: checkpoint[f.name] for f in fields(Progress) if f.name in checkpoint})


def checkpoint_params(config: ExperimentConfig, progress: Progress) -> dict[str, Any]:
    """The top level of a checkpoint: progress and every setting, as icefall's tools expect."""
    sections = (config.model, config.data, config.train, config.distill)
    return {**{name: value for section in sections for name, value in settings_of(section).items()}, **asdict(progress)}


def with_vocabulary(config: ExperimentConfig, vocab_size: int) -> ExperimentConfig:
    """The config of a model for `vocab_size` tokens."""
    return replace(config, model=replace(config.model, vocab_size=vocab_size))


def with_preset(config: ExperimentConfig) -> ExperimentConfig:
    """The config with its preset filled in: what config.json keeps, so that a preset may change later."""
    return replace(config, model=resolve(config.model))


def with_teacher_epoch(config: ExperimentConfig, resumes: bool) -> ExperimentConfig:
    """The config with a number for --teacher-epoch 0: what a training that resumes began with, else the last one."""
    distill, exp_dir = config.distill, Path(config.train.exp_dir)
    if distill.teacher_epoch or not distill.teacher_exp_dir:
        return config
    epoch = 0
    if resumes and (exp_dir / CONFIG_FILE).is_file():
        begun = ExperimentConfig.load(exp_dir).distill
        if Path(begun.teacher_exp_dir) == Path(distill.teacher_exp_dir):
            epoch = begun.teacher_epoch
    return replace(config, distill=replace(distill, teacher_epoch=epoch or last_epoch(distill.teacher_exp_dir)))


def check_same_model(config: ExperimentConfig) -> None:
    """Raises UserError if the exp-dir's config.json describes another model, naming what differs."""
    exp_dir = Path(config.train.exp_dir)
    if not (exp_dir / CONFIG_FILE).is_file():
        return
    old, new = settings_of(ExperimentConfig.load(exp_dir).model), settings_of(config.model)
    differing = [name for name in new if name not in FREE_MODEL_FIELDS and old.get(name) != new[name]]
    if differing:
        values = ((name, flag_value(old.get(name)), flag_value(new[name])) for name in differing[:4])
        shown = "; ".join(f"{name} {there} there, {now} now" for name, there, now in values)
        raise UserError(f"--exp-dir {exp_dir}: its config.json is of another model ({shown}); use another --exp-dir")


def warn_of_changed_settings(config: ExperimentConfig) -> None:
    """Logs which settings differ from those of the exp-dir's config.json, which is about to be written anew."""
    exp_dir = Path(config.train.exp_dir)
    if not (exp_dir / CONFIG_FILE).is_file():
        return
    old, new = (
        {name: settings_of(section) for name, section in vars(one).items()}
        for one in (ExperimentConfig.load(exp_dir), config)
    )
    changed = [
        f"--{name.replace('_', '-')} {flag_value(old[section].get(name))} there, {flag_value(value)} now"
        for section, values in new.items()
        for name, value in values.items()
        if name not in RESUMING_FIELDS and old[section].get(name) != value
    ]
    if changed:
        logging.warning(f"{exp_dir / CONFIG_FILE}: this start has other settings: {'; '.join(changed)}")


def warn_of_flags_without_effect(distill: DistillConfig) -> None:
    """Logs which distillation flags were given in vain."""
    names = ", ".join("--" + name.replace("_", "-") for name in flags_without_effect(distill))
    if names:
        why = "beside the others" if distill.has_teacher else "without a teacher (--teacher-exp-dir)"
        logging.warning(f"Flags that have no effect {why}: {names}")


def checkpoint_to_resume(config: ExperimentConfig) -> Path | None:
    """The file that --resume, --start-batch or --start-epoch mean; None to start anew.

    Raises:
      UserError: to start anew would overwrite the checkpoints of an earlier training.
    """
    train = config.train
    exp_dir = Path(train.exp_dir)
    if train.start_epoch < 1 or train.start_batch < 0:
        raise UserError(f"--start-epoch {train.start_epoch} --start-batch {train.start_batch}: epochs count from 1")
    if train.start_batch > 0:
        return exp_dir / f"checkpoint-{train.start_batch}.pt"
    if train.start_epoch > 1:
        return exp_dir / f"epoch-{train.start_epoch - 1}.pt"
    if train.resume:
        return latest_checkpoint(exp_dir)
    there = find_epochs(exp_dir) + find_checkpoints(exp_dir)
    if there:
        raise UserError(
            f"--exp-dir {exp_dir}: holds {there[0].name} of an earlier training; "
            "go on with --resume 1, or use another --exp-dir"
        )
    return None


def describe(model: nn.Module, branches: nn.Module | None, model_config: ModelConfig) -> None:
    """Logs what is trained and how large it is."""
    logging.info(f"{model_config}")
    logging.info(f"Number of model parameters: {sum(p.numel() for p in model.parameters())}")
    if branches is not None:
        count = sum(p.numel() for p in branches.parameters())
        logging.info(f"Number of parameters of the auxiliary branches, which inference does without: {count}")


def note_batch(exp_dir: Path, batch: Batch, tokens: Any, error: BaseException) -> Path:
    """Writes ids, seconds and token counts of the batch that `error` met to EXP_DIR/batch-<uuid>.json."""
    path = exp_dir / f"batch-{uuid.uuid4()}.json"
    cuts = [
        {"id": cut_id, "seconds": frames / 100, "tokens": len(ids), "text": text}
        for cut_id, frames, ids, text in zip(
            batch.cut_ids, batch.feature_lens.tolist(), tokens, batch.texts, strict=True
        )
    ]
    note = {"error": f"{type(error).__name__}: {error}", "features": list(batch.features.shape), "cuts": cuts}
    path.write_text(json.dumps(note, indent=2) + "\n")
    return path


def max_memory_mb(device: torch.device) -> int | None:
    """Peak memory of a GPU so far, in MB; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) // 1_000_000 if device.type == "cuda" else None


def tensorboard_writer(exp_dir: Path, batch_idx: int) -> Any:
    """A SummaryWriter for EXP_DIR/tensorboard; curves after `batch_idx`, of a run that was killed, go away."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard 1: pip install tensorboard, or give --tensorboard 0") from error
    return SummaryWriter(log_dir=str(exp_dir / "tensorboard"), purge_step=batch_idx + 1 if batch_idx else None)
