"""icefall's Zipformer checkpoints: their names and shapes are ours, so that reading one needs no conversion.

What is not in pretrained.pt is given as the flags that icefall's train.py had; an epoch-N.pt has them all.  Sizes
that the parameters show (vocabulary, context, causal or not, a CTC head) are read there.
"""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from kdstream.config.flags import add_arguments, from_args, parser_of
from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError, option
from kdstream.models.zipformer_modules import is_streaming

OTHER_HEADS = ("attention_decoder.",)  # that icefall can train beside the transducer, and a teacher needs not
SHOWN_BY_WEIGHTS = (
    "encoder", "preset", "causal", "chunk_size", "left_context_frames", "right_context_frames", "use_ctc",
    "context_size",
)  # fmt: skip


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters of the transducer, without icefall's other heads."""
    weights = {name: tensor for name, tensor in checkpoint["model"].items() if not name.startswith(OTHER_HEADS)}
    left_out = len(checkpoint["model"]) - len(weights)
    if left_out:
        logging.info(f"Left out of icefall's checkpoint: {left_out} tensors of {', '.join(OTHER_HEADS)}")
    return weights


def model_of(path: str, checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor], flags: str) -> ModelConfig:
    """The architecture of the parameters `weights`.

    Args:
      path: the checkpoint's, for errors.
      flags: icefall's model flags, or a preset's name as "--preset medium".  Empty: from the checkpoint.
    Raises:
      UserError: flags that are none of the model's, or none at all.
    """
    if not flags:
        if "teacher_exp_dir" in checkpoint:  # a setting that every training of ours keeps
            raise UserError(
                "is of a training of kdstream",
                flag=option("teacher_checkpoint", path),
                fix=f"leave out {option('teacher_type')} and give {option('teacher_exp_dir')}, the directory of that "
                "training",
            )
        names = [f.name for f in fields(ModelConfig) if "help" in f.metadata and f.name not in SHOWN_BY_WEIGHTS]
        known = {name: checkpoint[name] for name in names if name in checkpoint}
        if "encoder_dim" not in known:
            raise UserError(
                "does not say what model it is of",
                flag=option("teacher_checkpoint", path),
                fix="give --teacher-model '--preset medium', or icefall's model flags",
            )
        flags = shlex.join(word for name, value in known.items() for word in (option(name), str(value)))
        flags = f"--preset medium {flags}"  # icefall's defaults, for what it has no flag for
    parser = parser_of(None, prog="--teacher-model", exit_on_error=False, add_help=False)
    add_arguments(parser, ModelConfig, preset="medium")
    try:
        args, unknown = parser.parse_known_args(shlex.split(flags))
    except (argparse.ArgumentError, ValueError) as error:
        raise UserError(str(error), flag=option("teacher_model", repr(flags)), fix="see train.py --help") from error
    if unknown:
        raise UserError(
            f"{unknown[0]} is no flag of a model", flag=option("teacher_model", repr(flags)), fix="see train.py --help"
        )
    try:
        return replace(
            from_args(ModelConfig, args),
            encoder="zipformer",
            causal=is_streaming(weights),
            use_ctc="ctc_output.1.weight" in weights,
            vocab_size=weights["decoder.embedding.weight"].size(0),
            context_size=weights["decoder.conv.weight"].size(2) if "decoder.conv.weight" in weights else 1,
        )
    except KeyError as error:
        raise UserError(
            f"has no {error}", flag=option("teacher_checkpoint", path), fix="give one of a Zipformer transducer"
        ) from error
