"""What cache-teacher does: which cuts and layers go into a cache, whether the disk can hold them, and the work."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from kdstream.config.distillation import NO_LAYERS, DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import names_in
from kdstream.config.sections import DataConfig
from kdstream.data.augment import without_transforms
from kdstream.data.batch import Batch
from kdstream.data.module import AsrDataModule
from kdstream.errors import UserError, option
from kdstream.kd.layer_map import MIN_STRIDE, default_layers
from kdstream.kd.teacher import Teacher
from kdstream.kd.teacher_cache import CacheWriter, fingerprint
from kdstream.kd.teachers import load_teacher, needs_audio, type_of

UNTIMED, TIMED = 1, 3  # batches: the first is slower than the others


@dataclass(frozen=True)
class CachePlan:
    """What is to be stored.

    output: directory of the cache.
    layers: as --layers names them; "" for the default.
    storage, attention: as CacheWriter has them.
    with_texts: whether cuts without a text are left out, as training leaves them out.
    """

    output: Path
    layers: str
    storage: str
    attention: bool
    with_texts: bool


def check_storable(distill: DistillConfig) -> None:
    """Raises UserError unless the flags name one teacher, of a type that can be stored."""
    if "," in distill.teacher_type:
        raise UserError(
            "a cache is of one teacher",
            flag=option("teacher_type", distill.teacher_type),
            fix="write one for each, and name all of them in --teacher-cache a,b",
        )
    if not type_of(distill).teacher.can_be_stored:
        raise UserError(
            "such a teacher cannot be stored",
            flag=option("teacher_type", distill.teacher_type),
            fix="let train.py run it beside the student",
        )


def all_cuts(data: DataConfig) -> DataConfig:
    """The training cuts as they are stored, pseudo-labelled and unlabelled ones among them, each once."""
    if data.pseudo_cuts or data.unlabelled_cuts:
        labelled = map(str, AsrDataModule(data, seed=0).paths("train"))
        every = (*labelled, *data.pseudo_cuts, *data.unlabelled_cuts)
        data = replace(data, train_cuts=every, pseudo_cuts=(), unlabelled_cuts=())
    return replace(without_transforms(data), shuffle=False, mux_weights=())


def fill(plan: CachePlan, config: ExperimentConfig, device: torch.device, rank: int, world_size: int) -> None:
    """Stores the share of process `rank` of `world_size`.

    Args:
      config: names the teacher, and the cuts as `all_cuts` has them.
    Raises:
      UserError: no teacher, layers that it lacks, a cache of something else, or a disk that is too small.
    """
    teacher = load_teacher(config, device)
    if teacher is None:
        raise UserError("no teacher is named", flag="--teacher-exp-dir, --teacher-checkpoint", fix="name one to store")
    layers = layers_to_store(plan.layers, teacher)
    writer = CacheWriter(plan.output, teacher, layers, plan.storage, fingerprint(teacher), plan.attention)
    audio = needs_audio(config.distill)
    data = AsrDataModule(config.data, config.train.seed, with_audio=audio, with_texts=plan.with_texts)
    hours = data.look_at_training_cuts().seconds / 3600
    check_disk(plan.output, writer, data, hours, tells=rank == 0)
    batches = data.train_dataloader(1)
    batches.cut_batches = writer.not_stored(batches.cut_batches, world_size, rank)
    bar = tqdm(batches, "teacher", batches.num_batches // world_size, unit="batch", disable=rank > 0 or None)
    for batch in timed(bar, hours, world_size, tells=rank == 0):
        writer.add(batch.to(device))
    if rank == 0:
        size = sum(path.stat().st_size for path in plan.output.rglob("*") if path.is_file())
        what = f"layers {', '.join(layers) or NO_LAYERS} of {config.distill.teacher_name}"
        print(f"{plan.output}: {what}, {size / 1e6:.0f} MB")


def timed(bar: tqdm, hours: float, world_size: int, tells: bool) -> Iterator[Batch]:
    """The batches of a bar; after some of them it says, if it `tells`, how long all `hours` of speech will take."""
    started, seconds = 0.0, 0.0
    for done, batch in enumerate(bar):
        yield batch
        if done < UNTIMED:
            started = time.perf_counter()
        else:
            seconds += batch.duration
        if done == UNTIMED + TIMED - 1 and tells:
            speed = world_size * seconds / (time.perf_counter() - started)
            bar.write(f"teacher: {speed:.0f} s of speech a second, {hours / speed:.2g} h for all of it")


def layers_to_store(typed: str, teacher: Teacher) -> list[str]:
    """The layers of --layers.  Raises UserError where it names none and the teacher has no stack that downsamples."""
    if typed:
        return [] if typed == NO_LAYERS else names_in(typed)
    if all(shape.stride < MIN_STRIDE for shape in teacher.shapes.values()):
        raise UserError(
            f"must say which of the layers {', '.join(teacher.shapes)} guide the student",
            flag="--layers",
            fix="name those of --kd-layers, e.g. 0.5 for --kd-layers 2.1:0.5",
        )
    return default_layers(teacher.shapes)


def check_disk(output: Path, writer: CacheWriter, data: AsrDataModule, hours: float, tells: bool) -> None:
    """Says what a cache of so many hours will take, if it `tells`.

    Raises:
      UserError: the disk cannot hold what is missing.
    """
    needed, there = writer.bytes_per_hour * hours, writer.shards.bytes
    place = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    cost = (
        f"{writer.bytes_per_hour / 1e6:.0f} MB an hour, {needed / 1e9:.3g} GB for {hours:.3g} h of speech, of which "
        f"{there / 1e9:.3g} GB are there"
    )
    if tells:
        print(f"{output}: {cost}; {free / 1e9:.3g} GB are free", flush=True)
    if needed - there <= free:
        return
    places = writer.shards.find(data.training_cut_ids())
    if not places or -1 in places:
        raise UserError(
            f"the cache takes {cost}, and its disk has {free / 1e9:.3g} GB free",
            flag=option("output", output),
            fix="free space or name another disk; --storage int8, --attention 0 and fewer --layers take less",
        )
