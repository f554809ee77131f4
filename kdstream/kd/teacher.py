"""The teacher: a trained model, frozen, that hears the whole utterance.

Which checkpoint it comes from is training/teachers.py's affair; here a state dict becomes a model that
no optimiser, no schedule and no mode switch can change, and what it says to a batch.

Shapes: N batch, T frames, S symbols, R symbols kept at a frame, V vocabulary, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kdstream.config.experiment import TOKENS_FILE, ExperimentConfig
from kdstream.config.sections import DataConfig
from kdstream.data.batch import Batch
from kdstream.errors import UserError
from kdstream.kd.taps import TENSORS, Tap, Taps, TapShape, tap_shapes
from kdstream.models.presets import resolve
from kdstream.models.streaming import pad_to_whole_chunks
from kdstream.models.transducer import Transducer, build_model

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Heard(NamedTuple):
    """What a teacher makes of a batch.

    layers: the asked taps by name; frames beyond the batch's longest utterance may follow.
    encoder_out: (N, T, D) in 40 ms frames, likewise; None from a teacher that writes no tokens.
    """

    layers: dict[str, Tap]
    encoder_out: Tensor | None = None


class Teacher(ABC):
    """A frozen model that hears whole utterances.  Another kind of teacher is another `shapes` and `listen`.

    No nn.Module: it appears in no state dict, parameter list, `train()` or `to()` of who holds it.

    shapes: of the layers that can be tapped, by name in running order.
    """

    shapes: dict[str, TapShape]

    @abstractmethod
    def listen(self, batch: Batch, layers: Iterable[str]) -> Heard:
        """What it makes of a batch, each utterance as if alone; `layers` names the wanted taps."""


class TransducerTeacher(Teacher):
    """A transducer, ours or icefall's.

    Args:
      model: on its device; frozen here.
    """

    def __init__(self, model: Transducer) -> None:
        self.model = freeze(model)
        self.shapes = tap_shapes(model)

    def listen(self, batch: Batch, layers: Iterable[str]) -> Heard:
        features, lens, layers = batch.features, batch.feature_lens, list(layers)
        if not self.model.config.causal:
            return self.hear(features, lens, layers)
        # A streaming one in full context would hear where the batch ends: each up to its own end.
        alone = [self.hear(features[n : n + 1, :end], lens[n : n + 1], layers) for n, end in enumerate(lens.tolist())]
        return together(alone)

    @torch.no_grad()
    def hear(self, features: Tensor, feature_lens: Tensor, layers: Sequence[str]) -> Heard:
        """What it makes of features (N, T, F) of lengths (N,)."""
        taps = Taps(layers)
        padded = pad_to_whole_chunks(features, feature_lens, self.model.max_downsampling)
        encoder_out, _, _ = self.model.encode(*padded, taps=taps)
        return Heard({name: taps[name] for name in taps.names()}, encoder_out)

    @torch.no_grad()
    def lattice_logits(self, encoder_out: Tensor, tokens: Tensor, ranges: Tensor) -> Tensor:
        """Logits (N, T, R, V) at the symbols `ranges` (N, T, R) of a lattice of tokens (N, S)."""
        return self.model.lattice_logits(encoder_out, tokens, ranges)


def together(alone: Sequence[Heard]) -> Heard:
    """As a batch what a transducer made of utterances one by one."""
    layers = {}
    for name, first in alone[0].layers.items():
        taps = [heard.layers[name] for heard in alone]
        tensors = {field: batched([getattr(tap, field) for tap in taps]) for field in TENSORS}
        layers[name] = Tap(**tensors, lens=torch.cat([tap.lens for tap in taps]), stride=first.stride)
    return Heard(layers, batched([heard.encoder_out for heard in alone]))


def batched(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (1, T, D) as one (N, T, D)."""
    return pad_sequence([tensor[0] for tensor in tensors], batch_first=True)


def load_teacher(
    whose: str, config: ExperimentConfig, state_dict: dict[str, Tensor], student: ExperimentConfig, device: torch.device
) -> Transducer:
    """Builds a transducer that is a teacher, on `device`.

    Args:
      whose: the flag that names it, for errors.
      config: the teacher's; its model and its bpe_model are looked at.
      state_dict: its (averaged) parameters.
      student: the student's; features must be the same, and tokens where they are compared.
    Raises:
      UserError: other features, other tokens, or parameters that do not fit the teacher's config.
    """
    check_same_features(whose, config, student)
    if student.distill.needs_tokens:
        check_same_tokens(whose, config, student)
    teacher = build_model(resolve(config.model))
    try:
        teacher.load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{whose}: the checkpoint does not fit what is known of its model ({' '.join(str(error).split())[:300]}); "
            "use checkpoint and config.json of one training, or see --teacher-model"
        ) from error
    return freeze(teacher).to(device)


def start_from_teacher(student: Transducer, teacher: Transducer) -> None:
    """Gives the student the teacher's weights; a streaming one takes those of a full-context one as its own.

    Raises:
      UserError: the two are of different shape, or the teacher streams and the student does not.
    """
    if teacher.config.causal and not student.config.causal:
        raise UserError("--init-from-teacher 1: a --causal 0 student cannot begin with a streaming teacher's weights")
    weights = teacher.state_dict()
    if student.config.causal and not teacher.config.causal:
        weights = teacher.encoder.streaming_parameters(weights)
    try:
        student.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"--init-from-teacher 1: teacher and student differ in shape ({' '.join(str(error).split())[:300]}); "
            "train both with one --encoder and --preset and the same heads, or give --init-from-teacher 0"
        ) from error


def freeze(model: AnyModule) -> AnyModule:
    """Eval mode, for good, and no gradients."""
    return model.eval().requires_grad_(False)


def check_same_features(whose: str, teacher: ExperimentConfig, student: ExperimentConfig) -> None:
    """Raises UserError if the two read features of different size."""
    if teacher.model.feature_dim != student.model.feature_dim:
        raise UserError(
            f"{whose}: the teacher reads {teacher.model.feature_dim} "
            f"mel bins, the student {student.model.feature_dim}; train both on the same features"
        )


def check_same_tokens(whose: str, teacher: ExperimentConfig, student: ExperimentConfig) -> None:
    """Raises UserError if the two do not write the same tokens in the same order."""
    ours, theirs = read_tokens(student.data), read_tokens(teacher.data)
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        difference = f"it has {len(theirs)} tokens, the student {len(ours)}"
    else:
        index = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
        difference = f"its token {index} is {theirs[index]!r}, the student's {ours[index]!r}"
    raise UserError(
        f"{whose}: the teacher has another vocabulary "
        f"({tokens_path(teacher.data)}: {difference}); train teacher and student with one --bpe-model, or "
        "distil from layers alone"
    )


def tokens_path(data: DataConfig) -> Path:
    """tokens.txt beside the sentencepiece model."""
    return Path(data.bpe_model).with_name(TOKENS_FILE)


def read_tokens(data: DataConfig) -> list[str]:
    """The lines "token id" of tokens.txt, sorted by id.  Raises UserError if there is no such file."""
    path = tokens_path(data)
    if not path.is_file():
        raise UserError(f"{path}: no such file; it belongs beside --bpe-model, where prepare.sh writes it")
    lines = [line.rsplit(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [token for token, _ in sorted(lines, key=lambda line: int(line[-1]))]
