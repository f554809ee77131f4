"""Auxiliary branches: the non-streaming layers that stand between student and teacher in training.

    s --projection--> p --auxiliary layer (full context)--> z    compared with the teacher's h_t, Q, K, V
                      p --unidirectional LSTM--> Linear --> r    predicts the teacher's h_{t+n}

A streaming layer cannot give what the teacher gives, because it has not heard the future.  The
auxiliary layer has: it attends over the whole utterance of streaming features, so its output can be
compared with the teacher's on equal terms, and its gradient tells the student which features help.
The branch is thrown away after training.  (arXiv 2308.16415; sizes and positions are ours.)

Shapes: N batch, T tap frames, D_S and D_T width of the student's and the teacher's layer, H heads, d head width.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdstream.errors import UserError, option
from kdstream.kd.losses import float32
from kdstream.kd.taps import Tap, padding_mask
from kdstream.models.in_blocks import at_least_float32
from kdstream.models.streaming import StreamingEncoder

MAX_DISTANCE = 64  # tap frames; farther keys share the bias of this distance


class BranchOutput(NamedTuple):
    """What a branch makes of a student's layer; None where the branch lacks the part.

    p: (N, T, D_T), the streaming features themselves, projected.
    z: (N, T, D_T), full-context; query, key, value: (N, T, a width), the auxiliary layer's own.
    r: (N, T, D_T), where r_t is made of the streaming features of frames <= t.
    """

    p: Tensor
    z: Tensor | None = None
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    r: Tensor | None = None


class AuxiliaryBranch(nn.Module):
    """Projection, auxiliary layer and predictor for one tapped layer.

    Args:
      student_dim, teacher_dim: D_S and D_T.
      layer: the auxiliary layer, of width D_T; None leaves it out.
      predictor: of width D_T; None leaves it out.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        layer: AuxiliaryLayer | None,
        predictor: FuturePredictor | None,
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(student_dim, teacher_dim)
        self.layer = layer
        self.predictor = predictor

    def forward(self, tap: Tap) -> BranchOutput:
        """tap: of the student's layer, its features (N, T, D_S) streaming."""
        p = self.projection(tap.features)
        output = BranchOutput(p)
        if self.layer is not None:
            z, query, key, value = self.layer(p, tap.lens)
            output = output._replace(z=z, query=query, key=key, value=value)
        if self.predictor is not None:
            # p, not z: z_t has heard the whole utterance, the frame to be predicted included.
            output = output._replace(r=self.predictor(p))
        return output


class DirectBranch(nn.Module):
    """No branch, for comparison: the student's streaming layer itself is held against the teacher's.

    Its features pass a projection only where the widths differ; queries, keys and values are its own.
    """

    def __init__(self, student_dim: int, teacher_dim: int, predictor: FuturePredictor | None) -> None:
        super().__init__()
        self.projection = projection(student_dim, teacher_dim)
        self.predictor = predictor

    def forward(self, tap: Tap) -> BranchOutput:
        """tap: of the student's layer."""
        p = self.projection(tap.features)
        return BranchOutput(p, p, tap.query, tap.key, tap.value, self.predictor(p) if self.predictor else None)


class TeacherBranch(nn.Module):
    """The teacher's own layer in the place of the student's: on what the student's layer is given, in full context.

    The layer is the teacher's: it is neither trained, nor counted, nor saved.  A copy that is learned begins as the
    teacher's layer; it stays in eval mode, for the layer's own dropout and schedules are over.  What the layer is
    given, and what the predictor reads, pass a projection only where the widths differ.

    Args:
      encoder: the teacher's.
      name: of the layer.
      learned: whether the branch has a copy.
      predictor: of width D_T; None leaves it out.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        encoder: StreamingEncoder,
        name: str,
        learned: bool,
        predictor: FuturePredictor | None,
    ) -> None:
        super().__init__()
        layer = encoder.layer(name)
        self.copy = copy.deepcopy(layer).requires_grad_() if learned else None
        self._lent = (encoder, layer)  # in a tuple, where nn.Module does not look
        self.inputs = projection(student_dim, teacher_dim)
        self.projection = projection(student_dim, teacher_dim if predictor is not None else student_dim)
        self.predictor = predictor

    def train(self, mode: bool = True) -> TeacherBranch:
        super().train(mode)
        if self.copy is not None:
            self.copy.eval()
        return self

    def forward(self, tap: Tap) -> BranchOutput:
        """tap: of the student's layer, with its inputs."""
        if tap.inputs is None:
            raise ValueError("the encoder recorded what its layer made, and not what it was given")
        encoder, layer = self._lent
        z, (query, key, value) = encoder.run_layer(self.copy or layer, self.inputs(tap.inputs), tap.lens)
        p = self.projection(tap.features)
        return BranchOutput(p, z, query, key, value, self.predictor(p) if self.predictor else None)


