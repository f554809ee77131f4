"""Trains a model: a full-context teacher, a streaming baseline, or a streaming student under a teacher.

A teacher:

    python train.py --exp-dir exp/teacher --preset tiny --causal 0 --max-duration 200

A student that hears 160 ms chunks with 640 ms of left context, guided by that teacher (leave out
--teacher-exp-dir for the baseline):

    python train.py --exp-dir exp/distilled --preset tiny --causal 1 --chunk-size 8 \
        --left-context-frames 32 --teacher-exp-dir exp/teacher --max-duration 200

--resume 1 goes on from the last checkpoint in --exp-dir.  A flag that is not typed is then as in EXP_DIR/config.json.
Several GPUs, or several processes on the CPU: --world-size 4, or torchrun --nproc-per-node 4.  All settings land in
EXP_DIR/config.json, and the tokenizer beside it, from where decode.py, streaming_decode.py and export.py read them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kdstream.config.distillation import DistillConfig
from kdstream.config.flags import add_arguments, parser_of
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig


def get_parser() -> argparse.ArgumentParser:
    """A parser that leaves out what is not typed; see `config_of_start`."""
    parser = parser_of(__doc__)
    for section in (TrainConfig, ModelConfig, DataConfig, DistillConfig):
        add_arguments(parser, section, typed_only=True)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)

    from kdstream.training import dist
    from kdstream.training.process import train_experiment
    from kdstream.training.start import config_of_start

    dist.launch(train_experiment, config_of_start(args))
