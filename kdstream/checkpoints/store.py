"""Checkpoint files in icefall's format: they are saved, found, loaded, restored and removed here.

An exp-dir holds epoch-N.pt (from 1), the last few checkpoint-N.pt (after N optimiser steps), and the best epochs once
more, as best-train-loss.pt and best-valid-loss.pt.  Each is a dict of plain types: model, model_avg, optimizer,
scheduler, grad_scaler, sampler, branches, and every training parameter at the top level.  "model" and "model_avg" hold
the weights that are deployed; "branches" holds those that distillation added.  A bare {"model": state_dict}, as
icefall's pretrained.pt, is read as well.  A process that is killed while it saves leaves no broken file.
"""

from __future__ import annotations

import inspect
import logging
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from kdstream.config.experiment import BPE_MODEL_FILE, CONFIG_FILE, TOKENS_FILE
from kdstream.errors import UserError
from kdstream.files import TEMPORARY, replacing

PathLike = str | Path
StateDict = dict[str, Tensor]
RESERVED = ("model", "model_avg", "optimizer", "scheduler", "grad_scaler", "sampler", "branches")
PRETRAINED = "pretrained.pt"
WEIGHTS = (".pt", ".safetensors", ".onnx")  # of file names
# icefall's checkpoints hold directories; torch before 2.5 cannot be told that these are harmless
PATHS_ALLOWED = getattr(torch.serialization, "safe_globals", lambda classes: nullcontext())
READ_AT_ONCE = 1 << 24
MMAP = "mmap" in inspect.signature(torch.load).parameters  # since torch 2.1


def save_checkpoint(
    path: PathLike,
    model: nn.Module,
    model_avg: nn.Module | None = None,
    branches: nn.Module | None = None,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    sampler: dict[str, Any] | None = None,
    params: dict[str, Any] | None = None,
) -> None:
    """Writes everything that a resumed training needs, at once or not at all.

    Args:
      path: epoch-N.pt or checkpoint-N.pt.
      model: the bare student, not its DDP wrapper.
      model_avg: its running average, in float64; a float32 copy is stored.
      sampler: position in the data, as {"epoch": the epoch to go on with, "batch": its batches already used}.
      params: plain values for the top level; their names must not be those above.
    """
    clashes = [name for name in params or {} if name in RESERVED]
    if clashes:
        raise ValueError(f"parameters {clashes} have the name of a checkpoint entry")
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": _state_of(optimizer),
        "scheduler": _state_of(scheduler),
        "grad_scaler": _state_of(scaler),
        "sampler": sampler,
        "branches": _state_of(branches),
        **(params or {}),
    }
    if model_avg is not None:
        checkpoint["model_avg"] = as_float32(model_avg.state_dict())
    logging.info(f"Saving checkpoint to {path}")
    _write(checkpoint, Path(path))


def save_pretrained(exp_dir: PathLike, model: nn.Module) -> list[Path]:
    """Writes the weights alone, as pretrained.pt, which load_averaged and icefall read, and pretrained.safetensors."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    path = Path(exp_dir) / PRETRAINED
    _write({"model": weights}, path)
    with replacing(path.with_suffix(".safetensors")) as temporary:
        temporary.write_bytes(serialize(weights))
    return [path, path.with_suffix(".safetensors")]


def remove_leftovers(exp_dir: PathLike) -> None:
    """Deletes what a training that was killed left half-written: temporary files of `files.replacing`."""
    for name in ("*.pt", CONFIG_FILE, BPE_MODEL_FILE, TOKENS_FILE):
        for path in Path(exp_dir).glob(f".{name}{TEMPORARY}"):
            path.unlink()


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    """torch.save, whole or not at all.  Raises UserError where the disk is full."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        target = _Target(file)
        torch.save(checkpoint, target)  # pyright: ignore[reportArgumentType]  it asks for write and flush alone
        if target.error is not None:
            raise target.error


class _Target:
    """The file that torch.save writes to.  It keeps the first error to itself.

    torch 1.13 ends the whole process where a write fails, and newer ones hide the reason behind another error.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            if self.error is None:
                self.file.write(data)
        except OSError as error:
            self.error = error
        return len(data)

    def flush(self) -> None:
        """torch.save asks for it; the file is flushed as it closes."""


def _state_of(part: Any) -> Any:
    return None if part is None else part.state_dict()


def as_float32(state: StateDict) -> StateDict:
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def params_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The training parameters at the top level of a checkpoint."""
    return {name: value for name, value in checkpoint.items() if name not in RESERVED}


