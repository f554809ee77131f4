"""Stores what a teacher hears in the training cuts, so that students train without running it.

    kdstream cache-teacher --teacher-exp-dir exp/teacher --teacher-avg 3 --output exp/teacher/cache

then train.py --teacher-exp-dir exp/teacher --teacher-avg 3 --teacher-cache exp/teacher/cache ...  The teacher
hears the cuts as they are stored, speed-perturbed ones included: masks of SpecAugment and added noise then reach
the student alone, and time warping is refused.

It says first what the cache will take on the disk, and refuses what the disk cannot hold; after some batches it says
how long the teacher will take.  A student that learns tokens alone needs --layers none, and --attention 0 halves what
layers take.  Several GPUs, or several processes on the CPU: --world-size 4, or torchrun.  Killed, it goes on where it
stopped, with any number of processes.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdstream.config.command_line import CACHE_DATA_FLAGS, log_to_stderr, teacher_flags
from kdstream.config.distillation import CACHE_STORAGES, DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import add_overrides, in_range, override, parser_of, str2bool
from kdstream.config.sections import DataConfig
from kdstream.errors import UserError, option

if TYPE_CHECKING:
    from kdstream.data.module import AsrDataModule
    from kdstream.kd.teacher import Teacher
    from kdstream.kd.teacher_cache import CacheWriter

NO_LAYERS = "none"
UNTIMED, TIMED = 1, 3  # batches: the first is slower than the others


def all_cuts(data: DataConfig) -> DataConfig:
    """The training cuts as they are stored, pseudo-labelled and unlabelled ones among them, each once."""
    from kdstream.data.augment import without_transforms
    from kdstream.data.module import AsrDataModule

    if data.pseudo_cuts or data.unlabelled_cuts:
        labelled = map(str, AsrDataModule(data, seed=0).paths("train"))
        every = (*labelled, *data.pseudo_cuts, *data.unlabelled_cuts)
        data = replace(data, train_cuts=every, pseudo_cuts=(), unlabelled_cuts=())
    return replace(without_transforms(data), shuffle=False, mux_weights=())


def get_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="Directory of the cache.")
    parser.add_argument(
        "--layers",
        default="",
        help=f"e.g. 1.0,2.1, or {NO_LAYERS} (default: the last of each stack that downsamples)",
    )
    parser.add_argument(
        "--attention", type=str2bool, default=True, help="Store queries, keys and values, for --kd-relation-scale."
    )
    parser.add_argument(
        "--storage", default="float16", choices=CACHE_STORAGES, help="float16, or int8 in half the space."
    )
    parser.add_argument(
        "--device", default="", help="cpu or cuda, of which each process takes its own (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--world-size", type=in_range(int, minimum=1), default=1, help="Processes (GPUs, or CPU processes)."
    )
    add_overrides(parser, DistillConfig, *teacher_flags())
    add_overrides(parser, DataConfig, *CACHE_DATA_FLAGS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)

    from kdstream.kd.teachers import type_of
    from kdstream.training.dist import launch

    distill = override(DistillConfig(), args)
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
    config = ExperimentConfig.load(distill.teacher_exp_dir) if distill.teacher_exp_dir else ExperimentConfig()
    data = override(config.data, args)
    with_texts, data = not data.unlabelled_cuts, all_cuts(data)
    train = replace(config.train, world_size=args.world_size)
    launch(partial(store, args, with_texts), replace(config, data=data, train=train, distill=distill), args.device)


def store(args: argparse.Namespace, with_texts: bool, config: ExperimentConfig, rank: int, world_size: int) -> None:
    """Stores the share of process `rank` of `world_size`.

    with_texts: whether cuts without a text are left out, as training leaves them out.
    """
    from tqdm import tqdm

    from kdstream.data.module import AsrDataModule
    from kdstream.kd.teacher_cache import CacheWriter, fingerprint
    from kdstream.kd.teachers import load_teacher, needs_audio
    from kdstream.training.dist import device_of

    log_to_stderr()
    device = device_of(rank, args.device)
    teacher = load_teacher(config, device)
    if teacher is None:
        raise UserError("no teacher is named", flag="--teacher-exp-dir, --teacher-checkpoint", fix="name one to store")
    layers = layers_to_store(args.layers, teacher)
    writer = CacheWriter(args.output, teacher, layers, args.storage, fingerprint(teacher), args.attention)
    data = AsrDataModule(config.data, config.train.seed, with_audio=needs_audio(config.distill), with_texts=with_texts)
    hours = data.look_at_training_cuts().seconds / 3600
    check_disk(args.output, writer, data, tells=rank == 0)
    batches = data.train_dataloader(1)
    batches.cut_batches = writer.unheard(batches.cut_batches, world_size, rank)
    bar = tqdm(batches, "teacher", batches.num_batches // world_size, unit="batch", disable=rank > 0 or None)
    started, seconds = 0.0, 0.0
    for done, batch in enumerate(bar):
        writer.add(batch.to(device))
        if done < UNTIMED:
            started = time.perf_counter()
        else:
            seconds += batch.duration
        if done == UNTIMED + TIMED - 1 and rank == 0:
            speed = world_size * seconds / (time.perf_counter() - started)
            bar.write(f"teacher: {speed:.0f} s of speech a second, {hours / speed:.2g} h for all of it")
    if rank == 0:
        size = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
        what = f"layers {', '.join(layers) or NO_LAYERS} of {config.distill.teacher_name}"
        print(f"{args.output}: {what}, {size / 1e6:.0f} MB")


def layers_to_store(typed: str, teacher: Teacher) -> list[str]:
    """The layers of --layers.  Raises UserError where it names none and the teacher has no stack that downsamples."""
    from kdstream.kd.layer_map import MIN_STRIDE, default_layers

    if typed:
        return [] if typed == NO_LAYERS else typed.split(",")
    if all(shape.stride < MIN_STRIDE for shape in teacher.shapes.values()):
        raise UserError(
            f"must say which of the layers {', '.join(teacher.shapes)} guide the student",
            flag="--layers",
            fix="name those of --kd-layers, e.g. 0.5 for --kd-layers 2.1:0.5",
        )
    return default_layers(teacher.shapes)


def check_disk(output: Path, writer: CacheWriter, data: AsrDataModule, tells: bool) -> None:
    """Says what the cache will take, if it `tells`.  Raises UserError where the disk cannot hold what is missing."""
    hours = data.look_at_training_cuts().seconds / 3600
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
