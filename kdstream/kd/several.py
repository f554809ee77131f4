"""Several teachers at once: --teacher-type a,b.

`of_each` says what the flags mean for each of them, in settings of one teacher.  Each has a Distiller of its own, with
its layers, branches and losses; `SeveralDistillers` runs them side by side.

Shapes: N batch, F all numbers that are read of an utterance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdstream.config.distillation import TEACHERS, DistillConfig
from kdstream.config.flags import with_settings
from kdstream.data.batch import Batch
from kdstream.errors import UserError, option
from kdstream.kd.distiller import Distiller
from kdstream.kd.loss_table import LOSSES, LatticeLoss, scale_of
from kdstream.kd.taps import Taps
from kdstream.kd.teacher import Heard, Teacher
from kdstream.models.transducer import Transducer

PATHS = ("teacher_exp_dir", "teacher_checkpoint", "teacher_bpe_model")  # one for each teacher whose type reads it


def of_each(distill: DistillConfig) -> list[DistillConfig]:
    """The settings of each teacher alone; those that are given where there is one teacher or none.

    Raises:
      UserError: an unknown type, not one value for each teacher, or a loss that none of them gives.
    """
    names = split(distill.teacher_type, ",")
    kinds = [TEACHERS.find(name) for name in names]
    if len(kinds) == 1:
        for setting in ("teacher_scales", "teacher_losses"):
            list_of_all(distill, setting, list(getattr(distill, setting)), [None])
        for setting in PATHS:
            value = getattr(distill, setting)
            paths = split(value, ",")
            if len(paths) > 1 and not Path(value).exists():
                fix = f"of several teachers give {option('teacher_type', ','.join(names * len(paths)))}"
                raise UserError("holds several paths for one teacher", flag=option(setting, value), fix=fix)
        return [distill]
    each = [with_settings(distill, teacher_type=name, teacher_scales=(), teacher_losses=()) for name in names]
    for setting in (*PATHS, "teacher_model"):
        readers = [n for n, kind in enumerate(kinds) if setting in (kind.source, *kind.reads)]
        values = split(getattr(distill, setting), "/" if setting == "teacher_model" else ",")
        if values and len(values) != len(readers) and not (len(values) == 1 and setting not in PATHS[:2]):
            raise wrong_number(setting, getattr(distill, setting), len(readers), f"teachers of {distill.teacher_type}")
        given = dict(zip(readers, values * len(readers) if len(values) == 1 else values, strict=False))
        each = [replace(one, **{setting: given.get(n, "")}) for n, one in enumerate(each)]
    caches = list_of_all(distill, "teacher_cache", split(distill.teacher_cache, ","), [""] * len(each))
    layers = list_of_all(distill, "kd_layers", split(",".join(distill.kd_layers), "/"), [""] * len(each))
    losses = list_of_all(distill, "teacher_losses", list(distill.teacher_losses), [""] * len(each))
    scales = list_of_all(distill, "teacher_scales", list(distill.teacher_scales), [1.0] * len(each))
    weighed = [given_by(distill, losses[n], kind.teacher) for n, kind in enumerate(kinds)]
    check_given(distill, weighed)
    starts = [kind.teacher.gives_weights for kind in kinds]
    first = starts.index(True) if True in starts else 0  # which is asked, and says if it cannot
    for n in range(len(kinds)):
        each[n] = replace(
            each[n],
            teacher_cache=caches[n],
            kd_layers=tuple(split(layers[n], ",")),
            init_from_teacher=distill.init_from_teacher and n == first,
        )
        weights = {scale_of(name): scales[n] * weighed[n].get(name, 0.0) for name in distill.loss_scales}
        each[n] = with_settings(each[n], **weights)
    return each


def split(text: str, separator: str) -> list[str]:
    """The values in a text, none in an empty one."""
    return [value.strip() for value in text.split(separator)] if text else []


def list_of_all(distill: DistillConfig, setting: str, values: list, missing: list) -> list:
    """One value for each teacher, `missing` where none is given.  Raises UserError for another number of them."""
    if values and len(values) != len(missing):
        whose = "teachers" if len(missing) > 1 else f"teacher ({option('teacher_type', distill.teacher_type)})"
        raise wrong_number(setting, getattr(distill, setting), len(missing), whose)
    return values or missing


def wrong_number(setting: str, value: object, wanted: int, whose: str) -> UserError:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    between = "slashes" if setting in ("kd_layers", "teacher_model") else "commas"
    fix = f"give as many, with {between} between them"
    return UserError(f"must have one value for each of {wanted} {whose}", flag=option(setting, text), fix=fix)


def given_by(distill: DistillConfig, losses: str, kind: type[Teacher]) -> dict[str, float]:
    """The losses that one teacher gives, with the weights of the flags.

    Args:
      losses: their names, feature+token; empty: all that the flags weigh and such a teacher can give.
    Raises:
      UserError: a loss that the flags do not weigh.
    """
    wanted, chosen = distill.loss_scales, split(losses, "+")
    for name in chosen:
        if not wanted.get(name):
            raise UserError(
                f"names {name}, which no flag weighs",
                flag=option("teacher_losses", ",".join(distill.teacher_losses)),
                fix=f"choose of {', '.join(name for name, weight in wanted.items() if weight)}",
            )
    return {
        name: weight
        for name, weight in wanted.items()
        if (name in chosen if chosen else kind.writes_tokens or not isinstance(LOSSES.get(name), LatticeLoss))
    }


def check_given(distill: DistillConfig, given: Sequence[Mapping[str, float]]) -> None:
    """Raises UserError where a flag weighs a loss that no teacher gives; those that are on by default may be left over.

    given: by `given_by`, of each teacher.
    """
    by_default = DistillConfig().loss_scales
    for name, weight in distill.loss_scales.items():
        if weight and weight != by_default.get(name) and not any(name in of_one for of_one in given):
            raise UserError(
                f"none of the teachers gives this loss ({option('teacher_type', distill.teacher_type)})",
                flag=option(scale_of(name), weight),
                fix=f"leave it out, or name it in {option('teacher_losses')}"
                if distill.teacher_losses
                else "leave it out, or add a teacher that writes tokens",
            )


class Member(NamedTuple):
    """A teacher and what the flags say of it."""

    config: DistillConfig
    teacher: Teacher


class SeveralTeachers(Teacher):
    """Teachers of which each guides the student in its own way; see `SeveralDistillers`."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self.shapes = {}

    def listen(self, batch: Batch, layers: Iterable[str]) -> Heard:
        raise NotImplementedError("ask the members")

    def check_cuts(self, cut_ids: Iterable[str]) -> None:
        cut_ids = list(cut_ids)
        for member in self.members:
            member.teacher.check_cuts(cut_ids)

    def weights_for(self, student: Transducer) -> dict[str, Tensor]:
        """Those of the first teacher that gives any."""
        return next(m for m in self.members if m.config.init_from_teacher).teacher.weights_for(student)


