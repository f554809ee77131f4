"""How a training starts: with which settings, from which checkpoint, and what in the exp-dir it must not replace."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from kdstream.checkpoints.initial import OF_AN_EXP_DIR
from kdstream.checkpoints.store import (
    find_checkpoints,
    find_epochs,
    has_begun,
    last_epoch,
    latest_checkpoint,
    remove_leftovers,
    saved_after,
    steps_of,
)
from kdstream.config.command_line import override_data
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import BPE_MODEL_FILE, CONFIG_FILE, TOKENS_FILE, ExperimentConfig, find_bpe_model
from kdstream.config.flags import (
    Section,
    flag_value,
    flags_of,
    from_args,
    override,
    settings_of,
    warn_of_unread,
    with_settings,
)
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError, option
from kdstream.files import replacing, try_lock
from kdstream.kd.teachers import flags_without_effect
from kdstream.models.presets import resolve
from kdstream.models.streaming import chunks_of
from kdstream.training.dist import LOG_DIR

LOCK_SECONDS = 20
# The highest --base-lr that is known to keep what weights know that training begins with: two passes over 6.9 h from a
# teacher's weights end at 64.8 % with 0.02 and at 72.0 % with 0.045.  icefall's finetune.py has 0.0045.
MAX_BASE_LR_FROM_WEIGHTS = 0.02
# may change without changing a parameter
FREE_MODEL_FIELDS = ("preset", "chunk_size", "left_context_frames", "right_context_frames")
# of one start alone; the next one does not take them from config.json
START_FIELDS = (
    "exp_dir",
    "resume",
    "start_epoch",
    "start_batch",
    "master_port",
    "print_diagnostics",
    "inf_check",
    "profile",
)


def config_of_start(args: argparse.Namespace) -> ExperimentConfig:
    """The settings of a start of train.py.

    What is typed holds.  What is not typed has its default or, when training resumes, its value in EXP_DIR/config.json:
    a flag that is forgotten changes nothing.

    Args:
      args: holds the flags that were typed and no others; see `add_arguments`.
    """
    anew = ExperimentConfig(
        model=from_args(ModelConfig, args),
        data=from_args(DataConfig, args),
        train=from_args(TrainConfig, args),
        distill=from_args(DistillConfig, args),
    )
    train, exp_dir = anew.train, Path(anew.train.exp_dir)
    resumes = train.resume or train.start_epoch > 1 or train.start_batch > 0
    if not resumes or not (exp_dir / CONFIG_FILE).is_file():
        return anew
    begun = ExperimentConfig.as_written(exp_dir)
    of_start = {name: getattr(train, name) for name in START_FIELDS}
    return ExperimentConfig(
        model=_resumed_model(begun.model, args),
        data=_resumed_data(begun.data, args, exp_dir),
        train=with_settings(override(begun.train, args), **of_start),
        distill=_resumed_distillation(begun.distill, args),
    )


def _resumed_model(begun: ModelConfig, args: argparse.Namespace) -> ModelConfig:
    """config.json holds the preset filled in; with another preset typed, nothing that the old one filled may stay."""
    typed = override(begun, args)
    if (typed.encoder, typed.preset) == (begun.encoder, begun.preset):
        return typed
    by_preset = {item.name: None for item in flags_of(ModelConfig) if item.default is None}
    return override(with_settings(begun, **by_preset), args)


def _resumed_data(begun: DataConfig, args: argparse.Namespace, exp_dir: Path) -> DataConfig:
    """Where nothing is typed and the path in config.json leads nowhere any more, the exp-dir's own tokenizer."""
    data = override_data(begun, args)
    if not hasattr(args, "bpe_model") and not Path(data.bpe_model).is_file():
        return replace(data, bpe_model=find_bpe_model(exp_dir, data))
    return data


def _resumed_distillation(begun: DistillConfig, args: argparse.Namespace) -> DistillConfig:
    """A teacher that is typed brings no epoch of its own: `with_teacher_epoch` finds it."""
    distill = override(begun, args)
    if hasattr(args, "teacher_exp_dir") and not hasattr(args, "teacher_epoch"):
        return replace(distill, teacher_epoch=0)
    return distill


def with_vocabulary(config: ExperimentConfig, vocab_size: int) -> ExperimentConfig:
    """The config of a model for `vocab_size` tokens."""
    return replace(config, model=replace(config.model, vocab_size=vocab_size))


