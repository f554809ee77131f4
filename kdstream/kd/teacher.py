"""The teacher: a trained model, frozen, that hears the whole utterance.

Which checkpoint it comes from is the training loop's affair; here a state dict becomes a model that
no optimiser, no schedule and no mode switch can change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List

import torch
from torch import Tensor

from kdstream.config import DataConfig, ExperimentConfig, UserError
from kdstream.models.presets import resolve
from kdstream.models.transducer import Transducer, build_model

TOKENS_FILE = "tokens.txt"


def load_teacher(
    config: ExperimentConfig, state_dict: Dict[str, Tensor], student: ExperimentConfig, device: torch.device
) -> Transducer:
    """Builds the teacher in eval mode, without gradients, on `device`.

    Args:
      config: the teacher's, from the config.json in its exp-dir.
      state_dict: its (averaged) parameters.
      student: the student's; features and tokens must be the same.
    Raises:
      UserError: other features, other tokens, or parameters that do not fit the teacher's config.
    """
    exp_dir = student.distill.teacher_exp_dir
    check_same_features(config, student)
    check_same_tokens(config, student)
    teacher = build_model(resolve(config.model))
    try:
        teacher.load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"--teacher-exp-dir {exp_dir}: the checkpoint does not fit its config.json "
            f"({' '.join(str(error).split())[:300]}); use the checkpoints and the config.json of one training"
        ) from error
    return freeze(teacher).to(device)


def freeze(model: Transducer) -> Transducer:
    """Eval mode, for good, and no gradients."""
    return model.eval().requires_grad_(False)


def check_same_features(teacher: ExperimentConfig, student: ExperimentConfig) -> None:
    """Raises UserError if the two read features of different size."""
    if teacher.model.feature_dim != student.model.feature_dim:
        raise UserError(
            f"--teacher-exp-dir {student.distill.teacher_exp_dir}: the teacher reads {teacher.model.feature_dim} "
            f"mel bins, the student {student.model.feature_dim}; train both on the same features"
        )


def check_same_tokens(teacher: ExperimentConfig, student: ExperimentConfig) -> None:
    """Raises UserError if the two do not write the same tokens in the same order."""
    ours, theirs = read_tokens(student.data), read_tokens(teacher.data)
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        difference = f"it has {len(theirs)} tokens, the student {len(ours)}"
    else:
        index = next(i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1])
        difference = f"its token {index} is {theirs[index]!r}, the student's {ours[index]!r}"
    raise UserError(
        f"--teacher-exp-dir {student.distill.teacher_exp_dir}: the teacher has another vocabulary "
        f"({tokens_path(teacher.data)}: {difference}); train teacher and student with one --bpe-model"
    )


def tokens_path(data: DataConfig) -> Path:
    """tokens.txt beside the sentencepiece model."""
    return Path(data.bpe_model).with_name(TOKENS_FILE)


def read_tokens(data: DataConfig) -> List[str]:
    """The lines "token id" of tokens.txt, sorted by id.  Raises UserError if there is no such file."""
    path = tokens_path(data)
    if not path.is_file():
        raise UserError(f"{path}: no such file; it belongs beside --bpe-model, where prepare.sh writes it")
    lines = [line.rsplit(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [token for token, _ in sorted(lines, key=lambda line: int(line[-1]))]
