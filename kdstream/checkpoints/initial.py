"""Trained weights that a model begins with, --init-checkpoint: ours or icefall's, all of them or some parts.

A part is what parameter names begin with, as in --init-modules of icefall's finetune.py: encoder or encoder.encoders.0.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from kdstream.checkpoints.average import CheckpointChoice, load_averaged
from kdstream.checkpoints.store import StateDict, check_finite, load_weights
from kdstream.config.experiment import BPE_MODEL_FILE, CONFIG_FILE, TOKENS_FILE, ExperimentConfig
from kdstream.config.sections import TrainConfig
from kdstream.data.tokenizer import Tokenizer, difference_of_tokens, read_tokens
from kdstream.errors import UserError, option
from kdstream.models.transducer import Transducer
from kdstream.models.zipformer_modules import is_streaming

OF_TOKENS = ("decoder", "joiner.output_linear", "simple_am_proj", "simple_lm_proj", "ctc_output")  # a row for each
OF_MODES = "encoder"  # of which some parameters differ between full context and streaming
OF_AN_EXP_DIR = ("init_epoch", "init_avg", "init_use_averaged_model")


class Source(NamedTuple):
    """What --init-checkpoint names.

    folder: its exp-dir, or the directory of its file.
    path: the file, or the last one of the averaged files.
    averaged: how it is averaged; "" for a file.
    weights: float32 tensors by parameter name.
    """

    folder: Path
    path: Path
    averaged: str
    weights: StateDict


def read_source(train: TrainConfig) -> Source:
    """Reads the file, or averages the epochs of the exp-dir, that --init-checkpoint names.

    Raises:
      UserError: there is none, or it is damaged; or a flag chooses an epoch of a file.
    """
    path = Path(train.init_checkpoint)
    if path.is_dir():
        choice = CheckpointChoice(
            path,
            train.init_epoch,
            avg=train.init_avg,
            use_averaged_model=train.init_use_averaged_model,
            prefix="init_",
        )
        try:
            averaged = load_averaged(choice)
        except UserError as error:  # which may name a file alone
            raise UserError(error.problem, flag=error.flag or option("init_checkpoint"), fix=error.fix) from error
        return Source(path, averaged.last, f" with {option('init_avg', train.init_avg)}", averaged.weights)
    try:
        weights = load_weights(path)
    except UserError as error:
        fix = "give an exp-dir, or a file of weights: epoch-N.pt, pretrained.pt, .safetensors"
        raise UserError(error.problem, flag=option("init_checkpoint"), fix=fix) from error
    for name in OF_AN_EXP_DIR:
        if getattr(train, name) != getattr(TrainConfig, name):
            raise UserError(f"{path} is a file, and no exp-dir", flag=option(name, getattr(train, name)), fix="drop it")
    return Source(path.parent, path, "", weights)


def begin_with(model: Transducer, source: Source, modules: Sequence[str], tokens: Sequence[str]) -> None:
    """Gives `model` the weights of a checkpoint, and logs which parts got them and which begin at random.

    Args:
      model: on any device.
      modules: the parts that get them; empty: all.
      tokens: that the model is to write, in the order of their ids.
    Raises:
      UserError: a part that the model has not; weights of other tokens; or the first tensor that does not fit.
    """
    ours, parts = model.state_dict(), parts_of(model.state_dict())
    for module in modules:
        if not any(is_within(name, [module]) for name in ours):
            raise UserError(
                f"{module} is no part of the model", flag=option("init_modules"), fix=f"name some of {', '.join(parts)}"
            )
    wanted = [name for name in ours if is_within(name, modules or parts)]
    check_same_tokens(source, wanted, tokens)
    theirs = source.weights
    if any(is_within(name, [OF_MODES]) for name in wanted):
        theirs = weights_in_mode_of(model, theirs, streams(model, source), option("init_checkpoint", source.path))
    check_fit(theirs, ours, modules or parts, source)
    weights = {name: theirs[name] for name in wanted}
    check_finite(weights, source.path)
    model.load_state_dict(weights, strict=False)
    logging.info(
        f"Begins with the weights in {source.path}{source.averaged}: {', '.join(modules or parts)} ({len(wanted)} of "
        f"{len(ours)} tensors); at random: {rest_of(ours, weights)}; left out of the file: {rest_of(theirs, weights)}"
    )


def rest_of(names: Collection[str], taken: Collection[str]) -> str:
    """The parts of `names` that are not in `taken`; where some of a part are, how many of it are not."""
    rest, whole = (Counter(part_of(name) for name in some) for some in (set(names) - set(taken), names))
    shown = [
        part if rest[part] == count else f"{rest[part]} of {count} in {part}"
        for part, count in whole.items()
        if rest[part]
    ]
    return ", ".join(shown) or "nothing"


def part_of(name: str) -> str:
    """What a parameter's name begins with, up to the first dot."""
    return name.split(".")[0]


