"""Distiller: a frozen full-context teacher, the branches, and the three losses between them.

One training step:

    taps = distiller.student_taps()
    losses = student(features, feature_lens, ..., taps=taps)         # the student, streaming
    losses.update(distiller(features, feature_lens, taps))           # the teacher, full context
    for name, weight in distiller.weights(batch_idx).items(): ...

The student knows nothing of all this: drop the distiller and what remains is the model to be deployed.
"""

from __future__ import annotations

from typing import Dict, List

import torch
from torch import Tensor, nn

from kdstream.config import DistillConfig, UserError
from kdstream.kd.branches import AuxiliaryBranch
from kdstream.kd.layer_map import LayerPair, pair_layers
from kdstream.kd.losses import apc_loss, feature_loss, frame_weights, relation_loss
from kdstream.kd.taps import Tap, Taps
from kdstream.models.transducer import Transducer

FEATURE_FRAMES_PER_OUTPUT_FRAME = 4


class Distiller(nn.Module):
    """Owns one branch per tapped layer; holds the teacher without owning it.

    The teacher is no submodule: it appears in no state dict, parameter list, `train()` or `to()`,
    so put it on its device first (`load_teacher` does).  A loss whose scale is 0 is left out, and
    so is a part of the branches that no remaining loss needs; the feature distance is reported
    whenever there is an auxiliary layer.

    Raises:
      UserError: layers that cannot be paired, or head counts that do not divide the widths.
    """

    def __init__(self, config: DistillConfig, student: Transducer, teacher: Transducer) -> None:
        super().__init__()
        self.config = config
        self._teacher = (teacher,)  # in a tuple, where nn.Module does not look
        self.pairs = pair_layers(config.kd_layers, student, teacher)
        scales = {
            "feature_loss": config.kd_feature_scale,
            "relation_loss": config.kd_relation_scale,
            "apc_loss": config.kd_apc_scale,
        }
        auxiliary = scales["feature_loss"] > 0 or scales["relation_loss"] > 0
        wanted = {name for name, scale in scales.items() if scale > 0} | ({"feature_loss"} if auxiliary else set())
        if not wanted:
            raise UserError(
                "--kd-feature-scale, --kd-relation-scale, --kd-apc-scale: all 0 with a teacher; "
                "raise one, or drop --teacher-exp-dir"
            )
        self.scales = {name: scale for name, scale in scales.items() if name in wanted}
        if "relation_loss" in wanted:
            for pair in self.pairs:
                self.check_relation_heads(pair)
        self.branches = nn.ModuleList(
            AuxiliaryBranch(
                pair.student_shape.features,
                pair.teacher_shape.features,
                heads=config.kd_branch_heads if auxiliary else 0,
                feedforward_dim=config.kd_branch_feedforward_dim,
                apc_dim=(config.kd_apc_dim or pair.teacher_shape.features) if "apc_loss" in wanted else 0,
            )
            for pair in self.pairs
        )

    @property
    def teacher(self) -> Transducer:
        return self._teacher[0]

    def student_taps(self) -> Taps:
        """What to pass to the student's forward; new for every batch."""
        return Taps(pair.student for pair in self.pairs)

    @torch.no_grad()
    def teacher_taps(self, features: Tensor, feature_lens: Tensor) -> Taps:
        """The teacher's layers, full context."""
        taps = Taps(pair.teacher for pair in self.pairs)
        self.teacher.encode(features, feature_lens, taps=taps)
        return taps

    def weights(self, batch_idx: float) -> Dict[str, float]:
        """Each loss's scale, risen linearly from 0 over --kd-warmup-batches."""
        warmup = self.config.kd_warmup_batches
        ramp = min(1.0, batch_idx / warmup) if warmup > 0 else 1.0
        return {name: ramp * scale for name, scale in self.scales.items()}

    def forward(self, features: Tensor, feature_lens: Tensor, student_taps: Taps) -> Dict[str, Tensor]:
        """The losses of a batch, unweighted, summed over layers and over the batch's output frames.

        Args:
          features: (N, T, F), what the student was given, or its clean version on the same time axis.
          feature_lens: (N,) in feature frames (10 ms).
          student_taps: filled by the student's forward pass on this batch.
        Returns:
          scalars by name: "feature_loss", "relation_loss", "apc_loss", those whose scale is not 0.
        """
        teacher_taps = self.teacher_taps(features, feature_lens)
        output_frames = output_frames_of(feature_lens)
        layers = [
            self.layer_losses(branch, student_taps[pair.student], teacher_taps[pair.teacher], output_frames)
            for branch, pair in zip(self.branches, self.pairs)
        ]
        return {name: torch.stack([layer[name] for layer in layers]).sum() for name in self.scales}

    def layer_losses(
        self, branch: AuxiliaryBranch, student: Tap, teacher: Tap, output_frames: Tensor
    ) -> Dict[str, Tensor]:
        """The losses of one tapped layer; output_frames (N,) are the utterances' weights."""
        config, lens = self.config, student.lens
        out = branch(student.features, lens)
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

    def check_relation_heads(self, pair: LayerPair) -> None:
        """Raises UserError unless --kd-relation-heads divides every width that it re-splits."""
        heads, teacher = self.config.kd_relation_heads, pair.teacher_shape
        widths: List[int] = [teacher.query, teacher.key, teacher.value, teacher.features]
        if any(width % heads for width in widths):
            raise UserError(
                f"--kd-relation-heads {heads}: does not divide the query, key, value and layer widths "
                f"{', '.join(map(str, widths))} of the teacher's layer {pair.teacher}"
            )


def output_frames_of(feature_lens: Tensor) -> Tensor:
    """(N,) frames of 40 ms from feature frames of 10 ms, counted as the transducer losses are logged."""
    return torch.div(feature_lens, FEATURE_FRAMES_PER_OUTPUT_FRAME, rounding_mode="floor")
