"""Distiller: a frozen full-context teacher, the branches, and the losses between them.

One training step:

    taps = distiller.student_taps()
    losses = student(batch.features, ..., taps=taps)                # the student, streaming
    losses.update(distiller(batch, taps))                           # the teacher, full context
    weights = distiller.weights(batch_idx)                          # of the distiller's losses

The student knows nothing of all this: drop the distiller and what remains is the model to be deployed.
Which losses there are stands in loss_table.py.

Shapes: N batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from kdstream.config.distillation import DistillConfig
from kdstream.data.batch import Batch
from kdstream.errors import UserError, option
from kdstream.kd.branches import (
    AuxiliaryBranch,
    AuxiliaryLayer,
    DirectBranch,
    FuturePredictor,
    TeacherBranch,
)
from kdstream.kd.layer_map import LayerPair, pair_layers
from kdstream.kd.loss_table import (
    ComparedCtc,
    ComparedLattices,
    ComparedLayers,
    LatticeLoss,
    LayerLoss,
    computed_losses,
    logged_as,
    scale_of,
)
from kdstream.kd.taps import TENSORS, Taps, tap_shapes
from kdstream.kd.teacher import ENCODER_OUT, Heard, Teacher, as_batch
from kdstream.kd.token_shift import mean_shift
from kdstream.models.transducer import Transducer
from kdstream.units import ENCODER_FRAME_MS, FEATURE_FRAMES_PER_OUTPUT_FRAME, OUTPUT_FRAME_MS

TEACHERS_LAYERS = ("teacher", "teacher-copy")  # of --kd-branch


class Distiller(nn.Module):
    """Owns one branch per pair of layers; holds teacher and student without owning them.

    A loss whose scale is 0 is left out, and so is a part of the branches that no remaining loss needs;
    the feature distance is reported whenever there is an auxiliary layer.

    scales: the weights of the losses that are computed, by the names under which they are logged.
    read_stored: what the processes that load data read beside a batch; None where the teacher hears the batch.

    Raises:
      UserError: layers that cannot be paired, head counts that do not divide the widths, or no loss at all.
    """

    def __init__(self, config: DistillConfig, student: Transducer, teacher: Teacher) -> None:
        super().__init__()
        self.config = config
        self.teacher = teacher
        self._student = (student,)  # in a tuple, where nn.Module does not look
        self.losses = computed_losses(config)
        if config.kd_branch in TEACHERS_LAYERS and self.losses.auxiliary_layer:
            teacher.check_layers()
        self.scales = {logged_as(name): config.loss_scales[name] for name in self.losses.all()}
        for name, loss in self.losses.of_lattice.items():
            loss.compares.check(option(scale_of(name)), student, teacher)
        self.pairs: list[LayerPair] = []
        if self.losses.of_layers:
            self.pairs = pair_layers(config, tap_shapes(student), teacher.shapes)
        for loss in self.losses.of_layers.values():
            if loss.check is not None:
                for pair in self.pairs:
                    loss.check(config, pair)
        self.read_stored = teacher.reader(self.what_losses_read())
        self.branches = nn.ModuleList(self.build_branches())
        if config.kd_layer_map == "learned" and self.pairs:
            # equal to begin with; not zero, from where an optimiser that steps in proportion would not move
            self.pair_logits = nn.Parameter(torch.ones(len(self.pairs)))

    def what_losses_read(self) -> set[tuple[str, str]]:
        """The teacher's tensors; see `Teacher.reader`."""
        tensors = TENSORS if any(loss.attention for loss in self.losses.of_layers.values()) else TENSORS[:1]
        read = {(pair.teacher, tensor) for pair in self.pairs for tensor in tensors}
        return read | ({(ENCODER_OUT, "features")} if self.losses.of_lattice else set())

    def build_branches(self) -> list[nn.Module]:
        """One for each pair; with --kd-share-branches those of one width share their layer and predictor."""
        kind, reads_layer = self.config.kd_branch, self.losses.auxiliary_layer
        auxiliary = kind == "transformer" and reads_layer
        shared: dict[int, tuple[AuxiliaryLayer | None, FuturePredictor | None]] = {}
        branches: list[nn.Module] = []
        for pair in self.pairs:
            ours, theirs = pair.student_shape.features, pair.teacher_shape.features
            if theirs not in shared or not self.config.kd_share_branches:
                shared[theirs] = (self.build_layer(theirs) if auxiliary else None, self.build_predictor(theirs))
            layer, predictor = shared[theirs]
            if kind == "transformer":
                branches.append(AuxiliaryBranch(ours, theirs, layer, predictor))
            elif kind in TEACHERS_LAYERS and reads_layer:
                branches.append(self.build_teacher_branch(pair, predictor))
            else:
                branches.append(DirectBranch(ours, theirs, predictor))
        return branches

    def build_teacher_branch(self, pair: LayerPair, predictor: FuturePredictor | None) -> TeacherBranch:
        """Raises UserError where the student's frames are too long for the teacher's layer."""
        if pair.student_shape.stride > pair.teacher_shape.stride:
            raise UserError(
                f"the student's layer {pair.student} has longer frames than the teacher's {pair.teacher}",
                flag=option("kd_branch", self.config.kd_branch),
                fix="pair other layers with --kd-layers",
            )
        widths = pair.student_shape.features, pair.teacher_shape.features
        learned = self.config.kd_branch == "teacher-copy"
        return TeacherBranch(*widths, self.teacher.encoder, pair.teacher, learned, predictor)

    def build_layer(self, dim: int) -> AuxiliaryLayer:
        return AuxiliaryLayer(dim, self.config.kd_branch_heads, self.config.kd_branch_feedforward_dim)

    def build_predictor(self, dim: int) -> FuturePredictor | None:
        return FuturePredictor(dim, self.config.kd_apc_dim or dim) if self.losses.predictor else None

    @property
    def student(self) -> Transducer:
        return self._student[0]

    def student_taps(self) -> Taps:
        """What to pass to the student's forward; new for every batch."""
        compared = self.losses.compared
        return Taps((pair.student for pair in self.pairs), ComparedLattices in compared, ComparedCtc in compared)

    def weights(self, batch_idx: float) -> dict[str, float]:
        """Each loss's scale, risen linearly from 0 over --kd-warmup-batches."""
        return {name: self.config.risen(batch_idx) * scale for name, scale in self.scales.items()}

    @property
    def writer_of_tokens(self) -> Teacher | None:
        """The teacher, where there are losses on its posteriors."""
        return self.teacher if self.losses.of_lattice else None

    def listen(self, batch: Batch) -> Heard:
        """What the teacher makes of a batch, in all its views: of its clean features, where it has them."""
        with record_function("loss: teacher"):
            layers, views = {pair.teacher for pair in self.pairs}, len(batch.views())
            parts = [self.teacher.listen(each, layers) for each in batch.for_teacher(self.teacher.needs_audio)]
            return as_batch(parts * (views // len(parts)))

    def heard_by(self, teacher: Teacher, heard: Any) -> Heard:
        """Of what `listen` gave, that of one teacher."""
        return heard

    def forward(self, batch: Batch, student_taps: Taps, heard: Heard | None = None) -> dict[str, Tensor]:
        """The losses of a batch, unweighted, summed over layers and over the output frames of all views.

        With --kd-token-shift auto the chosen shifts are among them, as token_shift and ctc_shift; they have no weight.

        Args:
          batch: what the student was given.  Of two views each learns from the teacher.
          student_taps: filled by the student's forward pass on this batch.
          heard: what `listen` gave, where it was asked before.
        Returns:
          scalars by name.
        """
        heard = heard or self.listen(batch)
        output_frames = output_frames_of(batch.feature_lens).repeat(len(batch.views()))
        losses: dict[str, Tensor] = {}
        if self.pairs:
            pairs = self.compare_layers(heard, student_taps, output_frames)
            of_pairs = [[named(name, loss, pair) for name, loss in self.losses.of_layers.items()] for pair in pairs]
            weights = self.pair_weights()
            for name, of_loss in zip(self.losses.of_layers, zip(*of_pairs, strict=True), strict=True):
                losses[logged_as(name)] = (weights * torch.stack(of_loss)).sum()
        compared = {kind: self.compare_lattices(kind, heard, student_taps) for kind in self.losses.compared}
        for name, loss in self.losses.of_lattice.items():
            lattices = compared[loss.compares]
            losses[logged_as(name)] = named(name, loss, lattices)
            if "kd_token_shift" in loss.reads:
                losses.update(mean_shift(f"{name}_shift", lattices.shifted[1], output_frames))
        return losses

    def compare_layers(self, heard: Heard, student_taps: Taps, output_frames: Tensor) -> Iterator[ComparedLayers]:
        """What the losses between layers read, pair by pair; output_frames (N,) are the utterances' weights."""
        aligned = [pair.align(student_taps[pair.student], heard.layers[pair.teacher]) for pair in self.pairs]
        for branch, (student, teacher) in zip(self.branches, aligned, strict=True):
            yield ComparedLayers(self.config, student, teacher, branch(student), output_frames)

    def compare_lattices(self, kind: type[ComparedLattices], heard: Heard, student_taps: Taps) -> ComparedLattices:
        """What the losses of this kind read."""
        lattice, encoder_out = kind.recorded(student_taps), heard.encoder_out
        if lattice is None or encoder_out is None:
            raise ValueError("a loss on posteriors needs those of the student and a teacher that writes tokens")
        return kind(self.config, lattice, self.teacher, encoder_out, self.student.config.blank_id)

    def pair_weights(self) -> Tensor:
        """(pairs,): 1 each; with learned weights, for each layer of the student 1 in sum."""
        if self.config.kd_layer_map == "learned":
            return self.pair_logits.view(-1, len(self.teacher.shapes)).softmax(dim=1).flatten()
        return torch.ones(len(self.pairs), device=next(self.student.parameters()).device)


def check_shifts(config: DistillConfig, distiller: nn.Module | None, seconds: float) -> None:
    """Raises UserError where a shift is as long as the longest utterances, of `seconds`: its loss would always be 0.

    distiller: under one teacher or several; None without one.
    """
    members = [] if distiller is None else [module for module in distiller.modules() if isinstance(module, Distiller)]
    read = {setting for member in members for loss in member.losses.all().values() for setting in loss.reads}
    if config.mode_consistency_scale > 0:
        read.add("kd_token_shift")
    stride = max((pair.stride for member in members for pair in member.pairs), default=0)
    for setting, frame in (("kd_token_shift", OUTPUT_FRAME_MS), ("kd_apc_shift", stride * ENCODER_FRAME_MS)):
        shift = getattr(config, setting)
        if setting in read and isinstance(shift, int) and shift * frame >= 1000 * seconds:
            raise UserError(
                f"frames of {frame} ms leave nothing to compare in utterances of at most {seconds:g} s",
                flag=option(setting, shift),
                fix="lower it",
            )


def named(name: str, loss: LayerLoss | LatticeLoss, compared: Any) -> Tensor:
    """The loss of what is compared, under its name in a profile."""
    with record_function(f"loss: {name}"):
        return loss.compute(compared)


def output_frames_of(feature_lens: Tensor) -> Tensor:
    """(N,) frames of 40 ms from feature frames of 10 ms, counted as the transducer losses are logged."""
    return torch.div(feature_lens, FEATURE_FRAMES_PER_OUTPUT_FRAME, rounding_mode="floor")
