"""What training leaves to decoding and export: a model with averaged weights, its tokens, and what it cost to train."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from kdstream.checkpoints.average import Averaged, CheckpointChoice, load_averaged
from kdstream.checkpoints.store import PRETRAINED, load_strictly, load_weights
from kdstream.config.decoding import WeightsConfig
from kdstream.config.experiment import TOKENS_FILE, ExperimentConfig
from kdstream.config.flags import warn_of_unread
from kdstream.data.tokenizer import Tokenizer, difference_of_tokens, read_tokens
from kdstream.errors import UserError, option
from kdstream.models.presets import resolve
from kdstream.models.transducer import Transducer, build_model


@dataclass(frozen=True)
class Trained:
    """A trained model in eval mode, on the CPU, which knows the <unk> of its tokenizer.

    name: which checkpoints it is, as file names spell it: epoch-30_avg-9, iter-8000_avg-3, or the stem of
      pretrained.pt or of --checkpoint.
    speech_seconds: of speech that training has gone through, repetitions counted.
    compute_seconds: that training has taken, all runs together.
    """

    model: Transducer
    tokenizer: Tokenizer
    name: str
    speech_seconds: float
    compute_seconds: float


def load_trained(config: ExperimentConfig, chosen: WeightsConfig) -> Trained:
    """Builds the model of `config` with the weights that `chosen` names.

    Args:
      config: from chosen.exp_dir.
    Raises:
      UserError: a checkpoint that is missing, damaged, or not of this config; tokens that it was not trained with.
    """
    averaged = _read_weights(chosen)
    model = build_model(resolve(config.model)).eval()
    load_strictly(model, averaged.weights, chosen.checkpoint or chosen.exp_dir)
    tokenizer = Tokenizer(config.data.bpe_model)
    check_tokens(tokenizer, config, Path(chosen.exp_dir))
    model.unk_id = tokenizer.unk_id
    name = averaged.last.stem
    if not chosen.checkpoint and averaged.last.name != PRETRAINED:
        name = f"{name.replace('checkpoint', 'iter')}_avg-{chosen.avg}"
    speech, compute = (averaged.params.get(count, 0.0) for count in ("speech_seconds_trained", "compute_seconds"))
    return Trained(model, tokenizer, name, speech, compute)


def check_tokens(tokenizer: Tokenizer, config: ExperimentConfig, exp_dir: Path) -> None:
    """Raises UserError where the model of EXP_DIR has other tokens than the tokenizer, as far as its files tell.

    How many it has, config.json tells, and which ones, tokens.txt, if there is one.
    """
    whose, fix = config.data.bpe_model, "give the --bpe-model it was trained with"
    if tokenizer.vocab_size != config.model.vocab_size:
        problem = f"{whose}: {tokenizer.vocab_size} tokens, the model of {exp_dir} has {config.model.vocab_size}"
        raise UserError(problem, fix=fix)
    table = exp_dir / TOKENS_FILE
    if not table.is_file():
        return
    try:
        tokens = read_tokens(table)
    except UserError as error:  # it may be another tool's
        logging.warning(f"{error.problem}; the tokens of {whose} are not compared with it")
        return
    if difference := difference_of_tokens(tokenizer.tokens, tokens, "the model"):
        fix += f", or delete {table.name} if it is not of this model"
        raise UserError(f"{whose}: not the tokens in {table} ({difference})", fix=fix)


def _read_weights(chosen: WeightsConfig) -> Averaged:
    if chosen.checkpoint:
        warn_of_unread(chosen, ("epoch", "iter", "avg", "use_averaged_model"), f"beside {option('checkpoint')}")
        path = Path(chosen.checkpoint)
        return Averaged(load_weights(path), path, {})
    return load_averaged(
        CheckpointChoice(chosen.exp_dir, chosen.epoch, chosen.iter, chosen.avg, chosen.use_averaged_model)
    )
