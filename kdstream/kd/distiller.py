"""Distiller: a frozen full-context teacher, the branches, and the losses between them.

One training step:

    taps = distiller.student_taps()
    losses = student(batch.features, ..., taps=taps)                # the student, streaming
    losses.update(distiller(batch, taps))                           # the teacher, full context
    weights = distiller.weights(batch_idx)                          # of the distiller's losses

The student knows nothing of all this: drop the distiller and what remains is the model to be deployed.

    losses between layers       feature_loss, relation_loss, apc_loss        (losses.py)
    on the student's lattice    token_loss                                   (token_losses.py)

Shapes: N batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdstream.config.sections import DistillConfig
from kdstream.data.batch import Batch
from kdstream.errors import UserError
from kdstream.kd.branches import AuxiliaryBranch, AuxiliaryLayer, DirectBranch, FuturePredictor
from kdstream.kd.layer_map import LayerPair, pair_layers
from kdstream.kd.losses import apc_loss, feature_loss, frame_weights, relation_loss
from kdstream.kd.taps import Lattice, Tap, Taps, tap_shapes
from kdstream.kd.teacher import Heard, Teacher, TransducerTeacher
from kdstream.kd.token_losses import delayed, token_loss
from kdstream.models.transducer import Transducer

FEATURE_FRAMES_PER_OUTPUT_FRAME = 4
HIDDEN = {"feature_loss": "kd_feature_scale", "relation_loss": "kd_relation_scale", "apc_loss": "kd_apc_scale"}
SCALES = {**HIDDEN, "token_loss": "kd_token_scale"}  # the flag of each loss


class Distiller(nn.Module):
    """Owns one branch per pair of layers; holds teacher and student without owning them.

    A loss whose scale is 0 is left out, and so is a part of the branches that no remaining loss needs;
    the feature distance is reported whenever there is an auxiliary layer.

    Raises:
      UserError: layers that cannot be paired, head counts that do not divide the widths, or no loss at all.
    """

    def __init__(self, config: DistillConfig, student: Transducer, teacher: Teacher) -> None:
        super().__init__()
        self.config = config
        self.teacher = teacher
        self._student = (student,)  # in a tuple, where nn.Module does not look
        self.scales = wanted_losses(config)
        if config.needs_tokens and not isinstance(teacher, TransducerTeacher):
            raise UserError("--kd-token-scale: this teacher writes no tokens; distil from its layers alone")
        self.pairs: list[LayerPair] = []
        if any(name in self.scales for name in HIDDEN):
            self.pairs = pair_layers(config, tap_shapes(student), teacher.shapes)
        if "relation_loss" in self.scales:
            for pair in self.pairs:
                check_relation_heads(config, pair)
        self.branches = nn.ModuleList(self.build_branches())
        if config.kd_layer_map == "learned" and self.pairs:
            # equal to begin with; not zero, from where an optimiser that steps in proportion would not move
            self.pair_logits = nn.Parameter(torch.ones(len(self.pairs)))

    def build_branches(self) -> list[nn.Module]:
        """One for each pair; with --kd-share-branches those of one width share their layer and predictor."""
        direct = self.config.kd_branch == "none"
        auxiliary = not direct and ("feature_loss" in self.scales or "relation_loss" in self.scales)
        shared: dict[int, tuple[AuxiliaryLayer | None, FuturePredictor | None]] = {}
        branches: list[nn.Module] = []
        for pair in self.pairs:
            ours, theirs = pair.student_shape.features, pair.teacher_shape.features
            if theirs not in shared or not self.config.kd_share_branches:
                shared[theirs] = (self.build_layer(theirs) if auxiliary else None, self.build_predictor(theirs))
            layer, predictor = shared[theirs]
            branches.append(
                DirectBranch(ours, theirs, predictor) if direct else AuxiliaryBranch(ours, theirs, layer, predictor)
            )
        return branches

    def build_layer(self, dim: int) -> AuxiliaryLayer:
        return AuxiliaryLayer(dim, self.config.kd_branch_heads, self.config.kd_branch_feedforward_dim)

    def build_predictor(self, dim: int) -> FuturePredictor | None:
        if "apc_loss" not in self.scales:
            return None
        return FuturePredictor(dim, self.config.kd_apc_dim or dim)

    @property
    def student(self) -> Transducer:
        return self._student[0]

    def student_taps(self) -> Taps:
        """What to pass to the student's forward; new for every batch."""
        return Taps(pair.student for pair in self.pairs)

    def weights(self, batch_idx: float) -> dict[str, float]:
        """Each loss's scale, risen linearly from 0 over --kd-warmup-batches."""
        warmup = self.config.kd_warmup_batches
        ramp = min(1.0, batch_idx / warmup) if warmup > 0 else 1.0
        return {name: ramp * scale for name, scale in self.scales.items()}

    def forward(self, batch: Batch, student_taps: Taps) -> dict[str, Tensor]:
        """The losses of a batch, unweighted, summed over layers and over the batch's output frames.

        Args:
          batch: what the student was given, or a clean version of it on the same time axis.
          student_taps: filled by the student's forward pass on this batch.
        Returns:
          scalars by name.
        """
        heard = self.teacher.listen(batch, {pair.teacher for pair in self.pairs})
        losses: dict[str, Tensor] = {}
        if self.pairs:
            losses.update(self.hidden_losses(heard, student_taps, output_frames_of(batch.feature_lens)))
        if "token_loss" in self.scales:
            losses["token_loss"] = self.token_loss(heard, student_taps.lattice)
        return losses

    def hidden_losses(self, heard: Heard, student_taps: Taps, output_frames: Tensor) -> dict[str, Tensor]:
        """The losses between layers, summed over the pairs; output_frames (N,) are the utterances' weights."""
        aligned = [pair.align(student_taps[pair.student], heard.layers[pair.teacher]) for pair in self.pairs]
        layers = [
            self.layer_losses(branch, *taps, output_frames) for branch, taps in zip(self.branches, aligned, strict=True)
        ]
        weights = self.pair_weights()
        return {name: (weights * torch.stack([layer[name] for layer in layers])).sum() for name in layers[0]}

    def pair_weights(self) -> Tensor:
        """(pairs,): 1 each; with learned weights, for each layer of the student 1 in sum."""
        if self.config.kd_layer_map == "learned":
            return self.pair_logits.view(-1, len(self.teacher.shapes)).softmax(dim=1).flatten()
        return torch.ones(len(self.pairs), device=next(self.student.parameters()).device)

    def layer_losses(self, branch: nn.Module, student: Tap, teacher: Tap, output_frames: Tensor) -> dict[str, Tensor]:
        """The losses of one pair, aligned."""
        config, lens = self.config, student.lens
        out = branch(student)
        weights = frame_weights(lens, student.features.size(1), output_frames)
        losses = {}
        if "feature_loss" in self.scales:
            losses["feature_loss"] = feature_loss(teacher.features, out.z, weights, config.kd_distance)
        if "relation_loss" in self.scales:
            losses["relation_loss"] = relation_loss(
                (teacher.query, teacher.key, teacher.value),
                (out.query, out.key, out.value),
                weights,
                config.kd_relation_heads,
            )
        if "apc_loss" in self.scales:
            losses["apc_loss"] = apc_loss(
                teacher.features, out.r, lens, output_frames, config.kd_apc_shift, config.kd_distance
            )
        return losses

    def token_loss(self, heard: Heard, lattice: Lattice) -> Tensor:
        """Token distillation on the student's lattice, by what the teacher heard --kd-token-shift frames before."""
        config, blank = self.config, self.student.config.blank_id
        form, temperature, shift = config.kd_token_form, config.kd_token_temperature, config.kd_token_shift
        encoder_out = delayed(heard.encoder_out[:, : lattice.ranges.size(1)], shift)
        teacher = self.teacher.lattice_logits(encoder_out, lattice.tokens, lattice.ranges)
        return token_loss(teacher, lattice.logits, lattice, blank, form, temperature, shift)


