"""Averages of checkpoints: the running one of training, and the one that --epoch, --iter and --avg name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from kdstream.checkpoints.store import (
    PRETRAINED,
    PathLike,
    StateDict,
    _what_there_is,
    as_float32,
    find_checkpoints,
    last_epoch,
    load_checkpoint,
    load_weights,
)
from kdstream.errors import UserError


@torch.no_grad()
def update_averaged_model(model: nn.Module, model_avg: nn.Module, average_period: int, batch_idx_train: int) -> None:
    """model_avg += (model - model_avg) * average_period / batch_idx_train.

    Called every `average_period` batches, this keeps model_avg the mean of the models at all those
    points.  model_avg is float64, on the CPU: over many updates float32 would lose the small steps.
    """
    weight = average_period / batch_idx_train
    average = model_avg.state_dict()
    for name, value in model.state_dict().items():
        value = value.to(average[name].device, average[name].dtype)
        if average[name].is_floating_point():
            average[name].lerp_(value, weight)
        else:
            average[name].copy_(value)


def float64_copy(model: nn.Module) -> nn.Module:
    """What update_averaged_model averages into: a copy on the CPU, in float64."""
    return copy.deepcopy(model).to("cpu", torch.float64).requires_grad_(False)


def load_averaged(exp_dir: PathLike, epoch: int, iter_: int, avg: int, use_averaged_model: bool) -> StateDict:
    """The parameters that icefall's decode.py would use for --epoch/--iter, --avg, --use-averaged-model.

    With use_averaged_model: the mean over all batches after epoch (epoch - avg) up to epoch `epoch`,
    from the running averages in those two files; epoch == avg means from the start of training.
    Without: the plain mean of the last `avg` files.  `iter_` > 0 counts checkpoint-N.pt files
    instead.  Epoch 0 is the last one there is, or else a bare pretrained.pt.

    Returns:
      float32 tensors by parameter name.
    Raises:
      UserError: a file that is missing or damaged, or one without what the average needs.
    """
    exp_dir = Path(exp_dir)
    if avg < 1:
        raise UserError(f"--avg {avg}: must be at least 1")
    if epoch == 0 and iter_ == 0:
        epoch = last_epoch(exp_dir)
        if not epoch and (exp_dir / PRETRAINED).is_file():
            return load_weights(exp_dir / PRETRAINED)
        if not epoch:
            raise UserError(f"{exp_dir}: no epoch-N.pt{_what_there_is(exp_dir)}; or name one with --iter")
    wanted = avg + 1 if use_averaged_model else avg
    if iter_ > 0:
        paths = find_checkpoints(exp_dir, until=iter_)[:wanted]
        if len(paths) < wanted:
            fix = "lower --avg" if avg > 1 else "give --use-averaged-model 0 for the weights of that batch alone"
            raise UserError(
                f"--iter {iter_} --avg {avg}: needs {wanted} checkpoint-N.pt files up to {iter_}, "
                f"{exp_dir} holds {len(paths)}; {fix}"
            )
    else:
        if avg > epoch:
            raise UserError(f"--epoch {epoch} --avg {avg}: averages more epochs than there were; lower --avg")
        paths = [exp_dir / f"epoch-{e}.pt" for e in range(epoch, epoch - wanted, -1) if e >= 1]
    if not use_averaged_model:
        return _mean_of(paths)
    start = paths[-1] if len(paths) == wanted else None  # None: from the start of training
    return _mean_between(start, paths[0])


def _mean_of(paths: list[Path]) -> StateDict:
    total: StateDict = {}
    for path in paths:
        for name, value in load_checkpoint(path)["model"].items():
            value = value.double() if value.is_floating_point() else value
            total[name] = total[name] + value if name in total and value.is_floating_point() else value
    return _map_floats(lambda value: value / len(paths), total)


def _mean_between(start: Path | None, end: Path) -> StateDict:
    """The mean of the models after `start` up to `end`: (n_end avg_end - n_start avg_start) / (n_end - n_start)."""
    average, n_end = _running_average(end)
    if start is None:
        previous, n_start = {}, 0
    else:
        previous, n_start = _running_average(start)
    if n_end <= n_start:
        raise UserError(
            f"{end}: its running average was not updated after {start or 'the start'}; "
            "raise --avg, give --use-averaged-model 0, or train with a lower --average-period"
        )
    weight = n_end / (n_end - n_start)
    if start is None:
        return as_float32(average)
    return {
        name: (weight * value.double() + (1 - weight) * previous[name].double()).float()
        if value.is_floating_point()
        else value
        for name, value in average.items()
    }


def _running_average(path: Path) -> tuple[StateDict, int]:
    """model_avg, and the batches that it covers."""
    checkpoint = load_checkpoint(path)
    if not checkpoint.get("model_avg") or "batch_idx_train" not in checkpoint:
        raise UserError(f"{path}: holds no running average; give --use-averaged-model 0")
    period = checkpoint["average_period"]
    return checkpoint["model_avg"], checkpoint["batch_idx_train"] // period * period


def _map_floats(function: Callable[[Tensor], Tensor], state: StateDict) -> StateDict:
    return {name: function(value).float() if value.is_floating_point() else value for name, value in state.items()}
