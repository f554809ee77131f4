"""Types of teachers, and the one that the flags name.

A type is one entry of TEACHERS: how a teacher is made from the flags, its class, which says what it can do, and the
flags that it reads.  Another program adds one before the flags are parsed:

    TEACHERS.add("my", TeacherSpec(load_my_teacher, MyTeacher), teacher_my_size=flag(3, "Size of my teacher."))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kdstream.checkpoints.average import CheckpointChoice, load_averaged
from kdstream.checkpoints.store import load_checkpoint, load_weights
from kdstream.config import distillation
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import flags_of
from kdstream.config.registry import Registry
from kdstream.config.sections import DataConfig
from kdstream.data.augment import active_transforms
from kdstream.errors import UserError, option
from kdstream.kd.icefall_checkpoint import model_of, weights_of
from kdstream.kd.layer_map import chooses_guides
from kdstream.kd.loss_table import LOSSES, scale_of, wanted_losses
from kdstream.kd.several import Member, SeveralTeachers, of_each
from kdstream.kd.teacher import Teacher, TransducerTeacher, build_teacher
from kdstream.kd.teacher_cache import CachedTeacher, fingerprint
from kdstream.kd.torchaudio_teacher import TorchaudioTeacher, load_speech_encoder
from kdstream.kd.transformers_teacher import TransformersTeacher, load_transformers_teacher


@dataclass(frozen=True)
class TeacherSpec:
    """A type of teacher, --teacher-type.

    load: makes the teacher that an experiment's flags name, on a device.
    teacher: its class, which says what such a teacher can do.
    source: the setting that says where it is, teacher_exp_dir or teacher_checkpoint.
    reads: the other settings that it reads.
    """

    load: Callable[[ExperimentConfig, torch.device], Teacher]
    teacher: type[Teacher]
    source: str = "teacher_checkpoint"
    reads: tuple[str, ...] = ()


TEACHERS: Registry[TeacherSpec] = distillation.TEACHERS


def load_teacher(config: ExperimentConfig, device: torch.device) -> Teacher | None:
    """The frozen teacher, live or from --teacher-cache; None where no flag names one.  Several are SeveralTeachers.

    Raises:
      UserError: a teacher that is missing, damaged, or of another vocabulary; a cache of another teacher; an
        augmentation that moves the student's frames away from what the teacher hears; of several teachers, one that
        no flag says the place of.
    """
    distill, each = config.distill, of_each(config.distill)
    if len(each) > 1:
        check_each_has_a_source(distill.teacher_type, each)
        loaded = ((one, load_teacher(replace(config, distill=one), device)) for one in each)
        return SeveralTeachers([Member(one, teacher) for one, teacher in loaded if teacher is not None])
    check_flags(distill, config.train.rnnt_type)
    if not distill.has_teacher:
        return None
    if distill.teacher_cache or needs_audio(distill):
        setting = "teacher_cache" if distill.teacher_cache else "teacher_type"
        check_time_warp(config.data, option(setting, getattr(distill, setting)))
    teacher = type_of(distill).load(config, device)
    if distill.teacher_cache:
        return CachedTeacher(teacher, Path(distill.teacher_cache), fingerprint(teacher))
    return teacher


def type_of(distill: DistillConfig) -> TeacherSpec:
    """Raises UserError if there is no such type."""
    return TEACHERS.find(distill.teacher_type)


def needs_audio(distill: DistillConfig) -> bool:
    """Whether a teacher listens to samples, which must then be read beside the features."""
    return any(not one.teacher_cache and type_of(one).teacher.needs_audio for one in of_each(distill))


def needs_clean(config: ExperimentConfig) -> bool:
    """Whether training must read cuts without noise and masks too: for a live teacher that hears them clean."""
    live = any(
        one.has_teacher and not one.teacher_cache and bool(wanted_losses(one).all()) for one in of_each(config.distill)
    )
    return live and config.distill.kd_teacher_hears == "clean" and bool(active_transforms(config.data))


def without_cache(config: ExperimentConfig) -> ExperimentConfig:
    """The config of a teacher that listens itself: a cache holds the training cuts alone."""
    return replace(config, distill=replace(config.distill, teacher_cache=""))


def load_kdstream_teacher(config: ExperimentConfig, device: torch.device) -> Teacher:
    """The averaged model of --teacher-exp-dir."""
    distill = config.distill
    exp_dir = distill.teacher_exp_dir
    teacher = ExperimentConfig.load(exp_dir, prefix="teacher_")
    choice = CheckpointChoice(
        exp_dir,
        distill.teacher_epoch,
        avg=distill.teacher_avg,
        use_averaged_model=distill.teacher_use_averaged_model,
        prefix="teacher_",
    )
    weights = load_averaged(choice).weights
    whose = option("teacher_exp_dir", exp_dir)
    if teacher.model.causal and -1 not in teacher.model.chunk_size and not teacher.distill.runs_both_modes:
        logging.warning(
            f"{whose}: a streaming model that was never trained in full context (--chunk-size without -1), in which it "
            "now teaches"
        )
    return build_teacher(whose, teacher, weights, config, device, needs_tokens(distill))


def load_icefall_teacher(config: ExperimentConfig, device: torch.device) -> Teacher:
    """The model in icefall's --teacher-checkpoint."""
    distill = config.distill
    path = distill.teacher_checkpoint
    checkpoint = load_checkpoint(path, bare=True)
    weights = weights_of(checkpoint)
    data = DataConfig(bpe_model=distill.teacher_bpe_model or config.data.bpe_model)
    teacher = ExperimentConfig(model=model_of(path, checkpoint, weights, distill.teacher_model), data=data)
    whose = option("teacher_checkpoint", path)
    return build_teacher(whose, teacher, weights, config, device, needs_tokens(distill))