def with_preset(config: ExperimentConfig) -> ExperimentConfig:
    """The config with its preset filled in: what config.json keeps, so that a preset may change later."""
    return replace(config, model=resolve(config.model))


def with_teacher_epoch(config: ExperimentConfig, resumes: bool) -> ExperimentConfig:
    """The config with a number for --teacher-epoch 0: the epoch that a resumed training began with, else the last one.

    Raises:
      UserError: a resumed training began with an unknown epoch, and the teacher now has several weights to choose from;
        or --teacher-exp-dir is another now, which lacks the epoch.
    """
    distill, path = config.distill, Path(config.train.exp_dir) / CONFIG_FILE
    if distill.teacher_epoch or not distill.teacher_exp_dir or "," in distill.teacher_type:
        return config  # of several teachers, 0 is the last epoch of each
    epoch = last_epoch(distill.teacher_exp_dir)
    if resumes and path.is_file():
        begun = ExperimentConfig.as_written(path.parent).distill
        folder, epoch_of = Path(distill.teacher_exp_dir), begun.teacher_epoch
        is_same = Path(begun.teacher_exp_dir).resolve() == folder.resolve()
        if is_same and epoch and not epoch_of:
            raise UserError(
                f"{path} names no epoch of {distill.teacher_exp_dir}, which has epoch-{epoch}.pt by now",
                flag=option("teacher_epoch", 0),
                fix=f"name the one that this training began with by {option('teacher_epoch')}; if it began with "
                "pretrained.pt, move the teacher's epoch-N.pt away",
            )
        if epoch_of and not (folder / f"epoch-{epoch_of}.pt").is_file():
            raise UserError(
                f"lacks epoch-{epoch_of}.pt, under which this training began",
                flag=option("teacher_exp_dir", folder),
                fix=f"put it there, or name another one by {option('teacher_epoch')}",
            )
        if is_same or epoch_of:
            epoch = epoch_of
    return replace(config, distill=replace(distill, teacher_epoch=epoch))


def check_same_model(config: ExperimentConfig) -> None:
    """Raises UserError if the exp-dir's config.json describes another model, naming what differs.

    A config.json beside which there are no weights is of a start that failed, and counts for nothing.
    """
    exp_dir = Path(config.train.exp_dir)
    if not has_begun(exp_dir) or not (exp_dir / CONFIG_FILE).is_file():
        return
    old, new = settings_of(ExperimentConfig.as_written(exp_dir).model), settings_of(config.model)
    differing = [name for name in new if name not in FREE_MODEL_FIELDS and old.get(name) != new[name]]
    if differing:
        values = ((name, flag_value(old.get(name)), flag_value(new[name])) for name in differing[:4])
        shown = "; ".join(f"{name} {there} there, {now} now" for name, there, now in values)
        raise UserError(
            f"its config.json is of another model ({shown})",
            flag=option("exp_dir", exp_dir),
            fix=f"use another {option('exp_dir')}",
        )


def check_same_branches(
    config: ExperimentConfig, saved: dict[str, Any], path: Path, branches: nn.Module | None
) -> None:
    """Raises UserError if the branches of a checkpoint are not those of this start, naming the flags that differ.

    Args:
      saved: the checkpoint at `path`.
      branches: of this start; None without distillation.
    """
    theirs, ours = saved.get("branches"), None if branches is None else branches.state_dict()
    shapes, others = ({name: value.shape for name, value in (state or {}).items()} for state in (theirs, ours))
    if shapes == others and (ours is None or theirs is not None):  # without parameters, as in token distillation
        return
    began = Path(config.train.exp_dir) / CONFIG_FILE
    changed = changes(ExperimentConfig.as_written(began.parent).distill, config.distill) if began.is_file() else []
    raise UserError(
        f"{path}: its training began with other distillation ({'; '.join(changed) or 'other shapes of branches'})",
        fix=f"give the flags of that training, or use another {option('exp_dir')}",
    )


def check_same_tokenizer(config: ExperimentConfig) -> None:
    """Raises UserError if the exp-dir keeps another tokenizer than --bpe-model, beside weights."""
    own, given = Path(config.train.exp_dir) / BPE_MODEL_FILE, Path(config.data.bpe_model)
    if has_begun(own.parent) and own.is_file() and given.is_file() and own.read_bytes() != given.read_bytes():
        raise UserError(
            f"is not {own}, with which this training began",
            flag=option("bpe_model", given),
            fix=f"give {option('bpe_model', own)}, or use another {option('exp_dir')}",
        )


