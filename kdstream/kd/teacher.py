"""The teacher: a trained model, frozen, that hears the whole utterance.

This module says what every teacher can be asked, and makes a teacher of a transducer.  Which checkpoint the flags
name, and of which type it is, stands in teachers.py.

Shapes: N batch, T frames, S symbols, R symbols kept at a frame, V vocabulary, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.checkpoints.initial import weights_in_mode_of
from kdstream.checkpoints.store import check_finite
from kdstream.config.experiment import TOKENS_FILE, ExperimentConfig
from kdstream.config.sections import DataConfig
from kdstream.data.batch import Batch
from kdstream.data.tokenizer import UNKNOWN_PIECE, difference_of_tokens, read_tokens
from kdstream.decoding.greedy import GreedySearch
from kdstream.errors import UserError, option
from kdstream.kd.taps import TENSORS, Tap, Taps, TapShape, tap_shapes
from kdstream.models.presets import resolve
from kdstream.models.streaming import StreamingEncoder, pad_to_whole_chunks, padded_encoder_lens
from kdstream.models.transducer import Transducer, build_model

ENCODER_OUT = "encoder_out"  # among the names of layers, the encoder's output
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Heard(NamedTuple):
    """What a teacher makes of a batch.

    layers: the asked taps by name; frames beyond the batch's longest utterance may follow.
    encoder_out: (N, T, D) in 40 ms frames, likewise; None from a teacher that writes no tokens.
    """

    layers: dict[str, Tap]
    encoder_out: Tensor | None = None


class Teacher(ABC):
    """A frozen model that hears whole utterances.  A new kind of teacher needs `shapes` and `listen`.

    It is no nn.Module, so that it appears in no state dict, parameter list, `train()` or `to()` of its owner.

    needs_audio: it listens to the samples (Batch.audio), which training then reads beside the features.
    can_be_stored: a cache can hold what it hears, and it has `encoder_frames` and `state_dict`.
    settings: what the stored output depends on besides parameters and features, as JSON takes it.
    writes_tokens: it writes the tokens that the student learns.  Then token losses can use it, and it has `output_dim`,
      `lattice_logits` and `hypotheses`.
    gives_weights: a student may start from its weights, and it has `weights_for`.
    has_ctc: it writes them with a CTC head too, and has `ctc_log_probs`.
    shapes: of the layers that can be tapped, by name in running order.
    encoder: of a transducer; its layers can be branches.
    output_dim: width of its encoder's output.
    """

    needs_audio: ClassVar[bool] = False
    can_be_stored: ClassVar[bool] = False
    writes_tokens: bool = False
    gives_weights: bool = False
    has_ctc: bool = False
    settings: Mapping[str, Any] = {}
    shapes: dict[str, TapShape]
    encoder: StreamingEncoder
    output_dim: int

    @abstractmethod
    def listen(self, batch: Batch, layers: Iterable[str]) -> Heard:
        """What it makes of a batch, each utterance as if alone; `layers` names the wanted taps."""

    def check_cuts(self, cut_ids: Iterable[str]) -> None:
        """Raises UserError if there is a cut that it cannot listen to."""
        return  # a model that runs can listen to all

    def reader(self, wanted: Collection[tuple[str, str]]) -> Callable[[Batch], Tensor] | None:
        """What reads Batch.stored of training cuts in the processes that load them; None where it hears the batch.

        wanted: tensors by layer, e.g. ("1.0", "features"); (ENCODER_OUT, "features") is the encoder's output.
        """
        return None

    def stored_size(self, batch: Batch) -> int:
        """Numbers of an utterance in Batch.stored, where a `reader` has filled it."""
        raise NotImplementedError

    def lattice_logits(self, encoder_out: Tensor, tokens: Tensor, ranges: Tensor) -> Tensor:
        """Logits (N, T, R, V) at the symbols `ranges` (N, T, R) of a lattice of tokens (N, S)."""
        raise NotImplementedError

    def ctc_log_probs(self, encoder_out: Tensor) -> Tensor:
        """Log posteriors (N, T, V) of the CTC head."""
        raise NotImplementedError

    def hypotheses(self, encoder_out: Tensor, lens: Tensor) -> list[list[int]]:
        """The tokens that greedy search finds in (N, T, D) of lengths (N,) output frames; <unk> is none of them."""
        raise NotImplementedError

    def encoder_frames(self, feature_lens: Tensor) -> Tensor:
        """(N,) encoder frames (20 ms) that it makes of utterances of feature_lens (N,) feature frames (10 ms)."""
        raise NotImplementedError

    def check_layers(self) -> None:
        """Raises UserError if it has no `encoder` whose layers can be run alone."""
        raise UserError(
            "this teacher's layers cannot be run alone",
            flag=option("kd_branch", "teacher"),
            fix="give --kd-branch transformer, or a transducer as teacher",
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Its parameters by name; a cache is of the teacher that has the same ones."""
        raise NotImplementedError

    def weights_for(self, student: Transducer) -> dict[str, Tensor]:
        """Its parameters as those of a student.  Raises UserError where the student cannot take them."""
        raise NotImplementedError


