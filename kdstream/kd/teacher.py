"""The teacher: a trained model, frozen, that hears the whole utterance.

Which checkpoint it comes from is the training loop's affair; here a state dict becomes a model that
no optimiser, no schedule and no mode switch can change, and what it says to a batch.

Shapes: N batch, T frames, S symbols, R symbols kept at a frame, V vocabulary, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Sequence

import torch
from torch import Tensor

from kdstream.config import DataConfig, ExperimentConfig, UserError
from kdstream.kd.taps import Tap, Taps, TapShape, tap_shapes
from kdstream.models.presets import resolve
from kdstream.models.streaming import pad_to_whole_chunks
from kdstream.models.transducer import Transducer, build_model
from kdstream.models.zipformer_modules import streaming_parameters

TOKENS_FILE = "tokens.txt"


class Heard(NamedTuple):
    """What the teacher makes of a batch.

    layers: the asked taps by name; frames beyond the batch's longest utterance may follow.
    encoder_out: (N, T, D) in 40 ms frames, likewise.
    """

    layers: Dict[str, Tap]
    encoder_out: Tensor


class Teacher:
    """A frozen transducer that hears whole utterances.

    No nn.Module: it appears in no state dict, parameter list, `train()` or `to()` of who holds it.

    Args:
      model: from `load_teacher`, on its device.
    """

    def __init__(self, model: Transducer) -> None:
        self.model = freeze(model)
        self.shapes: Dict[str, TapShape] = tap_shapes(model)

    @torch.no_grad()
    def listen(self, features: Tensor, feature_lens: Tensor, layers: Iterable[str], cut_ids: Sequence[str]) -> Heard:
        """Encodes a batch, padded so that each utterance gives what it gives alone.

        Args:
          features: (N, T, F); feature_lens: (N,) in feature frames (10 ms).
          layers: names of the taps that are wanted.
          cut_ids: N names of the utterances; of use to a teacher that remembers them.
        """
        taps = Taps(layers)
        padded = pad_to_whole_chunks(features, feature_lens, self.model.max_downsampling)
        encoder_out, _, _ = self.model.encode(*padded, taps=taps)
        return Heard({name: taps[name] for name in taps.names()}, encoder_out)

    @torch.no_grad()
    def lattice_logits(self, encoder_out: Tensor, tokens: Tensor, ranges: Tensor) -> Tensor:
        """Logits (N, T, R, V) at the symbols `ranges` (N, T, R) of a lattice of tokens (N, S)."""
        return self.model.lattice_logits(encoder_out, self.model.predict(tokens), ranges)


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


def start_from_teacher(student: Transducer, teacher: Transducer) -> None:
    """Gives the student the teacher's weights; a streaming one takes those of a full-context one as its own.

    Raises:
      UserError: the two are of different shape.
    """
    weights = teacher.state_dict()
    if student.config.causal and not teacher.config.causal:
        weights = streaming_parameters(weights)
    try:
        student.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"--init-from-teacher 1: teacher and student differ in shape ({' '.join(str(error).split())[:300]}); "
            "train both with one --preset and the same heads, or give --init-from-teacher 0"
        ) from error


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
