"""Averages of checkpoints: the running one of training, and the one that --epoch, --iter and --avg name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdstream.checkpoints.store import (
    PRETRAINED,
    PathLike,
    StateDict,
    as_float32,
    find_checkpoints,
    is_state,
    last_epoch,
    load_checkpoint,
    load_weights,
    params_of,
    what_there_is,
)
from kdstream.errors import UserError, option


@torch.no_grad()
def update_averaged_model(model: nn.Module, model_avg: nn.Module, updated: int, batch_idx_train: int) -> None:
    """model_avg += (model - model_avg) * (batch_idx_train - updated) / batch_idx_train.

    Called every --average-period batches, this keeps model_avg the mean of the models at all those
    points, as icefall does.  Where the period has changed, a model weighs by the batches since the update before it.
    model_avg is float64, on the CPU: over many updates float32 would lose the small steps.

    Args:
      updated: the batch of the last update; 0 before the first one, which so leaves nothing of the initial weights.
    """
    weight = (batch_idx_train - updated) / batch_idx_train
    average = model_avg.state_dict()
    for name, value in model.state_dict().items():
        value = value.to(average[name].device, average[name].dtype)
        if average[name].is_floating_point():
            average[name].lerp_(value, weight)
        else:
            average[name].copy_(value)


@torch.no_grad()
def round_to_float32(model_avg: nn.Module) -> None:
    """Rounds an average to what a checkpoint stores of it.

    A training does so whenever it saves.  Then it goes on from the very numbers that a resumed one reads, and the two
    stay the same to the last bit.
    """
    for value in model_avg.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.float())


def float64_copy(model: nn.Module) -> nn.Module:
    """What update_averaged_model averages into: a copy on the CPU, in float64."""
    return copy.deepcopy(model).to("cpu", torch.float64).requires_grad_(False)


@dataclass(frozen=True)
class CheckpointChoice:
    """Which checkpoints of an experiment are averaged, as the flags of decode.py name them.

    epoch: epoch-N.pt; 0 is the last one there is, or else a bare pretrained.pt.
    iter: if more than 0, checkpoint-N.pt instead of an epoch.
    avg: how many checkpoints are averaged: this one and those before it.
    use_averaged_model: average over every batch of these checkpoints (model_avg), not over the files alone.
    prefix: of the flags in messages, e.g. "teacher_" where the user typed --teacher-epoch.
    """

    exp_dir: PathLike
    epoch: int = 0
    iter: int = 0
    avg: int = 1
    use_averaged_model: bool = True
    prefix: str = ""

    def option(self, name: str, value: object = None) -> str:
        """A field as its flag is typed, for messages."""
        return option(self.prefix + name, value)


class Averaged(NamedTuple):
    """What `load_averaged` read.

    weights: float32 tensors by parameter name.
    last: the last one of the averaged files.
    params: the training parameters at the top level of that file.
    """

    weights: StateDict
    last: Path
    params: dict[str, Any]


def load_averaged(choice: CheckpointChoice) -> Averaged:
    """The parameters that icefall's decode.py would use for --epoch/--iter, --avg, --use-averaged-model.

    With use_averaged_model: the mean over all batches after epoch (epoch - avg) up to epoch `epoch`,
    from the running averages in those two files; epoch == avg means from the start of training.
    Without: the plain mean of the last `avg` files.

    Raises:
      UserError: a file that is missing or damaged, or one without what the average needs.
    """
    pretrained = Path(choice.exp_dir) / PRETRAINED
    if not (choice.epoch or choice.iter or last_epoch(choice.exp_dir)) and pretrained.is_file():
        return Averaged(load_weights(pretrained), pretrained, {})
    paths, first = _files_of(choice)
    if not choice.use_averaged_model:
        return _mean_of(paths)
    return _mean_between(first, paths[0], choice)


def _files_of(choice: CheckpointChoice) -> tuple[list[Path], Path | None]:
    """The files to average, the last one first; and the one before them, None at the start of training."""
    exp_dir, avg, epoch = Path(choice.exp_dir), choice.avg, choice.epoch
    wanted = avg + 1 if choice.use_averaged_model else avg
    if choice.iter > 0:
        paths = find_checkpoints(exp_dir, until=choice.iter)[:wanted]
        if len(paths) < wanted:
            weights_alone = f"give {choice.option('use_averaged_model', 0)} for the weights of that batch alone"
            raise UserError(
                f"needs {wanted} checkpoint-N.pt files up to {choice.iter}, {exp_dir} holds {len(paths)}",
                flag=f"{choice.option('iter', choice.iter)} {choice.option('avg', avg)}",
                fix=f"lower {choice.option('avg')}" if avg > 1 else weights_alone,
            )
        return paths[:avg], paths[avg] if choice.use_averaged_model else None
    epoch = epoch or last_epoch(exp_dir)
    if not epoch:
        fix = "give one in which an epoch has ended" if choice.prefix else f"name one with {choice.option('iter')}"
        raise UserError(f"{exp_dir}: no epoch-N.pt{what_there_is(exp_dir)}", fix=fix)
    if avg > epoch:
        raise UserError(
            "averages more epochs than there were",
            flag=f"{choice.option('epoch', epoch)} {choice.option('avg', avg)}",
            fix=f"lower {choice.option('avg')}",
        )
    paths = [exp_dir / f"epoch-{epoch - i}.pt" for i in range(avg)]
    return paths, exp_dir / f"epoch-{epoch - avg}.pt" if epoch > avg else None


def _mean_of(paths: list[Path]) -> Averaged:
    total: StateDict = {}
    params: dict[str, Any] = {}
    for path in paths:
        checkpoint = load_checkpoint(path)
        params = params or params_of(checkpoint)  # of the first one read, which is the last one saved
        if total:
            check_alike(checkpoint["model"], path, total, paths[0])
        for name, value in checkpoint["model"].items():
            value = value.double() if value.is_floating_point() else value
            total[name] = total[name] + value if name in total and value.is_floating_point() else value
    return Averaged(_map_floats(lambda value: value / len(paths), total), paths[0], params)


def _mean_between(start: Path | None, end: Path, choice: CheckpointChoice) -> Averaged:
    """The mean of the models after `start` up to `end`: (n_end avg_end - n_start avg_start) / (n_end - n_start)."""
    average, n_end, params = _running_average(end, choice)
    if start is None:
        previous, n_start = {}, 0
    else:
        previous, n_start, _ = _running_average(start, choice)
        check_alike(previous, start, average, end)
    if n_end <= n_start:
        raise_avg = f"raise {choice.option('avg')}, " if n_start else ""  # else even the start lies too near
        raise UserError(
            f"{end}: its running average was not updated after {start or 'the start'}",
            fix=f"{raise_avg}give {choice.option('use_averaged_model', 0)}, or train with a lower --average-period",
        )
    if start is None:
        return Averaged(as_float32(average), end, params)
    weight = n_end / (n_end - n_start)
    weights = {
        name: (weight * value.double() + (1 - weight) * previous[name].double()).float()
        if value.is_floating_point()
        else value
        for name, value in average.items()
    }
    return Averaged(weights, end, params)


def check_alike(state: StateDict, path: Path, other: StateDict, other_path: Path) -> None:
    """Raises UserError, with both paths, unless two state dicts are of one model."""
    shapes, others = ({name: value.shape for name, value in weights.items()} for weights in (state, other))
    if shapes != others:
        odd = next(name for name in {**others, **shapes} if shapes.get(name) != others.get(name))
        raise UserError(
            f"{other_path}: not of the same model as {path} ({odd} differs)", fix="average checkpoints of one training"
        )


def _running_average(path: Path, choice: CheckpointChoice) -> tuple[StateDict, int, dict[str, Any]]:
    """model_avg, the batches that it covers, and the training parameters."""
    checkpoint = load_checkpoint(path)
    if not is_state(checkpoint.get("model_avg")) or not {"batch_idx_train", "average_period"} <= set(checkpoint):
        raise UserError(f"{path}: holds no running average", fix=f"give {choice.option('use_averaged_model', 0)}")
    return checkpoint["model_avg"], averaged_until(checkpoint), params_of(checkpoint)


def averaged_until(checkpoint: Mapping[str, Any]) -> int:
    """The batch of the last update of a checkpoint's running average.  Older checkpoints, and icefall's, do not say."""
    period = checkpoint["average_period"]
    return checkpoint.get("batch_idx_averaged", checkpoint["batch_idx_train"] // period * period)


def _map_floats(function: Callable[[Tensor], Tensor], state: StateDict) -> StateDict:
    return {name: function(value).float() if value.is_floating_point() else value for name, value in state.items()}