def check_views(config: ExperimentConfig) -> None:
    """Raises UserError where --cr-ctc-scale has nothing to compare."""
    if config.train.cr_ctc_scale == 0:
        return
    for why, setting, given in (
        ("compares posteriors of a CTC head", "use_ctc", config.model.use_ctc),
        ("compares views that differ in SpecAugment's masks", "enable_spec_aug", config.data.enable_spec_aug),
    ):
        if not given:
            raise UserError(why, flag=option("cr_ctc_scale"), fix=f"give {option(setting, 1)}")


@contextmanager
def only_training_in(exp_dir: Path) -> Iterator[None]:
    """Keeps every other training out of the exp-dir; two would overwrite each other's checkpoints.

    The lock is on EXP_DIR/log, and goes away with the process.  Data loading processes may outlive one that was killed
    by some seconds, so a lock is waited for.  Where there are no locks (Windows, some network disks), nothing is kept
    out.

    Raises:
      UserError: a training runs there.
    """
    if os.name == "nt":  # where a folder cannot be opened
        yield
        return
    (exp_dir / LOG_DIR).mkdir(parents=True, exist_ok=True)
    folder = os.open(exp_dir / LOG_DIR, os.O_RDONLY)
    end = time.monotonic() + LOCK_SECONDS
    try:
        while (locked := try_lock(folder)) is False:
            if time.monotonic() > end:
                raise UserError(
                    "another training is running in it",
                    flag=option("exp_dir", exp_dir),
                    fix=f"wait for its end, or use another {option('exp_dir')}",
                )
            time.sleep(0.1)
        if locked is None:
            logging.warning("This disk knows no locks: do not start a second training in the same --exp-dir")
        yield
    finally:
        os.close(folder)


def keep_settings(config: ExperimentConfig, tokenizer: Tokenizer) -> None:
    """Writes config.json and the tokenizer to the exp-dir, and logs what is odd about the settings."""
    exp_dir = Path(config.train.exp_dir)
    warn_of_changed_settings(config)
    warn_of_flags_without_effect(config)
    warn_of_contexts_never_drawn(config.model)
    warn_of_high_learning_rate(config.train)
    keep_tokenizer(config, tokenizer)
    config.save(exp_dir)
    remove_leftovers(exp_dir)


def keep_tokenizer(config: ExperimentConfig, tokenizer: Tokenizer) -> None:
    """Copies bpe.model into the exp-dir, and writes its tokens.txt, unless they are there beside weights.

    tokenizer: of config.data.bpe_model.  A tokens.txt that lies beside that may be of another one.
    """
    exp_dir, bpe_model = Path(config.train.exp_dir), Path(config.data.bpe_model)
    own, tokens, begun = exp_dir / BPE_MODEL_FILE, exp_dir / TOKENS_FILE, has_begun(exp_dir)
    if not own.exists() or not (begun or bpe_model.samefile(own)):
        with replacing(own) as temporary:
            shutil.copyfile(bpe_model, temporary)
    if not (begun and tokens.exists()):
        tokenizer.save_tokens(tokens)


def warn_of_changed_settings(config: ExperimentConfig) -> None:
    """Logs which settings differ from those of the exp-dir's config.json, which is about to be written anew."""
    exp_dir = Path(config.train.exp_dir)
    if not has_begun(exp_dir) or not (exp_dir / CONFIG_FILE).is_file():
        return
    old = vars(ExperimentConfig.as_written(exp_dir))
    if changed := [change for name, section in vars(config).items() for change in changes(old[name], section)]:
        logging.warning(f"{exp_dir / CONFIG_FILE}: this start has other settings: {'; '.join(changed)}")


def changes(old: Section, new: Section) -> list[str]:
    """The settings that differ, but for those of one start alone, as "--flag VALUE there, VALUE now"."""
    before, now, empty = settings_of(old), settings_of(new), "''"
    return [
        f"{option(name)} {flag_value(before.get(name)) or empty} there, {flag_value(value) or empty} now"
        for name, value in now.items()
        if name not in START_FIELDS and before.get(name) != value
    ]


