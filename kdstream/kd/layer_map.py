"""Layer map: which layer of the teacher guides which layer of the student.

same      the teacher's layer of the same name; without --kd-layers the last layer of the same stack, or as uniform if
          the two encoders have different stacks
uniform   the teacher's layer at the same share of the depth
last      for the student's k tapped layers, the teacher's last k layers
similar   the teacher's most similar layer, as a file says that kdstream layer-similarity writes
learned   every layer of the teacher, with weights that are learned along with the branches
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from kdstream.config.distillation import DistillConfig
from kdstream.errors import UserError, option
from kdstream.kd.taps import Tap, TapShape
from kdstream.units import ENCODER_FRAME_MS

MIN_STRIDE = 2  # encoder frames; relation maps grow with T^2, so layers at the full rate are tapped on request only

Shapes = dict[str, TapShape]  # by layer name, in running order


@dataclass(frozen=True)
class LayerPair:
    """A layer of the student and a layer of the teacher that guides it."""

    student: str
    teacher: str
    student_shape: TapShape
    teacher_shape: TapShape

    @property
    def stride(self) -> int:
        """Encoder frames per frame at which the two are compared: the slower one's."""
        return max(self.student_shape.stride, self.teacher_shape.stride)

    def align(self, student: Tap, teacher: Tap) -> tuple[Tap, Tap]:
        """Both taps at `stride`, and as many frames of the teacher as the student has."""
        student, teacher = student.at_stride(self.stride), teacher.at_stride(self.stride)
        return student, teacher.first(student.features.size(1))


def pair_layers(config: DistillConfig, student: Shapes, teacher: Shapes) -> list[LayerPair]:
    """Pairs the layers of --kd-layers by --kd-layer-map; an entry "2.0:3.1" names the teacher's layer itself.

    Without --kd-layers, the student's layers are the last of every stack with frames of 40 ms or longer.

    Raises:
      UserError: a layer that one of them lacks or that is tapped twice, frame rates without a whole ratio, or nothing
        left to tap.
    """
    tapped = [entry.partition(":")[0] for entry in config.kd_layers] or default_layers(student)
    check_entries(config, tapped)
    for name in tapped:
        check_layer("student", name, student, "name others, or leave the flag out")
    chosen = choose(config, tapped, student, teacher) if chooses_guides(config) else {}
    named = {name: guide for name, colon, guide in (entry.partition(":") for entry in config.kd_layers) if colon}
    pairs = []
    for name in tapped:
        way_out = "name another one behind the colon" if name in named else "name others, or use --kd-layer-map uniform"
        for guide in [named[name]] if name in named else chosen[name]:
            check_layer("teacher", guide, teacher, way_out)
            pairs.append(LayerPair(name, guide, student[name], teacher[guide]))
            check_rates(pairs[-1])
    return pairs


def chooses_guides(config: DistillConfig) -> bool:
    """Whether there is a layer of the student for which --kd-layer-map chooses the teacher's."""
    return not config.kd_layers or any(":" not in entry for entry in config.kd_layers)


def default_layers(student: Shapes) -> list[str]:
    """The last layer of every stack that downsamples.  Raises UserError if none does."""
    names = [name for name in last_layers(student).values() if student[name].stride >= MIN_STRIDE]
    if not names:
        raise UserError(
            "no stack of the student downsamples", flag="--kd-layers", fix="name the layers to tap, e.g. 0.1,1.1"
        )
    return names


def choose(config: DistillConfig, tapped: Sequence[str], student: Shapes, teacher: Shapes) -> dict[str, list[str]]:
    """The teacher's layers for each tapped layer."""
    theirs, ours = list(teacher), list(student)
    if config.kd_layer_map == "learned":
        return {name: theirs for name in tapped}
    if config.kd_layer_map == "similar":
        return {name: [guide] for name, guide in most_similar(config.kd_similarity_file, tapped, theirs).items()}
    if config.kd_layer_map == "last":
        if len(tapped) > len(theirs):
            raise UserError(
                f"{len(tapped)} tapped layers, but the teacher has {len(theirs)}", flag="--kd-layer-map last",
                fix="tap fewer with --kd-layers",
            )  # fmt: skip
        in_order = sorted(tapped, key=ours.index)
        return {name: [guide] for name, guide in zip(in_order, theirs[len(theirs) - len(tapped) :], strict=True)}
    same_places = config.kd_layers or last_layers(student).keys() == last_layers(teacher).keys()
    if config.kd_layer_map == "uniform" or not same_places:
        return {name: [theirs[-(-(ours.index(name) + 1) * len(theirs) // len(ours)) - 1]] for name in tapped}
    if config.kd_layers:
        return {name: [name] for name in tapped}
    last = last_layers(teacher)
    return {name: [last[stack_of(name)]] for name in tapped}


def most_similar(path: str, tapped: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """For each tapped layer the teacher's of highest similarity in a file.  UserError if it is of other layers."""
    if not path:
        raise UserError(
            "needs the similarities of the layers",
            flag="--kd-layer-map similar",
            fix="give --kd-similarity-file, which kdstream layer-similarity writes",
        )
    try:
        similarity = json.loads(Path(path).read_text())
        columns, rows = (
            similarity["teacher_layers"],
            dict(zip(similarity["student_layers"], similarity["cka"], strict=True)),
        )
        if columns != list(theirs):
            raise ValueError(f"the teacher has layers {', '.join(theirs)}, it has {', '.join(columns)}")
        if not all(map(math.isfinite, chain.from_iterable(rows.values()))):
            raise ValueError("some of its numbers are not finite")
        return {name: max(zip(rows[name], columns, strict=True))[1] for name in tapped}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"not a similarity of these layers ({type(error).__name__}: {error})",
            flag=option("kd_similarity_file", path),
            fix=f"write it with kdstream layer-similarity for {', '.join(tapped)}",
        ) from error


def check_entries(config: DistillConfig, tapped: Sequence[str]) -> None:
    """Raises UserError where --kd-layers names a layer twice, or a pair where --kd-layer-map learned pairs all."""
    twice = sorted({name for name in tapped if tapped.count(name) > 1})
    if twice:
        raise UserError(f"names {', '.join(twice)} more than once", flag="--kd-layers", fix="name each once")
    named = [entry for entry in config.kd_layers if ":" in entry]
    if config.kd_layer_map == "learned" and named:
        raise UserError(
            "--kd-layer-map learned takes all layers of the teacher",
            flag=option("kd_layers", named[0]),
            fix="name the student's alone",
        )


def check_layer(whose: str, name: str, shapes: Shapes, fix: str) -> None:
    """Raises UserError, with this fix, unless a model has the layer."""
    if name not in shapes:
        raise UserError(
            f"the {whose} has no such layer; it has {', '.join(shapes)}",
            flag=option("kd_layers", name),
            fix=fix,
        )


def check_rates(pair: LayerPair) -> None:
    """Raises UserError unless the slower layer's frames hold a whole number of the faster one's."""
    strides = pair.student_shape.stride, pair.teacher_shape.stride
    if max(strides) % min(strides):
        raise UserError(
            f"student layer {pair.student} has frames of {strides[0] * ENCODER_FRAME_MS} ms, teacher layer "
            f"{pair.teacher} of {strides[1] * ENCODER_FRAME_MS} ms",
            flag="--kd-layers",
            fix="choose layers where one divides the other",
        )


def last_layers(shapes: Shapes) -> dict[str, str]:
    """The last layer of every stack: {"0": "0.1", "1": "1.1", ...}."""
    return {stack_of(name): name for name in shapes}


def stack_of(name: str) -> str:
    return name.split(".")[0]
