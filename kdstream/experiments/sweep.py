"""A grid of flags over training and decoding: its points, and the cells that run them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from kdstream.errors import UserError
from kdstream.evaluation.compare import compare_seeds
from kdstream.evaluation.records import Record
from kdstream.experiments.cells import Cell, Flags, all_records, seen_from
from kdstream.experiments.grid import COMMANDS, Axis

EXP_DIR_AXIS = "exp-dir"
FIRST = "first"  # the name of the point at which every flag has its first value
DECODE = "decode "  # before the name of a decoding flag, which tells it from a training flag

# The flags that a cell gives itself, and what to do instead of sweeping over them.
OF_TRAINING = {
    "seed": "give --seeds, with each of which every point is trained",
    "exp-dir": "give --exp-root, or --exp-dirs to decode what exists already",
    "resume": "leave it out",
}
OF_DECODING = {"exp-dir": "give --exp-dirs", "system": "leave it out", "results-json": "leave it out"}

Point = tuple[str, ...]  # one value of each axis


def points(axes: Sequence[Axis], one_at_a_time: bool) -> Iterator[Point]:
    """All combinations of values, or those in which at most one flag has another value than its first."""
    for point in product(*(axis.values for axis in axes)):
        varied = sum(value != axis.values[0] for axis, value in zip(axes, point, strict=True))
        if not one_at_a_time or varied <= 1:
            yield point


def first_point(axes: Sequence[Axis]) -> Point:
    """Every flag at its first value."""
    return tuple(axis.values[0] for axis in axes)


def flags_of(axes: Sequence[Axis], point: Point) -> list[str]:
    return [word for axis, value in zip(axes, point, strict=True) for word in (f"--{axis.name}", value)]


def name_of(axes: Sequence[Axis], point: Point, one_at_a_time: bool) -> str:
    """A point as the name of a file, kd-feature-scale-0.3_kd-apc-scale-0; one at a time, only the flag that varies."""
    shown = [
        f"{a.name}-{value}" for a, value in zip(axes, point, strict=True) if not one_at_a_time or value != a.values[0]
    ]
    return re.sub(r"[^\w.,+-]", "-", "_".join(shown)) or FIRST


@dataclass
class Sweep:
    """The cells of a grid, and which point of it each training and each decoding belongs to.

    recipe: the directory in which every command runs; paths in flags are as seen from there.
    exp_root: directory of the experiment directories.
    grid, decode_grid: flags that vary, of train.py and of decoding.
    exp_dirs: experiments that exist already and are only decoded, instead of a grid of training flags.
    train_flags, decode_flags: flags that stay the same.
    mode: a key of COMMANDS.
    Raises:
      UserError: flags that make no grid.
    """

    recipe: Path
    exp_root: Path
    grid: Sequence[Axis]
    decode_grid: Sequence[Axis]
    exp_dirs: Sequence[str]
    seeds: Sequence[int]
    train_flags: Sequence[str]
    decode_flags: Sequence[str]
    mode: str
    one_at_a_time: bool
    train_axes: list[Axis] = field(init=False)
    axes: list[Axis] = field(init=False)
    points_of: dict[Cell, list[Point]] = field(init=False)  # of the decodings of each cell

    def __post_init__(self) -> None:
        existing = tuple(seen_from(self.recipe, Path(exp_dir)) for exp_dir in self.exp_dirs)
        self.train_axes = [Axis(EXP_DIR_AXIS, existing)] if existing else list(self.grid)
        self.axes = self.train_axes + [Axis(DECODE + axis.name, axis.values) for axis in self.decode_grid]
        self._check()
        self.points_of = {}
        by_training: dict[Point, list[Point]] = {}
        for point in points(self.axes, self.one_at_a_time):
            by_training.setdefault(point[: len(self.train_axes)], []).append(point)
        for trained, decoded in by_training.items():
            decodings = tuple(map(self._decoding, decoded))
            self.points_of.update((cell, decoded) for cell in self._cells(trained, decodings))
        self._check_names()

    def _check_names(self) -> None:
        """Raises UserError where two points would share their results."""
        names = Counter(map(self.name, {point: None for decoded in self.points_of.values() for point in decoded}))
        name, count = names.most_common(1)[0]
        if count > 1:
            raise UserError(
                f"several points are called {name}: what is no letter, digit, dot, comma or sign becomes a dash",
                flag="--grid, --decode-grid, --exp-dirs",
                fix="rename what the values name, e.g. with a link",
            )

    def _check(self) -> None:
        names = [axis.name for axis in self.axes]
        existing = "experiments that exist already are not trained"
        if self.exp_dirs and self.grid:
            raise UserError(existing, flag="--exp-dirs and --grid", fix="leave one of them out")
        if self.exp_dirs and self.train_flags:
            raise UserError(existing, flag="--exp-dirs and --train-flags", fix="leave one of them out")
        if not self.grid and not self.decode_grid:
            raise UserError("nothing to sweep", fix="give --grid or --decode-grid")
        if len(set(names)) < len(names):
            raise UserError("a flag is given twice", flag="--grid, --decode-grid", fix="put all its values into one")
        for grid, axes, own in (("--grid", self.grid, OF_TRAINING), ("--decode-grid", self.decode_grid, OF_DECODING)):
            for name in (axis.name for axis in axes if axis.name in own):
                raise UserError(f"each cell has its own --{name}", flag=f"{grid} {name}", fix=own[name])

    @property
    def cells(self) -> list[Cell]:
        return list(self.points_of)

    def name(self, point: Point) -> str:
        return name_of(self.axes, point, self.one_at_a_time)

    def _decoding(self, point: Point) -> Flags:
        flags = [*self.decode_flags, *flags_of(self.decode_grid, point[len(self.train_axes) :])]
        flags += ["--system", self.name(point)]  # tells records apart that differ in --avg, say
        if self.exp_dirs:
            flags += ["--results-json", seen_from(self.recipe, self.exp_root / "decoded.json")]
        return COMMANDS[self.mode], *flags

    def _cells(self, trained: Point, decodings: tuple[Flags, ...]) -> list[Cell]:
        """A cell for each seed; `trained` is the point's part that training depends on."""
        if self.exp_dirs:
            return [Cell(self.recipe, trained[0], None, decodings)]
        name, varied = name_of(self.train_axes, trained, self.one_at_a_time), flags_of(self.train_axes, trained)
        return [
            Cell(
                self.recipe,
                seen_from(self.recipe, self.exp_root / f"{name}_seed-{seed}"),
                (*self.train_flags, *varied, "--seed", str(seed)),
                decodings,
            )
            for seed in self.seeds
        ]

    def scored(self) -> Iterator[tuple[Cell, Point, Record]]:
        """Each record that there is, with its cell and its point."""
        for cell, decoded in self.points_of.items():
            for point, command in zip(decoded, cell.decode_commands(), strict=True):
                yield from ((cell, point, record) for record in cell.records(command))

    def rows(self) -> list[dict[str, Any]]:
        """A flat record for each point, seed and test set that has been scored."""
        rows = []
        for cell, point, record in self.scored():
            training = [] if cell.train_flags is None else [cell.train_command().typed]
            row: dict[str, Any] = {axis.name: value for axis, value in zip(self.axes, point, strict=True)}
            row.update({"seed": record.seed, "test set": record.test_set, f"{record.rate} %": record.wer})
            row["interval"] = "[{:.2f}, {:.2f}]".format(*record.interval)
            rows.append({**row, "command": " && ".join([*training, record.command])})
        return rows

    def comparison(self) -> list[dict[str, Any]]:
        """A flat record for each point, against the first one."""
        return compare_seeds(all_records(self.cells), self.name(first_point(self.axes)), (), column="point")
