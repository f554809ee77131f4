"""The table of distillation losses: what each computes, what it needs, and which flags it reads.

A loss called NAME has the flag --kd-NAME-scale, is logged and plotted as NAME_loss (see `logged_as`), and stands as
NAME in the method of a result record.  One entry adds one:

    LOSSES.add("my", LayerLoss(my_loss, auxiliary_layer=True), kd_my_scale=flag(0.0, "Weight of my loss.", minimum=0))

Shapes: N batch, T tap frames or output frames, D width, R symbols kept at a frame, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from kdstream.config.distillation import DistillConfig
from kdstream.config.flags import flags_of
from kdstream.config.registry import Registry
from kdstream.errors import UserError, option
from kdstream.kd.branches import BranchOutput
from kdstream.kd.layer_map import LayerPair
from kdstream.kd.losses import apc_loss, feature_loss, frame_weights, relation_loss
from kdstream.kd.taps import Lattice, Tap, Taps
from kdstream.kd.teacher import Teacher
from kdstream.kd.token_losses import Shift, token_loss
from kdstream.kd.token_shift import shifted_logits
from kdstream.models.transducer import Transducer


class ComparedLayers(NamedTuple):
    """What a loss between layers compares: one pair of layers at one frame rate, on one batch.

    student, teacher: taps of equal stride and length; features (N, T, D_S) and (N, T, D_T).
    branch: what the branch makes of the student's tap; z and r are of the teacher's width.
    output_frames: (N,) output frames (40 ms) of the utterances.
    """

    config: DistillConfig
    student: Tap
    teacher: Tap
    branch: BranchOutput
    output_frames: Tensor

    def frame_weights(self) -> Tensor:
        """(N, T), see `losses.frame_weights`: with them a loss is a sum over output frames."""
        return frame_weights(self.student.lens, self.student.features.size(1), self.output_frames)


@dataclass(frozen=True)
class ComparedLattices:
    """What a loss on the lattice compares, on one batch.  The subclasses compare other posteriors of the same shape.

    student: the student's lattice; its logits (N, T, R, V) carry the gradient.
    teacher: writes the same tokens as the student.
    encoder_out: (N, at least T, D), the teacher's.
    blank: id of the blank.
    """

    config: DistillConfig
    student: Lattice
    teacher: Teacher
    encoder_out: Tensor
    blank: int

    @property
    def agreement(self) -> tuple[bool, float]:
        """Of what --kd-token-shift auto compares: whether three classes alone, and the temperature."""
        return self.config.kd_token_form == "collapsed", self.config.kd_token_temperature

    def teacher_logits(self, encoder_out: Tensor, symbols: Tensor) -> Tensor:
        """The teacher's logits (N, T, R, V) of its frames encoder_out (N, T, D), after `symbols` (N, T, R)."""
        return self.teacher.lattice_logits(encoder_out, self.student.tokens, symbols)

    @cached_property
    def shifted(self) -> tuple[Tensor, Shift]:
        """The teacher's logits (N, T, R, V) at the student's cells, as --kd-token-shift says, and that shift."""
        at = self.encoder_out, self.student, self.config.kd_token_shift, self.blank
        return shifted_logits(self.teacher_logits, *at, *self.agreement)

    @staticmethod
    def recorded(taps: Taps) -> Lattice | None:
        """What the student's taps have of it."""
        return taps.lattice

    @staticmethod
    def check(flag: str, student: Transducer, teacher: Teacher) -> None:
        """Raises UserError where one of the two has nothing to compare; `flag` asks for it."""
        if not teacher.writes_tokens:
            raise UserError("this teacher writes no tokens", flag=flag, fix="distil from its layers alone")


class ComparedCtc(ComparedLattices):
    """What a loss on CTC posteriors compares: one cell a frame (R = 1), as there are no symbols to wait for."""

    @property
    def agreement(self) -> tuple[bool, float]:
        return False, 1.0

    def teacher_logits(self, encoder_out: Tensor, symbols: Tensor) -> Tensor:
        return self.teacher.ctc_log_probs(encoder_out).unsqueeze(2)

    @staticmethod
    def recorded(taps: Taps) -> Lattice | None:
        return taps.ctc

    @staticmethod
    def check(flag: str, student: Transducer, teacher: Teacher) -> None:
        ComparedLattices.check(flag, student, teacher)
        if not student.config.use_ctc:
            raise UserError("the student has no CTC head", flag=flag, fix=f"give {option('use_ctc', 1)}")
        if not teacher.has_ctc:
            fix = f"train it with {option('use_ctc', 1)}, or leave the flag out"
            raise UserError("the teacher has no CTC head", flag=flag, fix=fix)