def load_checkpoint(path: PathLike, bare: bool = False, lazily: bool = False) -> dict[str, Any]:
    """Reads a checkpoint to the CPU.

    Args:
      bare: accept a state dict alone, .safetensors too, as the checkpoint's "model".
      lazily: where torch can, read a tensor from the disk only when it is used: the parameters alone then cost little.
    Raises:
      UserError: no such file, a file cut short, or one that is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint{what_there_is(path.parent)}")
    if bare and path.suffix == ".safetensors":
        try:
            return {"model": load_file(path)}
        except (OSError, SafetensorError) as error:
            problem = f"{path}: cannot be read as safetensors ({error})"
            raise UserError(problem, fix="download or export it again") from error
    checkpoint = _read(path, lazily)
    if bare and is_state(checkpoint):
        checkpoint = {"model": checkpoint}
    if not isinstance(checkpoint, dict) or not is_state(checkpoint.get("model")):
        fix = "give a file that kdstream train or kdstream export wrote"
        raise UserError(f'{path}: not a checkpoint: it has no "model"', fix=fix)
    return checkpoint


def is_state(found: Any) -> bool:
    """Whether it is a state dict: tensors by their names."""
    return isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values())


def _read(path: Path, lazily: bool) -> Any:
    """torch.load, whose failures become UserErrors."""
    try:
        with PATHS_ALLOWED([pathlib.PosixPath]):
            if lazily and MMAP and zipfile.is_zipfile(path):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            _check_sums(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search("unsupported (global|class)", str(error), re.IGNORECASE):  # icefall's own, with its paths
            raise UserError(
                f"{path}: holds Python objects besides tensors",
                fix='export its weights first, e.g. torch.save({"model": model.state_dict()}, "pretrained.pt")',
            ) from error
        if "Unsupported operand 71" in str(error):  # BINFLOAT, which torch 2 supports
            raise UserError(
                f"{path}: torch {torch.__version__} cannot read the plain numbers in it",
                fix="in the environment that trained it, write its weights with kdstream export, and give them here as "
                "--checkpoint pretrained.pt",
            ) from error
        raise _damaged(path) from error
    except Exception as error:  # bytes that are no checkpoint end in errors of any kind
        raise _damaged(path) from error


def _check_sums(path: Path) -> None:
    """Raises BadZipFile where the bytes are not those that torch.save wrote: torch.load does not look.

    torch.save leaves its checksums out (0) where it is told to.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                if item.CRC:
                    with archive.open(item) as stored:
                        while stored.read(READ_AT_ONCE):
                            pass


def load_weights(path: PathLike) -> StateDict:
    """A state dict in float32, from a .safetensors file or one of torch's, bare or under "model".

    Raises:
      UserError: as `load_checkpoint`.
    """
    return as_float32(load_checkpoint(path, bare=True)["model"])


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path}: cut short or damaged",
        fix="delete it and go on from an earlier one (train.py --resume 1 takes the last that is left; --epoch, "
        "--teacher-epoch or, in decoding, --iter names one)",
    )


def what_there_is(exp_dir: Path) -> str:
    """ "; DIR holds ..." for error messages."""
    names = [path.name for path in (*find_epochs(exp_dir), *find_checkpoints(exp_dir))]
    if not names:
        return f"; {exp_dir} holds none, train first"
    return f"; {exp_dir} holds {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"


def restore(
    checkpoint: dict[str, Any],
    path: PathLike,
    model: nn.Module,
    model_avg: nn.Module | None = None,
    branches: nn.Module | None = None,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
) -> None:
    """Puts a checkpoint's parts back where they came from.  Parameters are loaded strictly.

    Raises:
      UserError: naming `path`, if a part does not fit or is missing.
    """
    load_strictly(model, checkpoint["model"], path)
    if model_avg is not None:
        load_strictly(model_avg, checkpoint.get("model_avg") or checkpoint["model"], path)
    if branches is not None:
        load_strictly(branches, _part(checkpoint, "branches", path), path)
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler), ("grad_scaler", scaler)):
        # A scaler that was off leaves an empty state: float16 may have been switched on since.
        if part is not None and (name != "grad_scaler" or checkpoint.get(name)):
            state = _part(checkpoint, name, path)
            try:
                part.load_state_dict(state)
            except (ValueError, KeyError) as error:
                problem = f"{path}: its {name} is of another training ({error})"
                raise UserError(problem, fix="change --exp-dir") from error


def _part(checkpoint: dict[str, Any], name: str, path: PathLike) -> Any:
    if checkpoint.get(name) is None:  # it may be empty: token distillation has no branches
        problem = f"{path}: holds no {name}, so training cannot go on from it"
        raise UserError(problem, fix="start anew in another --exp-dir")
    return checkpoint[name]