def parts_of(names: Iterable[str]) -> list[str]:
    """The `part_of` of the names, each once."""
    return list(dict.fromkeys(map(part_of, names)))


def is_within(name: str, modules: Iterable[str]) -> bool:
    """Whether a parameter belongs to one of the parts."""
    return any(name.startswith(f"{module}.") or name == module for module in modules)


def streams(model: Transducer, source: Source) -> bool:
    """Whether weights are those of a streaming model.  A Zipformer's names tell; for other encoders config.json does.

    Raises UserError where neither does.
    """
    if model.config.encoder == "zipformer":
        return is_streaming(source.weights)
    if (source.folder / CONFIG_FILE).is_file():
        return ExperimentConfig.as_written(source.folder).model.causal
    raise UserError(
        "nothing says whether it is of a streaming model",
        flag=option("init_checkpoint", source.path),
        fix=f"put the {CONFIG_FILE} of its training beside it",
    )


def weights_in_mode_of(model: Transducer, weights: StateDict, streams: bool, whose: str) -> StateDict:
    """Weights of a full-context or streaming model (`streams`) as those of `model`.

    Raises UserError, with the flag `whose`, where a full-context model is to begin with those of a streaming one.
    """
    if streams and not model.config.causal:
        raise UserError(
            "a --causal 0 student cannot start from a streaming model's weights",
            flag=whose,
            fix="give --causal 1, or leave it out",
        )
    return model.encoder.streaming_parameters(weights) if model.config.causal and not streams else weights


def check_same_tokens(source: Source, wanted: Sequence[str], tokens: Sequence[str]) -> None:
    """Raises UserError if wanted parameters belong to tokens that are not `tokens`; warns if nobody knows."""
    if not any(is_within(name, OF_TOKENS) for name in wanted):
        return
    whose = option("init_checkpoint", source.path)
    model, table = source.folder / BPE_MODEL_FILE, source.folder / TOKENS_FILE
    if not model.is_file() and not table.is_file():
        logging.warning(
            f"{whose}: neither {model.name} nor {table.name} lies beside it, so its tokens are not compared with those "
            "of --bpe-model; they must be the same, in the same order"
        )
        return
    difference = difference_of_tokens(Tokenizer(model).tokens if model.is_file() else read_tokens(table), tokens)
    if difference:
        raise UserError(
            f"it was trained with other tokens ({difference})",
            flag=whose,
            fix="give its --bpe-model, or --init-modules encoder_embed,encoder and learn the other parts anew",
        )


def check_fit(theirs: StateDict, ours: StateDict, modules: Sequence[str], source: Source) -> None:
    """Raises UserError, with the first tensor of `modules` that differs in name or shape, and the parts that fit."""
    fault = misfit(theirs, ours, modules)
    if not fault:
        return
    fitting = [part for part in parts_of(ours) if is_within(part, modules) and not misfit(theirs, ours, [part])]
    parts = f", or {option('init_modules', ','.join(fitting))} to begin the other parts at random" if fitting else ""
    raise UserError(
        fault,
        flag=option("init_checkpoint", source.path),
        fix=f"give the model flags that it was trained with (--encoder, --preset, --use-ctc, ...){parts}",
    )


def misfit(theirs: StateDict, ours: StateDict, modules: Sequence[str]) -> str:
    """The first tensor of `modules` that one of them lacks, or that has two shapes; "" if there is none."""
    for name in (name for name in {**ours, **theirs} if is_within(name, modules)):
        if name not in theirs:
            return f"it has no {name} {shape(ours[name])}"
        if name not in ours:
            return f"the model has no {name} {shape(theirs[name])}"
        if theirs[name].shape != ours[name].shape:
            return f"its {name} is {shape(theirs[name])}, that of the model {shape(ours[name])}"
    return ""


def shape(tensor: Tensor) -> str:
    """(500, 512)"""
    return str(tuple(tensor.shape))