def projection(student_dim: int, teacher_dim: int) -> nn.Module:
    """From width to width, where they differ."""
    return nn.Identity() if student_dim == teacher_dim else nn.Linear(student_dim, teacher_dim)


class AuxiliaryLayer(nn.Module):
    """A pre-norm Transformer layer over the whole utterance; only padding is masked.

    x = p + Attention(LayerNorm(p)),   z = x + FeedForward(LayerNorm(x))

    Positions enter as a learned bias per head and distance, added to the attention scores.  Unlike
    sinusoids added to the input they leave Q, K and V free of position, as the teacher's are, so
    that the relation losses compare content with content.  No dropout: the targets are dense and
    the layer is thrown away.
    """

    def __init__(self, dim: int, heads: int, feedforward_dim: int) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(
                f"does not divide the teacher's layer width {dim}",
                flag=option("kd_branch_heads", heads),
                fix="choose a number that divides it",
            )
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, 3 * dim)
        # Not zero: an optimiser that steps in proportion to a tensor's size would hardly move it.
        self.distance_bias = nn.Parameter(0.02 * torch.randn(heads, 2 * MAX_DISTANCE + 1))
        self.out_proj = nn.Linear(dim, dim)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, feedforward_dim), nn.GELU(), nn.Linear(feedforward_dim, dim)
        )

    def forward(self, p: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p: (N, T, D); returns z, query, key, value, each (N, T, D)."""
        p = at_least_float32(p)  # under autocast too: the residual path, and what the norms read
        query, key, value = self.in_proj(self.attention_norm(p)).chunk(3, dim=-1)  # (N, T, D) each
        x = p + self.out_proj(self.attend(query, key, value, lens))
        return x + self.feedforward(x), query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, lens: Tensor) -> Tensor:
        """softmax(Q K^T / sqrt(d) + bias) V over the valid keys: (N, T, D)."""
        N, T, D = query.shape
        query, key, value = (x.view(N, T, self.heads, -1).transpose(1, 2) for x in (query, key, value))  # (N, H, T, d)
        scores = torch.matmul(query / math.sqrt(D // self.heads), key.transpose(2, 3))  # (N, H, T, T)
        scores += self.bias(T)
        scores.masked_fill_(padding_mask(lens, T)[:, None, None, :], torch.finfo(scores.dtype).min)
        return torch.matmul(scores.softmax(dim=-1), value).transpose(1, 2).reshape(N, T, D)

    def bias(self, frames: int) -> Tensor:
        """(H, T, T): what a head adds to the score of query i and key j, by their distance j - i."""
        distance = torch.arange(1 - frames, frames, device=self.distance_bias.device)  # (2T - 1,)
        by_distance = self.distance_bias[:, distance.clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE]
        return by_distance.unfold(1, frames, 1).flip(1)  # row i holds distances -i .. T - 1 - i


class FuturePredictor(nn.Module):
    """Autoregressive predictive coding: a unidirectional LSTM and a Linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, dim)

    def forward(self, p: Tensor) -> Tensor:
        """p: (N, T, D); returns r (N, T, D), r_t depending on p_0 .. p_t alone."""
        with float32(p):  # LSTMs in bfloat16 are missing on many CPUs
            hidden, _ = self.lstm(at_least_float32(p))
        return self.output(hidden)