def load_torchaudio_teacher(config: ExperimentConfig, device: torch.device) -> Teacher:
    """The speech encoder whose weights are in --teacher-checkpoint."""
    path, model = config.distill.teacher_checkpoint, config.distill.teacher_model
    return TorchaudioTeacher(load_speech_encoder(model, load_weights(path), path), device, model)


TEACHERS.add(
    "kdstream",
    TeacherSpec(
        load_kdstream_teacher,
        TransducerTeacher,
        "teacher_exp_dir",
        reads=("teacher_epoch", "teacher_avg", "teacher_use_averaged_model"),
    ),
)
TEACHERS.add(
    "icefall", TeacherSpec(load_icefall_teacher, TransducerTeacher, reads=("teacher_model", "teacher_bpe_model"))
)
TEACHERS.add("torchaudio", TeacherSpec(load_torchaudio_teacher, TorchaudioTeacher, reads=("teacher_model",)))
TEACHERS.add(
    "transformers",
    TeacherSpec(
        lambda config, device: load_transformers_teacher(config.distill.teacher_checkpoint, device), TransformersTeacher
    ),
)


def needs_tokens(distill: DistillConfig) -> bool:
    """Whether teacher and student must write the same tokens."""
    return distill.init_from_teacher or bool(wanted_losses(distill).of_lattice)


def check_flags(distill: DistillConfig, rnnt_type: str) -> None:
    """Raises UserError unless the flags name one teacher that can do what they ask, or none and ask nothing of it."""
    check_source(distill)
    kind, lattice_losses = type_of(distill).teacher, wanted_losses(distill).of_lattice
    for setting, possible in (("teacher_cache", kind.can_be_stored), ("init_from_teacher", kind.gives_weights)):
        if getattr(distill, setting) and not possible:
            flag = option("teacher_type", distill.teacher_type)
            raise UserError(f"does not go with {option(setting)}", flag=flag, fix="drop one of the two")
    # Losses between layers may be left over: features and prediction are on by default.
    for setting in ("init_from_teacher", "teacher_cache", *map(scale_of, lattice_losses)):
        if getattr(distill, setting) and not distill.has_teacher:
            raise UserError("needs a teacher", flag=option(setting), fix="give --teacher-exp-dir")
    if distill.teacher_cache and distill.kd_teacher_hears != "clean":
        raise UserError(
            "a cache holds what the teacher heard in clean cuts",
            flag=option("kd_teacher_hears", distill.kd_teacher_hears),
            fix="give --kd-teacher-hears clean, or leave out --teacher-cache",
        )
    for loss in lattice_losses.values():
        if loss.check is not None:
            loss.check(distill, rnnt_type)