class TransducerTeacher(Teacher):
    """A transducer of this project or of icefall.

    Args:
      model: on its device; frozen here.
    """

    can_be_stored = True
    writes_tokens = True
    gives_weights = True

    def __init__(self, model: Transducer) -> None:
        self.model = freeze(model)
        self.shapes, self.encoder = tap_shapes(model), model.encoder
        self.output_dim, self.has_ctc = model.encoder.output_dim, model.config.use_ctc

    def listen(self, batch: Batch, layers: Iterable[str]) -> Heard:
        features, lens, layers = batch.features, batch.feature_lens, list(layers)
        if not self.model.config.causal:
            return self.hear(features, lens, layers)
        # In full context a streaming model would hear where the batch ends, so each utterance runs up to its own end.
        ends = batch.host.feature_lens.tolist()
        return as_batch([self.hear(features[n : n + 1, :end], lens[n : n + 1], layers) for n, end in enumerate(ends)])

    @torch.no_grad()
    def hear(self, features: Tensor, feature_lens: Tensor, layers: Sequence[str]) -> Heard:
        """What it makes of features (N, T, F) of lengths (N,)."""
        taps = Taps(layers)
        padded = pad_to_whole_chunks(features, feature_lens, self.model.max_downsampling)
        encoder_out, _, _ = self.model.encode(*padded, taps=taps)
        return Heard({name: taps[name] for name in taps.names()}, encoder_out)

    @torch.no_grad()
    def lattice_logits(self, encoder_out: Tensor, tokens: Tensor, ranges: Tensor) -> Tensor:
        return self.model.lattice_logits(encoder_out, self.model.predict(tokens), ranges)

    @torch.no_grad()
    def ctc_log_probs(self, encoder_out: Tensor) -> Tensor:
        return self.model.ctc_output(encoder_out)

    @torch.no_grad()
    def hypotheses(self, encoder_out: Tensor, lens: Tensor) -> list[list[int]]:
        search = GreedySearch()
        state = search.advance(self.model, encoder_out, lens, search.start(self.model, len(lens)))
        return [result.tokens for result in state.results()]

    def check_layers(self) -> None:
        if type(self.encoder).run_layer is StreamingEncoder.run_layer:
            super().check_layers()
        if self.model.config.causal:
            raise UserError(
                "a streaming teacher's layers would hear where a batch ends",
                flag=option("kd_branch", "teacher"),
                fix="give --kd-branch transformer, or a teacher of --causal 0",
            )

    def encoder_frames(self, feature_lens: Tensor) -> Tensor:
        return padded_encoder_lens(feature_lens, self.model.max_downsampling)

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def weights_for(self, student: Transducer) -> dict[str, Tensor]:
        """A streaming student takes those of a full-context teacher as its own."""
        return weights_in_mode_of(student, self.model.state_dict(), self.model.config.causal, "--init-from-teacher 1")


