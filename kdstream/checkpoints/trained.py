"""What training leaves to decoding and export: a model with averaged weights, and what it cost to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdstream.checkpoints.average import Averaged, CheckpointChoice, load_averaged
from kdstream.checkpoints.store import PRETRAINED, load_strictly, load_weights
from kdstream.config.decoding import WeightsConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import warn_of_unread
from kdstream.errors import option
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


def load_trained(config: ExperimentConfig, chosen: WeightsConfig) -> Trained:
    """Builds the model of `config` with the weights that `chosen` names.

    Args:
      config: from chosen.exp_dir.
    Raises:
      UserError: a checkpoint that is missing, damaged, or not of this config.
    """
    averaged = _read_weights(chosen)
    model = build_model(resolve(config.model)).eval()
    load_strictly(model, averaged.weights, chosen.checkpoint or chosen.exp_dir)
    name = averaged.last.stem
    if not chosen.checkpoint and averaged.last.name != PRETRAINED:
        name = f"{name.replace('checkpoint', 'iter')}_avg-{chosen.avg}"
    params = averaged.params
    return Trained(model, name, params.get("speech_seconds_trained", 0.0), params.get("compute_seconds", 0.0))


def _read_weights(chosen: WeightsConfig) -> Averaged:
    if chosen.checkpoint:
        warn_of_unread(chosen, ("epoch", "iter", "avg", "use_averaged_model"), f"beside {option('checkpoint')}")
        path = Path(chosen.checkpoint)
        return Averaged(load_weights(path), path, {})
    return load_averaged(
        CheckpointChoice(chosen.exp_dir, chosen.epoch, chosen.iter, chosen.avg, chosen.use_averaged_model)
    )
