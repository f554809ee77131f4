"""What training leaves to decoding and export: a model with averaged weights, and what it cost to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdstream.checkpoints.average import load_averaged
from kdstream.checkpoints.store import find_checkpoints, find_epochs, load_checkpoint, load_strictly, load_weights
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DecodeConfig
from kdstream.models.presets import resolve
from kdstream.models.transducer import Transducer, build_model


@dataclass(frozen=True)
class Trained:
    """A trained model in eval mode, on the CPU.

    name: which checkpoints it is, as file names spell it: epoch-30_avg-9, iter-8000_avg-3, or the stem of
      pretrained.pt or of --checkpoint.
    speech_seconds: of speech that training has gone through, repetitions counted.
    compute_seconds: that training has taken, all runs together.
    """

    model: Transducer
    name: str
    speech_seconds: float
    compute_seconds: float


def load_trained(config: ExperimentConfig, decode: DecodeConfig) -> Trained:
    """Builds the model of `config` with the weights that `decode` names.

    Args:
      config: from decode.exp_dir.
    Raises:
      UserError: a checkpoint that is missing, damaged, or not of this config.
    """
    source = Path(decode.checkpoint or decode.exp_dir)
    if decode.checkpoint:
        weights = load_weights(source)
    else:
        weights = load_averaged(source, decode.epoch, decode.iter, decode.avg, decode.use_averaged_model)
    model = build_model(resolve(config.model)).eval()
    load_strictly(model, weights, source)
    last = None if decode.checkpoint else _last_checkpoint(source, decode)
    if last is None:
        return Trained(model, source.stem if decode.checkpoint else "pretrained", 0.0, 0.0)
    params = load_checkpoint(last)
    name = f"{last.stem.replace('checkpoint', 'iter')}_avg-{decode.avg}"
    return Trained(model, name, params.get("speech_seconds_trained", 0.0), params.get("compute_seconds", 0.0))


def _last_checkpoint(exp_dir: Path, decode: DecodeConfig) -> Path | None:
    """The last of the files that `decode` averages; None for a bare pretrained.pt."""
    if decode.iter > 0:
        return find_checkpoints(exp_dir, until=decode.iter)[0]
    if decode.epoch > 0:
        return exp_dir / f"epoch-{decode.epoch}.pt"
    return next(iter(find_epochs(exp_dir)), None)