def as_batch(parts: Sequence[Heard]) -> Heard:
    """One batch of what a teacher made of its parts, e.g. of utterances one by one."""
    if len(parts) == 1:
        return parts[0]
    layers = {}
    for name, first in parts[0].layers.items():
        taps = [heard.layers[name] for heard in parts]
        tensors = {field: batched([getattr(tap, field) for tap in taps]) for field in TENSORS}
        layers[name] = Tap(**tensors, lens=torch.cat([tap.lens for tap in taps]), stride=first.stride)
    encoder_outs = [heard.encoder_out for heard in parts if heard.encoder_out is not None]
    return Heard(layers, batched(encoder_outs) if encoder_outs else None)


def batched(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (N, T, D), of which T differs, as one, with zeros behind the shorter ones."""
    longest = max(tensor.size(1) for tensor in tensors)
    return torch.cat([F.pad(tensor, (0, 0, 0, longest - tensor.size(1))) for tensor in tensors])


def build_teacher(
    whose: str,
    config: ExperimentConfig,
    state_dict: dict[str, Tensor],
    student: ExperimentConfig,
    device: torch.device,
    same_tokens: bool,
) -> TransducerTeacher:
    """Makes a teacher of a transducer's config and parameters, on `device`.

    Args:
      whose: the flag that names it, for errors.
      config: the teacher's; its model and its bpe_model are looked at.
      state_dict: its (averaged) parameters.
      student: the student's; both must read the same features.
      same_tokens: both must write the same tokens.
    Raises:
      UserError: other features, other tokens, or parameters that do not fit the teacher's config.
    """
    check_same_features(whose, config, student)
    model = build_model(resolve(config.model))
    if same_tokens:
        check_same_tokens(whose, config, student)
        tokens = read_tokens(tokens_path(student.data))
        model.unk_id = tokens.index(UNKNOWN_PIECE) if UNKNOWN_PIECE in tokens else None
    try:
        model.load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"the checkpoint does not fit what is known of its model ({' '.join(str(error).split())[:300]})",
            flag=whose,
            fix="use checkpoint and config.json of one training, or see --teacher-model",
        ) from error
    check_finite(state_dict, whose)
    return TransducerTeacher(freeze(model).to(device))


def start_from_teacher(student: Transducer, teacher: Teacher) -> None:
    """Gives the student the teacher's weights.

    Raises:
      UserError: the two are of different shape, or the teacher streams and the student does not.
    """
    try:
        student.load_state_dict(teacher.weights_for(student), strict=True)
    except RuntimeError as error:
        raise UserError(
            f"teacher and student differ in shape ({' '.join(str(error).split())[:300]})",
            flag="--init-from-teacher 1",
            fix="train both with one --encoder and --preset and the same heads, or give --init-from-teacher 0",
        ) from error


def freeze(model: AnyModule) -> AnyModule:
    """Eval mode, for good, and no gradients."""
    return model.eval().requires_grad_(False)


def check_same_features(whose: str, teacher: ExperimentConfig, student: ExperimentConfig) -> None:
    """Raises UserError if the two read features of different size."""
    if teacher.model.feature_dim != student.model.feature_dim:
        raise UserError(
            f"the teacher reads {teacher.model.feature_dim} mel bins, the student {student.model.feature_dim}",
            flag=whose,
            fix="train both on the same features",
        )


def check_same_tokens(whose: str, teacher: ExperimentConfig, student: ExperimentConfig) -> None:
    """Raises UserError if the two do not write the same tokens in the same order."""
    theirs = tokens_path(teacher.data)
    difference = difference_of_tokens(read_tokens(theirs), read_tokens(tokens_path(student.data)))
    if difference:
        raise UserError(
            f"the teacher has another vocabulary ({theirs}: {difference})",
            flag=whose,
            fix="train teacher and student with one --bpe-model, or distil from layers alone",
        )


def tokens_path(data: DataConfig) -> Path:
    """tokens.txt beside the sentencepiece model."""
    return Path(data.bpe_model).with_name(TOKENS_FILE)
