"""Layer map: which layer of the teacher guides which layer of the student.

Widths and frame rates are not read from an architecture's settings but seen in a short forward
pass, so that any encoder that records taps can be teacher or student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Sequence

import torch
from torch import nn

from kdstream.config import ENCODER_FRAME_MS, UserError
from kdstream.kd.taps import Tap, Taps
from kdstream.models.streaming import LOG_EPS, pad_to_whole_chunks

MIN_STRIDE = 2  # encoder frames; relation maps grow with T^2, so layers at the full rate are tapped on request only


@dataclass(frozen=True)
class TapShape:
    """Widths of a tap, and encoder frames (20 ms) per tap frame."""

    features: int
    query: int
    key: int
    value: int
    stride: int


@dataclass(frozen=True)
class LayerPair:
    """A layer of the student and the layer of the teacher that guides it."""

    student: str
    teacher: str
    student_shape: TapShape
    teacher_shape: TapShape


def pair_layers(requested: Sequence[str], student: nn.Module, teacher: nn.Module) -> List[LayerPair]:
    """Pairs layers at the same position.

    Args:
      requested: names "stack.layer" that both models have.  Empty: the last layer of every stack of
        the student whose frames are 40 ms or longer, with the last layer of the teacher's same stack.
    Raises:
      UserError: a layer that one of them lacks, frame rates that differ, or nothing left to tap.
    """
    student_shapes, teacher_shapes = tap_shapes(student), tap_shapes(teacher)
    if requested:
        names = [(name, name) for name in requested]
    else:
        students, teachers = last_layers(student_shapes), last_layers(teacher_shapes)
        names = [
            (name, teachers.get(stack, name))
            for stack, name in students.items()
            if student_shapes[name].stride >= MIN_STRIDE
        ]
        if not names:
            raise UserError("--kd-layers: no stack of the student downsamples; name the layers to tap, e.g. 0.1,1.1")
    pairs = []
    for student_name, teacher_name in names:
        check_layer("student", student_name, student_shapes)
        check_layer("teacher", teacher_name, teacher_shapes)
        pair = LayerPair(student_name, teacher_name, student_shapes[student_name], teacher_shapes[teacher_name])
        if pair.student_shape.stride != pair.teacher_shape.stride:
            raise UserError(
                f"--kd-layers: student layer {student_name} has frames of "
                f"{pair.student_shape.stride * ENCODER_FRAME_MS} ms, teacher layer {teacher_name} of "
                f"{pair.teacher_shape.stride * ENCODER_FRAME_MS} ms; choose layers of equal downsampling"
            )
        pairs.append(pair)
    return pairs


def check_layer(whose: str, name: str, shapes: Dict[str, TapShape]) -> None:
    """Raises UserError unless a model has the layer."""
    if name not in shapes:
        raise UserError(f"--kd-layers {name}: the {whose} has no such layer; it has {', '.join(shapes)}")


def last_layers(names: Sequence[str]) -> Dict[str, str]:
    """The last layer of every stack: {"0": "0.1", "1": "1.1", ...} from names in running order."""
    return {name.split(".")[0]: name for name in names}


@torch.no_grad()
def tap_shapes(model: nn.Module) -> Dict[str, TapShape]:
    """Shapes of every layer's tap, by name in running order, from encoding half a second of silence."""
    parameter = next(model.parameters())
    silence = parameter.new_full((1, 50, model.config.feature_dim), LOG_EPS)
    features, lens = pad_to_whole_chunks(silence, torch.tensor([50], device=parameter.device), model.max_downsampling)
    taps, was_training = Taps(), model.training
    model.eval()  # no dropout and no random layer skipping: the look takes nothing from the random state
    model.encode(features, lens, taps=taps)
    model.train(was_training)
    return {name: _shape(taps[name]) for name in taps.names()}


def _shape(tap: Tap) -> TapShape:
    tensors = (tap.features, tap.query, tap.key, tap.value)
    return TapShape(*(tensor.size(-1) for tensor in tensors), stride=tap.stride)