@dataclass(frozen=True)
class LayerLoss:
    """A loss between layers.

    compute: of one pair; a scalar, summed over the batch's output frames.
    auxiliary_layer, predictor: the parts of the branch whose output it reads; what no loss reads is not built.
    reads: the settings that it reads, besides its scale.
    check: raises UserError where the flags do not fit a pair of layers.
    attention: whether it reads the teacher's queries, keys and values.
    """

    compute: Callable[[ComparedLayers], Tensor]
    auxiliary_layer: bool = False
    predictor: bool = False
    reads: tuple[str, ...] = ()
    check: Callable[[DistillConfig, LayerPair], None] | None = None
    attention: bool = True


@dataclass(frozen=True)
class LatticeLoss:
    """A loss on the student's posteriors; it needs a teacher that writes the student's tokens.

    compute: a scalar, summed over the batch's output frames.
    compares: on which posteriors: those of the pruned lattice, or of the CTC head.
    reads: the settings that it reads, besides its scale.
    check: raises UserError where the flags do not fit --rnnt-type.
    """

    compute: Callable[[ComparedLattices], Tensor]
    compares: type[ComparedLattices] = ComparedLattices
    reads: tuple[str, ...] = ()
    check: Callable[[DistillConfig, str], None] | None = None


def scale_of(name: str) -> str:
    """The setting that weighs the loss."""
    return f"kd_{name}_scale"


def logged_as(name: str) -> str:
    """The loss in logs: NAME_loss; but ctc_loss is that of the student on the transcript."""
    return f"kd_{name}_loss" if name == "ctc" else f"{name}_loss"


class LossTable(Registry[LayerLoss | LatticeLoss]):
    """Losses by name; each has a setting kd_NAME_scale, in DistillConfig or brought along."""

    def add(self, name: str, entry: LayerLoss | LatticeLoss, **flags: Any) -> LayerLoss | LatticeLoss:
        if scale_of(name) not in {*flags, *(item.name for item in flags_of(DistillConfig))}:
            raise ValueError(f"loss {name}: has no weight; bring the setting {scale_of(name)} along")
        return super().add(name, entry, **flags)


LOSSES = LossTable("kd-NAME-scale", lambda: DistillConfig)


class Losses(NamedTuple):
    """Losses by name, in the order of their flags."""

    of_layers: dict[str, LayerLoss]
    of_lattice: dict[str, LatticeLoss]

    @property
    def compared(self) -> set[type[ComparedLattices]]:
        """What the losses `of_lattice` compare."""
        return {loss.compares for loss in self.of_lattice.values()}

    @property
    def auxiliary_layer(self) -> bool:
        """Whether a loss reads an auxiliary layer's output."""
        return any(loss.auxiliary_layer for loss in self.of_layers.values())

    @property
    def predictor(self) -> bool:
        """Whether a loss reads a predictor's output."""
        return any(loss.predictor for loss in self.of_layers.values())

    def all(self) -> dict[str, LayerLoss | LatticeLoss]:
        return {**self.of_layers, **self.of_lattice}


def wanted_losses(config: DistillConfig) -> Losses:
    """The losses whose scale is not 0.  Raises UserError for the scale of a loss that is not in the table."""
    return _in_order(config, {name for name, scale in config.loss_scales.items() if scale > 0})


def computed_losses(config: DistillConfig) -> Losses:
    """The losses that are wanted, and the feature distance where there is an auxiliary layer: it is always reported.

    Raises:
      UserError: a loss that is not in the table, or none at all.
    """
    wanted = wanted_losses(config)
    if not wanted.all():
        flags = ", ".join(option(scale_of(name)) for name in config.loss_scales)
        raise UserError("all 0 with a teacher", flag=flags, fix="raise one (and --teacher-scales), or name no teacher")
    if config.kd_branch != "none" and wanted.auxiliary_layer:
        wanted = _in_order(config, {*wanted.all(), "feature"})
    return wanted