class SeveralDistillers(nn.Module):
    """Distillers side by side, each with a teacher of its own.

    The losses of the first are called as those of one teacher are, those of the n-th teachern_feature_loss and so on.
    A teacher that gives its weights alone counts, though there is no distiller under it.

    scales, read_stored: as a Distiller's.
    """

    def __init__(self, teachers: SeveralTeachers, student: Transducer) -> None:
        super().__init__()
        guides = [(n, m) for n, m in enumerate(teachers.members) if not m.config.gives_weights_alone]
        self.numbers = [n for n, _ in guides]
        self.members = nn.ModuleList(Distiller(m.config, student, m.teacher) for _, m in guides)
        self.scales = {k: v for n, m in self._numbered() for k, v in renamed(m.scales, n).items()}
        readers = [(n, m.read_stored) for n, m in self._numbered() if m.read_stored is not None]
        self.read_stored = StoredOfSeveral([reader for _, reader in readers]) if readers else None

    def _numbered(self) -> list[tuple[int, Distiller]]:
        """The number of each teacher, from 0, and its distiller."""
        pairs = zip(self.numbers, self.members, strict=True)
        return [(n, member) for n, member in pairs if isinstance(member, Distiller)]

    def student_taps(self) -> Taps:
        taps = [member.student_taps() for _, member in self._numbered()]
        names = {pair.student for _, member in self._numbered() for pair in member.pairs}
        return Taps(names, any(one.wants_lattice for one in taps), any(one.wants_ctc for one in taps))

    def weights(self, batch_idx: float) -> dict[str, float]:
        return {k: v for n, m in self._numbered() for k, v in renamed(m.weights(batch_idx), n).items()}

    @property
    def writer_of_tokens(self) -> Teacher | None:
        """The first teacher on whose posteriors there are losses."""
        return next((m.writer_of_tokens for _, m in self._numbered() if m.writer_of_tokens is not None), None)

    def listen(self, batch: Batch) -> list[Heard]:
        """What each teacher makes of a batch."""
        heard, begin = [], 0
        for _, member in self._numbered():
            stored = None
            if batch.stored is not None and member.read_stored is not None:
                end = begin + member.teacher.stored_size(batch)
                stored, begin = batch.stored[:, begin:end], end
            heard.append(member.listen(replace(batch, stored=stored)))
        return heard

    def heard_by(self, teacher: Teacher, heard: Any) -> Heard:
        return next(one for (_, member), one in zip(self._numbered(), heard, strict=True) if member.teacher is teacher)

    def forward(self, batch: Batch, student_taps: Taps, heard: list[Heard] | None = None) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for (n, member), one in zip(self._numbered(), heard or self.listen(batch), strict=True):
            losses.update(renamed(member(batch, student_taps, one), n))
        return losses


def build_distiller(
    config: DistillConfig, model: Transducer, teacher: Teacher | None
) -> Distiller | SeveralDistillers | None:
    """The distiller; None without a teacher, or where the teacher gives its weights to begin with and nothing else."""
    if teacher is None or config.gives_weights_alone:
        return None
    several = isinstance(teacher, SeveralTeachers)
    distiller = SeveralDistillers(teacher, model) if several else Distiller(config, model, teacher)
    return distiller.to(next(model.parameters()).device)


class StoredOfSeveral:
    """Reads what several caches hold of a batch, one behind the other: (N, F)."""

    def __init__(self, readers: Sequence[Callable[[Batch], Tensor]]) -> None:
        self.readers = list(readers)

    def __call__(self, batch: Batch) -> Tensor:
        return torch.cat([reader(batch) for reader in self.readers], dim=1)


def renamed(values: Mapping, number: int) -> dict:
    """Values by name, as those of teacher `number`, from 0, are called."""
    return {f"teacher{number + 1}_{name}" if number else name: value for name, value in values.items()}
