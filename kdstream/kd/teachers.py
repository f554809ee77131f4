"""Which teacher the flags name: an experiment of ours, icefall's checkpoint, an encoder of torchaudio's, a cache."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from kdstream.checkpoints.average import CheckpointChoice, load_averaged
from kdstream.checkpoints.store import load_checkpoint, load_weights
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import flags_of
from kdstream.config.sections import DataConfig, DistillConfig
from kdstream.data.features import FBANK
from kdstream.errors import UserError
from kdstream.kd.icefall_checkpoint import model_of, weights_of
from kdstream.kd.speech_encoder import SpeechEncoderTeacher, load_speech_encoder
from kdstream.kd.teacher import Teacher, TransducerTeacher, load_teacher
from kdstream.kd.teacher_cache import CachedTeacher, fingerprint
from kdstream.models.transducer import Transducer

# Which teacher it is, and which of its weights.
TEACHER_FLAGS = (
    "teacher_exp_dir", "teacher_epoch", "teacher_avg", "teacher_use_averaged_model", "teacher_type",
    "teacher_checkpoint", "teacher_model", "teacher_bpe_model",
)  # fmt: skip
# What asks for a teacher; losses between layers do not, for features and prediction are on by default.
NEED_A_TEACHER = ("init_from_teacher", "teacher_cache", "kd_token_scale")


def find_teacher(config: ExperimentConfig, device: torch.device) -> Teacher | None:
    """The frozen teacher, live or from --teacher-cache; None where no flag names one.

    Raises:
      UserError: a teacher that is missing, damaged, or of another vocabulary; a cache of another teacher; an
        augmentation that moves the student's frames away from what the teacher hears.
    """
    distill = config.distill
    check_flags(distill, config.train.rnnt_type)
    if not distill.has_teacher:
        return None
    if distill.teacher_cache or distill.teacher_type == "torchaudio":
        check_time_warp(config.data, "--teacher-cache" if distill.teacher_cache else "--teacher-type torchaudio")
    if distill.teacher_type == "torchaudio":
        path = distill.teacher_checkpoint
        return SpeechEncoderTeacher(load_speech_encoder(distill.teacher_model, load_weights(path), path), device)
    model = ours(config, device) if distill.teacher_type == "kdstream" else icefalls(config, device)
    if distill.teacher_cache:
        clean = not (config.data.enable_spec_aug or config.data.enable_musan)
        return CachedTeacher(model, Path(distill.teacher_cache), fingerprint(model, FBANK.config.to_dict()), clean)
    return TransducerTeacher(model)


def without_cache(config: ExperimentConfig) -> ExperimentConfig:
    """The config of a teacher that listens itself: a cache holds the training cuts alone."""
    return replace(config, distill=replace(config.distill, teacher_cache=""))


def ours(config: ExperimentConfig, device: torch.device) -> Transducer:
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
    if teacher.model.causal and -1 not in teacher.model.chunk_size:
        logging.warning(
            f"--teacher-exp-dir {exp_dir}: a streaming model that was never trained in full context (--chunk-size "
            "without -1), in which it now teaches"
        )
    return load_teacher(f"--teacher-exp-dir {exp_dir}", teacher, weights, config, device)


def icefalls(config: ExperimentConfig, device: torch.device) -> Transducer:
    """The model in icefall's --teacher-checkpoint."""
    distill = config.distill
    path = distill.teacher_checkpoint
    checkpoint = load_checkpoint(path, bare=True)
    weights = weights_of(checkpoint)
    data = DataConfig(bpe_model=distill.teacher_bpe_model or config.data.bpe_model)
    teacher = ExperimentConfig(model=model_of(path, checkpoint, weights, distill.teacher_model), data=data)
    return load_teacher(f"--teacher-checkpoint {path}", teacher, weights, config, device)


def check_flags(distill: DistillConfig, rnnt_type: str) -> None:
    """Raises UserError unless the flags name one teacher, or none and ask nothing of it."""
    if distill.teacher_type != "kdstream" and (distill.teacher_exp_dir or not distill.teacher_checkpoint):
        raise UserError(f"--teacher-type {distill.teacher_type}: give --teacher-checkpoint, and no --teacher-exp-dir")
    if distill.teacher_type == "kdstream" and distill.teacher_checkpoint:
        raise UserError("--teacher-checkpoint: is of which kind? give --teacher-type icefall or torchaudio")
    if distill.teacher_type == "torchaudio" and (distill.teacher_cache or distill.init_from_teacher):
        raise UserError("--teacher-type torchaudio: goes neither with --teacher-cache nor with --init-from-teacher")
    for flag in () if distill.has_teacher else NEED_A_TEACHER:
        if getattr(distill, flag):
            raise UserError(f"--{flag.replace('_', '-')}: needs a teacher; give --teacher-exp-dir")
    if rnnt_type != "regular" and distill.kd_token_form == "one-best" and distill.kd_token_scale:
        raise UserError(
            f"--rnnt-type {rnnt_type}: --kd-token-form one-best knows the regular lattice alone; drop one of the two"
        )


def flags_without_effect(distill: DistillConfig) -> list[str]:
    """Names of the fields that are not at their defaults and that no other setting here makes anything read."""
    given = [item.name for item in flags_of(DistillConfig) if getattr(distill, item.name) != item.default]
    if not distill.has_teacher:
        return given
    kind = distill.teacher_type
    scales = (distill.kd_feature_scale, distill.kd_relation_scale, distill.kd_apc_scale, distill.kd_token_scale)
    features, relations, apc, tokens = (scale > 0 for scale in scales)
    layers = features or relations or apc
    has_auxiliary_layers = distill.kd_branch == "transformer" and (features or relations)
    read = {
        ("teacher_epoch", "teacher_avg", "teacher_use_averaged_model"): kind == "kdstream",
        ("teacher_model",): kind != "kdstream",
        ("teacher_bpe_model",): kind == "icefall",
        ("teacher_cache", "kd_warmup_batches"): layers or tokens,
        ("kd_layers", "kd_layer_map", "kd_branch"): layers,
        ("kd_share_branches",): has_auxiliary_layers or apc,
        ("kd_similarity_file",): layers and distill.kd_layer_map == "similar",
        ("kd_branch_heads", "kd_branch_feedforward_dim"): has_auxiliary_layers,
        ("kd_distance",): features or apc,
        ("kd_relation_heads",): relations,
        ("kd_apc_shift", "kd_apc_dim"): apc,
        ("kd_token_form", "kd_token_temperature", "kd_token_shift"): tokens,
    }
    unread = {name for names, is_read in read.items() if not is_read for name in names}
    return [name for name in given if name in unread]


def check_time_warp(data: DataConfig, flag: str) -> None:
    """Raises UserError where SpecAugment would move the student's frames and not the teacher's."""
    if data.enable_spec_aug and data.spec_aug_time_warp_factor >= 1:
        raise UserError(
            f"{flag}: time warping moves the student's frames away from what the teacher hears; give "
            "--spec-aug-time-warp-factor 0 (masks may stay)"
        )