def _in_order(config: DistillConfig, names: set[str]) -> Losses:
    losses = Losses({}, {})
    for name in filter(names.__contains__, config.loss_scales):
        if name not in LOSSES:
            raise UserError(
                "there is no such loss here",
                flag=option(scale_of(name), config.loss_scales[name]),
                fix="import the module that adds it, or give 0",
            )
        loss = LOSSES[name]
        if isinstance(loss, LayerLoss):
            losses.of_layers[name] = loss
        else:
            losses.of_lattice[name] = loss
    return losses


def built(*parts: Tensor | None) -> list[Tensor]:
    """Parts of a branch that a loss reads.  Raises ValueError for one that was not built."""
    there = [part for part in parts if part is not None]
    if len(there) < len(parts):
        raise ValueError("the branch lacks a part that the loss reads; its entry in LOSSES must name the part")
    return there


def _feature(pair: ComparedLayers) -> Tensor:
    (z,) = built(pair.branch.z)
    return feature_loss(pair.teacher.features, z, pair.frame_weights(), pair.config.kd_distance)


def _relation(pair: ComparedLayers) -> Tensor:
    teacher, branch = pair.teacher, pair.branch
    ours = built(branch.query, branch.key, branch.value)
    theirs = (teacher.query, teacher.key, teacher.value)
    return relation_loss(theirs, ours, pair.frame_weights(), pair.config.kd_relation_heads)


def _apc(pair: ComparedLayers) -> Tensor:
    (r,) = built(pair.branch.r)
    lens, shift = pair.student.lens, pair.config.kd_apc_shift
    return apc_loss(pair.teacher.features, r, lens, pair.output_frames, shift, pair.config.kd_distance)


def _token(lattices: ComparedLattices) -> Tensor:
    config, student, (teacher, shift) = lattices.config, lattices.student, lattices.shifted
    form, temperature = config.kd_token_form, config.kd_token_temperature
    return token_loss(teacher, student.logits, student, lattices.blank, form, temperature, shift)


def _ctc(posteriors: ComparedLattices) -> Tensor:
    student, (teacher, shift) = posteriors.student, posteriors.shifted
    return token_loss(teacher, student.logits, student, posteriors.blank, "full", 1.0, shift)


def check_relation_heads(config: DistillConfig, pair: LayerPair) -> None:
    """Raises UserError unless --kd-relation-heads divides every width that it re-splits."""
    heads, ours, theirs = config.kd_relation_heads, pair.student_shape, pair.teacher_shape
    widths = {f"teacher's layer {pair.teacher}": [theirs.query, theirs.key, theirs.value]}
    if config.kd_branch == "none":
        widths[f"student's layer {pair.student}"] = [ours.query, ours.key, ours.value]
    elif config.kd_branch == "transformer":
        widths[f"teacher's layer {pair.teacher}"].append(theirs.features)  # of the auxiliary layer's
    for whose, sizes in widths.items():
        if any(size % heads for size in sizes):
            raise UserError(
                f"does not divide the query, key, value and layer widths {', '.join(map(str, sizes))} of the {whose}",
                flag=option("kd_relation_heads", heads),
                fix="choose a number that divides all of them",
            )


def check_token_form(config: DistillConfig, rnnt_type: str) -> None:
    """Raises UserError where --kd-token-form one-best meets another lattice than the regular one."""
    if rnnt_type != "regular" and config.kd_token_form == "one-best":
        raise UserError(
            "the one best path is that of the regular lattice alone",
            flag=f"{option('rnnt_type', rnnt_type)} {option('kd_token_form', 'one-best')}",
            fix="drop one of the two",
        )


LOSSES.add("feature", LayerLoss(_feature, auxiliary_layer=True, reads=("kd_distance",), attention=False))
LOSSES.add(
    "relation", LayerLoss(_relation, auxiliary_layer=True, reads=("kd_relation_heads",), check=check_relation_heads)
)
LOSSES.add("apc", LayerLoss(_apc, predictor=True, reads=("kd_apc_shift", "kd_distance"), attention=False))
LOSSES.add(
    "token",
    LatticeLoss(_token, reads=("kd_token_form", "kd_token_temperature", "kd_token_shift"), check=check_token_form),
)
LOSSES.add("ctc", LatticeLoss(_ctc, ComparedCtc, reads=("kd_token_shift",)))
