"""What a report reads: result records, loss curves, similarities of layers, and pictures that other commands drew."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import CONFIG_FILE, ExperimentConfig
from kdstream.errors import UserError
from kdstream.evaluation.records import RESULTS_JSON, Record, load_newest
from kdstream.kd.loss_table import logged_as

SIMILARITY_JSON = "layer_similarity.json"
SWEEPS = "sweep*.png"
CURVE_TAG = re.compile(r"train/(tot|valid)_(.+)")
PHASES = {"tot": "training", "valid": "validation"}
TRANSDUCER_LOSSES = ("pruned_loss", "simple_loss", "ctc_loss")  # shown first, before those of distillation
TOTAL = "loss"  # shown last: what it adds up differs between systems
NOT_OF_A_FAMILY = ("exp_dir", "delay_penalty", "resume", "start_epoch", "start_batch", "master_port", "tensorboard")

Runs = dict[Path, Sequence[Record]]  # by results JSON
Curve = list[tuple[int, float]]  # (batch, loss per 40 ms frame)
Curves = dict[str, dict[str, Curve]]  # by loss, by phase


class Similarity(NamedTuple):
    """How alike two models' layers are: cka (student layers, teacher layers), from 0 to 1."""

    student_layers: list[str]
    teacher_layers: list[str]
    cka: np.ndarray


class Member(NamedTuple):
    """A system and its family, whose trainings differ in --delay-penalty alone; one of them gives it its name."""

    family: str
    delay_penalty: float


def read_runs(exp_root: Path, systems: Sequence[str]) -> Runs:
    """The newest records of each system's experiment.

    Raises:
      UserError: a system has none, or two have one name.
    """
    runs: Runs = {}
    seen: dict[tuple[Any, ...], Path] = {}  # by training and setting: which results JSON has it
    for system in systems:
        path = exp_root / system / RESULTS_JSON
        if not path.is_file():
            raise UserError(
                f"{path}: no such file",
                fix=f"run decode.py --exp-dir {path.parent}, or leave {system} out of --systems",
            )
        runs[path] = load_newest(path)
        for record in runs[path]:
            if (other := seen.setdefault(record.training, path)) != path:
                raise UserError(
                    f"{other.parent} and {path.parent}: both call their system {record.system}, seed {record.seed}",
                    fix="decode one of them with --system NAME, or leave it out of --systems",
                )
    return runs


def read_families(runs: Runs) -> dict[str, Member]:
    """By system, its family and delay penalty, from the config.json beside its results.

    A family bears the name of its member with the smallest penalty.  A system without a config.json is a family of its
    own, and so is each system where two that were trained alike have the same penalty too.
    """
    found: dict[str, list[tuple[float, str]]] = {}  # by settings: penalties and systems
    for path, records in runs.items():
        for system in dict.fromkeys(record.system for record in records):
            settings, penalty = system, 0.0
            if (path.parent / CONFIG_FILE).is_file():
                config = asdict(ExperimentConfig.as_written(path.parent))
                penalty = config["train"]["delay_penalty"]
                for name in NOT_OF_A_FAMILY:
                    del config["train"][name]
                settings = json.dumps(config)
            found.setdefault(settings, []).append((penalty, system))
    members = {}
    for family in found.values():
        distinct = len({penalty for penalty, _ in family}) == len(family)
        members.update({system: Member(min(family)[1] if distinct else system, penalty) for penalty, system in family})
    return members


def read_curves(exp_dir: Path) -> Curves:
    """Every loss in the TensorBoard files; a batch that a resumed training repeats counts once."""
    folder = exp_dir / "tensorboard"
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    curves: Curves = {}
    for tag in events.Tags()["scalars"]:
        if found := CURVE_TAG.fullmatch(tag):
            by_batch = {event.step: event.value for event in events.Scalars(tag)}
            curves.setdefault(found[2], {})[PHASES[found[1]]] = sorted(by_batch.items())
    return curves


def losses_in(curves: dict[str, Curves]) -> list[str]:
    """The losses that some system's curves have, in the order in which to show them."""
    present = {loss for of_system in curves.values() for loss in of_system}
    first = (*TRANSDUCER_LOSSES, *map(logged_as, DistillConfig().loss_scales))
    others = sorted(present - {*first, TOTAL})
    return [loss for loss in (*first, *others, TOTAL) if loss in present]


def read_similarity(path: Path) -> Similarity:
    """A layer_similarity.json.  Raises UserError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        student, teacher = ([str(name) for name in content[f"{whose}_layers"]] for whose in ("student", "teacher"))
        cka = np.array(content["cka"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a table of layer similarities ({error!r})", fix="run kdstream layer-similarity"
        ) from error
    if not cka.size or cka.shape != (len(student), len(teacher)):
        raise UserError(
            f"{path}: {len(student)} student and {len(teacher)} teacher layers, but a table of shape {cka.shape}",
            fix="run kdstream layer-similarity",
        )
    return Similarity(student, teacher, cka)