def loss_scales(config: DistillConfig) -> dict[str, float]:
    """The scale of every distillation loss, by name."""
    return {name: getattr(config, field) for name, field in SCALES.items()}


def wanted_losses(config: DistillConfig) -> dict[str, float]:
    """The scales of the losses that are computed, by name.  UserError if there are none."""
    scales = loss_scales(config)
    wanted = {name for name, scale in scales.items() if scale > 0}
    if not wanted:
        flags = ", ".join("--" + field.replace("_", "-") for field in SCALES.values())
        raise UserError(f"{flags}: all 0 with a teacher; raise one, or drop --teacher-exp-dir")
    if config.kd_branch == "transformer" and "relation_loss" in wanted:
        wanted.add("feature_loss")
    return {name: scale for name, scale in scales.items() if name in wanted}


def check_relation_heads(config: DistillConfig, pair: LayerPair) -> None:
    """Raises UserError unless --kd-relation-heads divides every width that it re-splits."""
    heads, ours, theirs = config.kd_relation_heads, pair.student_shape, pair.teacher_shape
    widths = {f"teacher's layer {pair.teacher}": [theirs.query, theirs.key, theirs.value]}
    if config.kd_branch == "none":
        widths[f"student's layer {pair.student}"] = [ours.query, ours.key, ours.value]
    else:
        widths[f"teacher's layer {pair.teacher}"].append(theirs.features)  # of the auxiliary layer's
    for whose, sizes in widths.items():
        if any(size % heads for size in sizes):
            raise UserError(
                f"--kd-relation-heads {heads}: does not divide the query, key, value and layer widths "
                f"{', '.join(map(str, sizes))} of the {whose}"
            )


def output_frames_of(feature_lens: Tensor) -> Tensor:
    """(N,) frames of 40 ms from feature frames of 10 ms, counted as the transducer losses are logged."""
    return torch.div(feature_lens, FEATURE_FRAMES_PER_OUTPUT_FRAME, rounding_mode="floor")
