"""Trained weights that a training begins with: the teacher's or others, and which schedules then count as over."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from kdstream.checkpoints.initial import OF_AN_EXP_DIR, begin_with, read_source
from kdstream.config.experiment import CONFIG_FILE, ExperimentConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError, option
from kdstream.kd.teacher import Teacher, start_from_teacher
from kdstream.models.transducer import Transducer
from kdstream.training.start import changes, checkpoint_to_resume

OF_INITIAL_WEIGHTS = ("init_checkpoint", "init_modules", *OF_AN_EXP_DIR)
FINETUNE_BATCH_COUNT = 100_000.0  # batches that icefall's finetune.py adds, after which no ScheduledFloat changes


def start_from_weights(
    model: Transducer, config: ExperimentConfig, tokenizer: Tokenizer, teacher: Teacher | None
) -> None:
    """Gives a model that has not been trained the teacher's weights, or those of --init-checkpoint, where flags say so.

    A training that resumes reads no --init-checkpoint: it need not be there any more.

    Raises:
      UserError: flags that contradict each other, a checkpoint that is missing or damaged, or one that does not fit.
    """
    train = config.train
    if train.init_checkpoint and config.distill.init_from_teacher:
        raise UserError(
            "weights from two places", flag="--init-checkpoint --init-from-teacher 1", fix="drop one of the two"
        )
    if train.init_modules and not train.init_checkpoint:
        raise UserError(
            "says of no weights which parts they are for", flag="--init-modules", fix="give --init-checkpoint"
        )
    if teacher is not None and config.distill.init_from_teacher:
        start_from_teacher(model, teacher)
    elif train.init_checkpoint and checkpoint_to_resume(config) is None:
        begin_with(model, read_source(train), train.init_modules, tokenizer.tokens)


def begins_with_weights(config: ExperimentConfig, *modules: str) -> bool:
    """Whether all of these parts of the model begin with trained weights, the teacher's or others."""
    train = config.train
    chosen = not train.init_modules or set(modules) <= set(train.init_modules)
    return config.distill.init_from_teacher or bool(train.init_checkpoint and chosen)


def batch_count_at_start(config: ExperimentConfig) -> float:
    """Batches that the encoder's ScheduledFloats count as trained when training begins."""
    return FINETUNE_BATCH_COUNT if begins_with_weights(config, "encoder") else 0.0


def prunes_from_the_start(config: ExperimentConfig) -> bool:
    """Whether the simple loss, which prunes the lattice, begins with trained weights: it then needs no --warm-step."""
    return begins_with_weights(config, "encoder", "simple_am_proj", "simple_lm_proj")


def with_same_beginning(config: ExperimentConfig) -> ExperimentConfig:
    """The settings of a training that resumes, with the weights with which it began, whatever this start names.

    So config.json and the records of results go on saying what it began with.

    Raises:
      UserError: it is to begin with weights with which it did not begin.  They would not be read, and the schedules
        that suit random weights would end in the middle.
    """
    path = Path(config.train.exp_dir) / CONFIG_FILE
    if not path.is_file():
        return config
    began = ExperimentConfig.as_written(path.parent)
    ways = (begins_with_weights, batch_count_at_start, prunes_from_the_start)
    if any(how(config) and not how(began) for how in ways):
        setting = "init_from_teacher" if config.distill.init_from_teacher else "init_checkpoint"
        raise UserError(
            f"{path}: its training began without these weights, and its checkpoints go before them",
            flag=option(setting, 1 if config.distill.init_from_teacher else config.train.init_checkpoint),
            fix=f"leave it out, or use another {option('exp_dir')}",
        )
    train = replace(config.train, **{name: getattr(began.train, name) for name in OF_INITIAL_WEIGHTS})
    distill = replace(config.distill, init_from_teacher=began.distill.init_from_teacher)
    kept = replace(config, train=train, distill=distill)
    for change in [*changes(kept.train, config.train), *changes(kept.distill, config.distill)]:
        logging.warning(f"{path}: the training goes on from its checkpoint, not from these weights: {change}")
    return kept
