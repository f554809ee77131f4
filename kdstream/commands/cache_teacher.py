"""Stores what a teacher hears in the training cuts, so that students train without running it.

    kdstream cache-teacher --teacher-exp-dir exp/teacher --output exp/teacher/cache

then train.py --teacher-exp-dir exp/teacher --teacher-cache exp/teacher/cache ...  The teacher
hears the cuts as they are stored, speed-perturbed ones included: masks of SpecAugment and added noise then reach
the student alone, and time warping is refused.

It says first what the cache will take on the disk, and refuses what the disk cannot hold; after some batches it says
how long the teacher will take.  A student that learns tokens alone needs --layers none, and --attention 0 halves what
layers take.  Several GPUs, or several processes on the CPU: --world-size 4, or torchrun.  Killed, it goes on where it
stopped, with any number of processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdstream.config.command_line import CACHE_DATA_FLAGS, log_to_stderr, override_data, teacher_flags
from kdstream.config.distillation import CACHE_STORAGES, NO_LAYERS, DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import add_arguments, add_overrides, override, parser_of, str2bool
from kdstream.config.sections import DataConfig, TrainConfig

if TYPE_CHECKING:
    from kdstream.kd.cache_filling import CachePlan


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
    add_arguments(parser, TrainConfig, ["world_size"])
    add_overrides(parser, DistillConfig, *teacher_flags())
    add_overrides(parser, DataConfig, *CACHE_DATA_FLAGS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)

    from kdstream.kd.cache_filling import CachePlan, all_cuts, check_storable
    from kdstream.training.dist import launch

    distill = override(DistillConfig(), args)
    check_storable(distill)
    config = ExperimentConfig.load(distill.teacher_exp_dir) if distill.teacher_exp_dir else ExperimentConfig()
    data = override_data(config.data, args)
    plan = CachePlan(args.output, args.layers, args.storage, args.attention, with_texts=not data.unlabelled_cuts)
    train = replace(config.train, world_size=args.world_size)
    config = replace(config, data=all_cuts(data), train=train, distill=distill)
    launch(partial(fill_share, plan, args.device), config, args.device)


def fill_share(plan: CachePlan, device: str, config: ExperimentConfig, rank: int, world_size: int) -> None:
    """What each process does."""
    from kdstream.kd.cache_filling import fill
    from kdstream.training.dist import device_of

    log_to_stderr()
    fill(plan, config, device_of(rank, device), rank, world_size)