def load_strictly(module: nn.Module, state: StateDict, path: PathLike) -> None:
    """load_state_dict(strict=True) whose failure is one line that names the file.

    Raises UserError for weights that do not fit, and for NaN or infinity among them.
    """
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path}: does not fit the model in config.json ({' '.join(str(error).split())[:300]})",
            fix="use the checkpoints and the config.json of one training",
        ) from error
    check_finite(state, path)


def check_finite(state: Mapping[str, Tensor], whose: PathLike) -> None:
    """Raises UserError, which names `whose` weights they are, for NaN or infinity among them."""
    odd = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if odd:
        raise UserError(f"{whose}: {odd[0]} holds NaN or infinity", fix="take an earlier checkpoint")


def has_begun(exp_dir: PathLike) -> bool:
    """Whether the settings in an exp-dir are those of weights that lie beside them, and not of a start that failed."""
    return any(path.suffix in WEIGHTS for path in Path(exp_dir).glob("[!.]*"))


def has_ended(exp_dir: PathLike, num_epochs: int) -> bool:
    """Whether a training of so many epochs is done: the last epoch is there, and validated."""
    last = Path(exp_dir) / f"epoch-{num_epochs}.pt"
    return last.is_file() and not awaits_validation(last)


def awaits_validation(path: PathLike) -> bool:
    """Whether this epoch-N.pt was written before its epoch was validated, and training was stopped then.

    A damaged file does not wait: who reads its weights will say so.
    """
    try:
        sampler = load_checkpoint(path, lazily=True).get("sampler")
    except UserError:
        return False
    return bool(sampler and sampler.get("batch"))


def find_epochs(exp_dir: PathLike) -> list[Path]:
    """epoch-N.pt, the last one first."""
    return [path for _, path in sorted(_numbered(Path(exp_dir), "epoch"), reverse=True)]


def last_epoch(exp_dir: PathLike) -> int:
    """The highest N of epoch-N.pt, 0 if there is none."""
    return max((number for number, _ in _numbered(Path(exp_dir), "epoch")), default=0)


def find_checkpoints(exp_dir: PathLike, until: int = 0) -> list[Path]:
    """checkpoint-N.pt (with N <= `until`, unless that is 0), the last one first."""
    found = sorted(_numbered(Path(exp_dir), "checkpoint"), reverse=True)
    return [path for number, path in found if not until or number <= until]


def _numbered(exp_dir: Path, stem: str) -> list[tuple[int, Path]]:
    matches = [(re.fullmatch(rf"{stem}-(\d+)\.pt", path.name), path) for path in exp_dir.glob(f"{stem}-*.pt")]
    return [(int(match.group(1)), path) for match, path in matches if match]


def remove_old_checkpoints(exp_dir: PathLike, keep: int) -> None:
    """Deletes all but the last `keep` checkpoint-N.pt."""
    for path in find_checkpoints(exp_dir)[max(1, keep) :]:
        path.unlink()


def latest_checkpoint(exp_dir: PathLike) -> Path | None:
    """The checkpoint that saw most batches, of epoch-N.pt and checkpoint-N.pt; None if there is neither.

    Raises:
      UserError: an epoch-N.pt that does not say how many it saw.
    """
    epochs, checkpoints = find_epochs(exp_dir)[:1], find_checkpoints(exp_dir)[:1]
    if not epochs or not checkpoints:
        return next(iter(epochs + checkpoints), None)
    steps, steps_of_epoch = steps_of(checkpoints[0]) or 0, steps_of(epochs[0])
    if steps_of_epoch is None:
        raise UserError(
            f"{epochs[0]}: holds no batch_idx_train, so training cannot go on from it",
            fix=f"name the checkpoint with --start-batch {steps}, or move {epochs[0].name} away",
        )
    return epochs[0] if steps_of_epoch >= steps else checkpoints[0]


def saved_after(exp_dir: PathLike, steps: int) -> list[Path]:
    """The checkpoints that saw more than `steps` batches, the best ones too.

    Raises:
      UserError: a damaged one.
    """

    def is_later(path: Path) -> bool:
        return (steps_of(path) or 0) > steps

    numbered = (takewhile(is_later, found) for found in (find_epochs(exp_dir), find_checkpoints(exp_dir)))
    return [*chain.from_iterable(numbered), *filter(is_later, sorted(Path(exp_dir).glob("best-*.pt")))]


def steps_of(path: Path) -> int | None:
    """How many optimiser steps a checkpoint saw; None where it does not say."""
    match = re.fullmatch(r"checkpoint-(\d+)", path.stem)
    return int(match.group(1)) if match else load_checkpoint(path, lazily=True).get("batch_idx_train")
