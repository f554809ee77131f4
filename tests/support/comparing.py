"""The first difference between two things that should be equal bit for bit; "" where there is none."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Readings of a clock: entries of a results JSON's records and of a checkpoint.
WALL_CLOCK = {"compute_hours", "compute_seconds", "latency.compute"}
LOG_PREFIX = re.compile(r"\S+ \S+ [A-Z]+ \[[^\]]*\] ")  # 2026-01-31 12:00:00,123 INFO [loop.py:45]
PARTS = ("model", "model_avg", "branches", "optimizer", "scheduler", "grad_scaler", "sampler")  # of a checkpoint
PROGRESS = (
    "cur_epoch", "batch_idx_train", "best_train_loss", "best_valid_loss", "best_train_epoch", "best_valid_epoch",
    "speech_seconds_trained", "tot_loss",
)  # fmt: skip


def different_bytes(a: bytes, b: bytes) -> str:
    """Names the first line of two texts that differs, or the first byte of other files."""
    if a == b:
        return ""
    try:
        return different_lines(a.decode().split("\n"), b.decode().split("\n"))
    except UnicodeDecodeError:
        place = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        return f"byte {place}, of {len(a)} and {len(b)}"


def different_lines(a: Sequence[str], b: Sequence[str]) -> str:
    for number, (x, y) in enumerate(zip(a, b, strict=False), start=1):
        if x != y:
            return f"line {number}: {x!r}, {y!r}"
    return "" if len(a) == len(b) else f"{len(a)} and {len(b)} lines"


def different_values(a: Any, b: Any, leave_out: Collection[str] = ()) -> str:
    """Compares nested dicts, lists and tuples of tensors and plain values; types count, and NaN equals NaN.

    Args:
      leave_out: names, e.g. "latency.compute", of entries that are not compared.  Places in lists are no part of them.
    """
    for name, x, y in _pairs(a, b, "", leave_out):
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            difference = _different_tensors(x, y)
        else:
            difference = "" if type(x) is type(y) and repr(x) == repr(y) else f"{x!r}, {y!r}"
        if difference:
            return f"{name}: {difference}"
    return ""


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def _pairs(a: Any, b: Any, name: str, leave_out: Collection[str]) -> Iterator[tuple[str, Any, Any]]:
    """The leaves of both, by name; ABSENT where one of them has none."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in (*a, *(key for key in b if key not in a)):
            inner = f"{name}.{key}" if name else str(key)
            if re.sub(r"\[\d+\]\.?", "", inner) not in leave_out:
                yield from _pairs(a.get(key, ABSENT), b.get(key, ABSENT), inner, leave_out)
    elif isinstance(a, (list, tuple)) and type(a) is type(b):
        if len(a) != len(b):
            yield f"length of {name}", len(a), len(b)
        for place, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from _pairs(x, y, f"{name}[{place}]", leave_out)
    else:
        yield name, a, b


def _different_tensors(a: Tensor, b: Tensor) -> str:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype} {tuple(a.shape)}, {b.dtype} {tuple(b.shape)}"
    if torch.equal(_bits(a), _bits(b)):
        return ""
    place = int((_bits(a) != _bits(b)).any(dim=1).nonzero()[0])
    return f"[{place}] of {a.numel()}: {a.flatten()[place].item()!r}, {b.flatten()[place].item()!r}"


def _bits(tensor: Tensor) -> Tensor:
    """(elements, bytes of one)"""
    flat = tensor.detach().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).reshape(-1, tensor.element_size())


def read_losses(log: Path) -> list[str]:
    """The lines of a training's log that hold losses, without date and place in the source."""
    lines = [LOG_PREFIX.sub("", line, count=1) for line in log.read_text(encoding="utf8").splitlines()]
    return [line for line in lines if line.startswith("Epoch ")]


def different_checkpoints(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Compares the tensors of all parts, and how far training has come."""
    x, y = ({name: c.get(name, ABSENT) for name in (*PARTS, *PROGRESS)} for c in (a, b))
    return different_values(x, y)


def different_settings(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Compares the settings that both checkpoints hold."""
    common = (a.keys() & b.keys()) - {*PARTS, *PROGRESS, *WALL_CLOCK}
    x, y = ({name: c[name] for name in sorted(common)} for c in (a, b))
    return different_values(x, y)


def different_records(a: list[Any], b: list[Any]) -> str:
    """Compares the records of two results JSONs."""
    return different_values(a, b, WALL_CLOCK)


def read_tensors(path: Path) -> dict[str, Any]:
    """A checkpoint, or pretrained.pt; nothing that it holds is run."""
    return torch.load(path, map_location="cpu", weights_only=True)