def warn_of_flags_without_effect(config: ExperimentConfig) -> None:
    """Logs which flags were given in vain."""
    for section, names, is_read, why in what_reads(config):
        if not is_read:
            warn_of_unread(section, names, why)
    distill = config.distill
    names = ", ".join(map(option, flags_without_effect(distill)))
    if names:
        why = "beside the others" if distill.has_teacher else f"without a teacher ({option('teacher_exp_dir')})"
        logging.warning(f"Flags that have no effect {why}: {names}")


def what_reads(config: ExperimentConfig) -> list[tuple[Section, tuple[str, ...], bool, str]]:
    """Settings of model, data and training that others switch on: whether they are read, and why not."""
    model, data, train = config.model, config.data, config.train
    contexts = ("chunk_size", "left_context_frames", "right_context_frames")
    return [
        (model, contexts, model.causal, "with --causal 0, which hears the whole utterance"),
        (data, ("pseudo_ratio",), bool(data.pseudo_cuts), "without --pseudo-cuts"),
        (data, ("unlabelled_ratio",), bool(data.unlabelled_cuts), "without --unlabelled-cuts"),
        (data, ("spec_aug_time_warp_factor",), data.enable_spec_aug, "with --enable-spec-aug 0"),
        (data, ("time_mask_ratio",), train.cr_ctc_scale > 0, "without --cr-ctc-scale"),
        (train, ("ctc_loss_scale",), model.use_ctc, "without --use-ctc 1"),
        (train, OF_AN_EXP_DIR, bool(train.init_checkpoint), "without --init-checkpoint"),
        (train, ("start_epoch",), train.start_batch == 0, "beside --start-batch"),
    ]


def warn_of_contexts_never_drawn(model: ModelConfig) -> None:
    """Logs the left and right contexts that go with no chunk: no batch has them."""
    drawn = [chunk for size in model.chunk_size if model.causal and size > 0 for chunk in chunks_of(model, size)]
    for name, of_chunks in (
        ("left_context_frames", {chunk.left for chunk in drawn}),
        ("right_context_frames", {chunk.right for chunk in drawn}),
    ):
        for value in getattr(model, name) if drawn else ():
            if value not in of_chunks:
                logging.warning(f"{option(name, value)}: goes with no chunk and other context here, so no batch has it")


def warn_of_high_learning_rate(train: TrainConfig) -> None:
    """Logs that --base-lr may undo the weights of --init-checkpoint."""
    if train.init_checkpoint and train.base_lr > MAX_BASE_LR_FROM_WEIGHTS:
        logging.warning(
            f"{option('base_lr', f'{train.base_lr:g}')}: may undo the weights of {option('init_checkpoint')}; rates up "
            f"to {MAX_BASE_LR_FROM_WEIGHTS:g} have kept such weights, and icefall fine-tunes with 0.0045"
        )


def checkpoint_to_resume(config: ExperimentConfig) -> Path | None:
    """The file that --resume, --start-batch or --start-epoch mean; None to start anew.

    Raises:
      UserError: to start anew would overwrite the checkpoints of an earlier training, or later ones lie beside the
        one that is named.
    """
    train = config.train
    exp_dir = Path(train.exp_dir)
    if train.start_batch > 0 or train.start_epoch > 1:
        name = f"checkpoint-{train.start_batch}" if train.start_batch > 0 else f"epoch-{train.start_epoch - 1}"
        path = exp_dir / f"{name}.pt"
        if not train.print_diagnostics:  # which writes nothing
            check_is_last(path)
        return path
    if train.resume:
        return latest_checkpoint(exp_dir)
    there = find_epochs(exp_dir) + find_checkpoints(exp_dir)
    if there:
        raise UserError(
            f"holds {there[0].name} of an earlier training",
            flag=option("exp_dir", exp_dir),
            fix=f"go on with {option('resume', 1)}, or use another {option('exp_dir')}",
        )
    return None


def check_is_last(path: Path) -> None:
    """Raises UserError if later checkpoints lie beside this one.

    --resume, --epoch, --avg and --keep-last-k would take theirs, and not those that a training writes from here on.
    """
    steps = steps_of(path) if path.is_file() else None
    later = [] if steps is None else saved_after(path.parent, steps)
    if later:
        raise UserError(
            f"later checkpoints than {path.name} lie in it: {', '.join(each.name for each in later)}",
            flag=option("exp_dir", path.parent),
            fix=f"go on from the last one with {option('resume', 1)}, move them away, or copy {path.name} and "
            f"{CONFIG_FILE} into another {option('exp_dir')}",
        )