def check_source(distill: DistillConfig) -> None:
    """Raises UserError where the teacher is not where its type wants it."""
    if type_of(distill).source == "teacher_exp_dir":
        if distill.teacher_checkpoint:
            others = [name for name, kind in TEACHERS.items() if kind.source == "teacher_checkpoint"]
            raise UserError(
                "a file does not say which type of teacher it holds",
                flag="--teacher-checkpoint",
                fix=f"give --teacher-type {' or '.join(others)}",
            )
    elif distill.teacher_exp_dir or not distill.teacher_checkpoint:
        raise UserError(
            "such a teacher is in a file or directory of its own",
            flag=option("teacher_type", distill.teacher_type),
            fix="give --teacher-checkpoint; --teacher-exp-dir is for teachers of kdstream",
        )


def check_each_has_a_source(names: str, each: Iterable[DistillConfig]) -> None:
    """Raises UserError where --teacher-type `names` several teachers, and one of them, of kdstream, has no exp-dir."""
    for one in each:
        check_source(one)
        if not one.has_teacher:
            raise UserError(
                f"no flag says where the teacher of type {one.teacher_type} is",
                flag=option("teacher_type", names),
                fix=f"give {option(type_of(one).source)}",
            )


def of_modes(distill: DistillConfig) -> list[tuple[tuple[str, ...], bool]]:
    """The fields that a student in both modes reads, and whether it does so here."""
    of_comparison = ("mode_consistency_type", "mode_consistency_weights", "kd_token_shift", "kd_warmup_batches")
    return [
        (("full_context_scale", "mode_consistency_scale"), True),
        (of_comparison, distill.mode_consistency_scale > 0),
    ]


def read_without_teacher(distill: DistillConfig) -> set[str]:
    """Names of the fields that something reads where there is no teacher."""
    return {name for names, is_read in of_modes(distill) if is_read for name in names}


def flags_without_effect(distill: DistillConfig) -> list[str]:
    """Names of the fields that are not at their defaults and that no other setting here makes anything read."""
    each = of_each(distill)
    unread = set.intersection(*map(unread_by, each)) | (
        {"teacher_scales", "teacher_losses"} if len(each) == 1 else set()
    )
    given = [item.name for item in flags_of(DistillConfig) if getattr(distill, item.name) != item.default]
    return [name for name in given if name in unread]


def unread_by(distill: DistillConfig) -> set[str]:
    """Names of the fields that nothing reads, under one teacher or none."""
    if not distill.has_teacher:
        return {item.name for item in flags_of(DistillConfig)} - read_without_teacher(distill)
    losses = wanted_losses(distill)
    layers = bool(losses.of_layers)
    auxiliary = distill.kd_branch == "transformer" and losses.auxiliary_layer
    read_by = [
        *of_modes(distill),
        *((kind.reads, name == distill.teacher_type) for name, kind in TEACHERS.items()),
        *((names, name == distill.teacher_type) for name, names in TEACHERS.settings.items()),
        *((loss.reads, name in losses.all()) for name, loss in LOSSES.items()),
        *((names, name in losses.all()) for name, names in LOSSES.settings.items()),
        (("teacher_cache", "kd_teacher_hears", "kd_warmup_batches"), bool(losses.all())),
        (("kd_layers", "kd_branch"), layers),
        (("kd_layer_map",), layers and chooses_guides(distill)),
        (("kd_share_branches",), auxiliary or losses.predictor),
        (("kd_similarity_file",), layers and chooses_guides(distill) and distill.kd_layer_map == "similar"),
        (("kd_branch_heads", "kd_branch_feedforward_dim"), auxiliary),
        (("kd_apc_dim",), losses.predictor),
    ]
    read = {name for names, is_read in read_by if is_read for name in names}
    return {name for names, _ in read_by for name in names} - read


def check_time_warp(data: DataConfig, flag: str) -> None:
    """Raises UserError where SpecAugment would move the student's frames and not the teacher's."""
    if data.enable_spec_aug and data.spec_aug_time_warp_factor >= 1:
        raise UserError(
            "time warping moves the student's frames away from what the teacher hears",
            flag=flag,
            fix="give --spec-aug-time-warp-factor 0 (masks may stay)",
        )
