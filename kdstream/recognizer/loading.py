"""Which model a path holds, and the recogniser for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdstream.config.decoding import DecodeConfig
from kdstream.config.experiment import CONFIG_FILE
from kdstream.config.flags import check_values, flags_of, with_settings
from kdstream.endpoints import EndpointConfig
from kdstream.errors import UserError, option, packages_of
from kdstream.recognizer.base import Recognizer

RUNTIMES = ("torch", "sherpa-onnx")
CHOICES = {  # settings that choose among exports, and the keywords of `load` for them
    "epoch": "epoch",
    "iter": "iter",
    "avg": "avg",
    "chunk_size": "chunk",
    "left_context_frames": "left_context",
    "right_context_frames": "right_context",
}
KEYWORDS = {**CHOICES, "exp_dir": "path", "decoding_method": "search"}  # of `load`, where they differ from the settings


@contextmanager
def by_keywords() -> Iterator[None]:
    """Errors that name flags of commands, which share the checks, name the keywords of `load` instead."""
    try:
        yield
    except UserError as error:
        settings = [item.name for section in (DecodeConfig, EndpointConfig) for item in flags_of(section)]
        keywords = {option(name): KEYWORDS.get(name, name) for name in settings}
        problem, flag, fix = (
            re.sub(r"--[a-z0-9-]+", lambda typed: keywords.get(typed[0], typed[0]), text)
            for text in (error.problem, error.flag, error.fix)
        )
        raise UserError(problem, flag=flag, fix=fix) from error


@by_keywords()
def load(
    path: str | os.PathLike[str],
    *,
    epoch: int = 0,
    iter: int = 0,
    avg: int = 1,
    use_averaged_model: bool = True,
    checkpoint: str | os.PathLike[str] = "",
    chunk: int | None = None,
    left_context: int | None = None,
    right_context: int | None = None,
    search: str = "greedy_search",
    device: str = "",
    engine: str = "auto",
    int8: bool | None = None,
    num_threads: int = 1,
    runtime: str = "",
    endpoints: EndpointConfig | None = None,
    **search_settings: Any,
) -> Recognizer:
    """Loads a model that writes down speech.

    Args:
      path: an exp-dir of train.py, which runs in torch; or a directory with the files that `export` wrote, or one
        encoder-*.onnx of them, which run in sherpa-onnx.  One that holds both runs in torch if that is installed.
        Beside a file, what chooses among exports is refused: epoch, iter, avg, chunk, the contexts and int8.
      epoch: the model of epoch-N.pt (0: the last); in sherpa-onnx: its export.
      iter: the model of checkpoint-N.pt, instead of an epoch's (0: off); in sherpa-onnx: its export.
      avg: checkpoints to average, the given one and those before it.
      use_averaged_model: average over all batches of these checkpoints, not over the files alone (torch only).
      checkpoint: a file with weights, e.g. pretrained.pt, instead of an epoch's (torch only).
      chunk: in encoder frames of 20 ms; -1 is full context.  None: the first that config.json names, or the only one
        that was exported.
      left_context, right_context: likewise, the first that fit the chunk.  Unlimited left context, -1, cannot stream.
      search: greedy_search or modified_beam_search; in torch also those of a CTC head, and with k2 fast_beam_search.
      device: e.g. "cpu" or "cuda:0"; "": a GPU if there is one (torch only).
      engine: runs the encoder chunk by chunk: "torch", "onnxruntime" or the faster one, "auto" (torch only).
      int8: the quantised export or the float32 one; None: float32 if it is there (sherpa-onnx only).
      num_threads: of the runtime (sherpa-onnx only; for torch there is torch.set_num_threads).
      runtime: "torch" or "sherpa-onnx" ("": as `path` says).
      endpoints: where text is cut into segments; None: by the defaults of EndpointConfig.
      search_settings: of the search, by the names of their flags, e.g. beam_size=8 of modified_beam_search.
    Returns:
      A recogniser; its transcribe and stream have the rest.
    Raises:
      UserError: no such model, several that fit, a setting out of its range or not of the runtime, a missing package.
    """
    place, endpoints = Path(path), endpoints or EndpointConfig()
    decode = DecodeConfig(
        exp_dir=str(place), epoch=epoch, iter=iter, avg=avg, use_averaged_model=use_averaged_model,
        checkpoint=str(checkpoint), decoding_method=search, chunk_size=chunk, left_context_frames=left_context,
        right_context_frames=right_context, device=device, engine=engine,
    )  # fmt: skip
    check_values(with_settings(decode, **search_settings), endpoints)
    if choose_runtime(place, runtime, bool(checkpoint)) == "torch":
        refuse_settings("torch", int8=int8 is not None, num_threads=num_threads != 1)
        return load_trained(decode, search_settings, endpoints)
    of_torch = {"use_averaged_model": not use_averaged_model, "checkpoint": bool(checkpoint), "device": bool(device)}
    refuse_settings("sherpa-onnx", **of_torch, engine=engine != "auto")
    return load_exported(place, decode, search_settings, endpoints, int8, num_threads)


def load_trained(decode: DecodeConfig, search_settings: dict[str, Any], endpoints: EndpointConfig) -> Recognizer:
    with packages_of("decode", "a trained model"):
        from kdstream.recognizer.trained import TrainedRecognizer

        return TrainedRecognizer(decode, search_settings, endpoints)


def load_exported(
    place: Path,
    decode: DecodeConfig,
    search_settings: dict[str, Any],
    endpoints: EndpointConfig,
    int8: bool | None,
    num_threads: int,
) -> Recognizer:
    if num_threads < 1:
        raise UserError(f"num_threads {num_threads}: must be at least 1")
    if place.is_file():
        refuse_choice(place, decode, int8)
    encoder = place if place.is_file() else find_encoder(place, decode, int8)
    with packages_of("serve", "an exported model"):
        from kdstream.recognizer.exported import ExportedRecognizer
        from kdstream.serving.runtime import find_model

        return ExportedRecognizer(
            find_model(encoder), num_threads, endpoints, decode.decoding_method, **search_settings
        )


def choose_runtime(place: Path, runtime: str, has_checkpoint: bool) -> str:
    """The runtime that is asked for, or that of what lies in `place`.  Raises UserError where there is no model."""
    if runtime not in ("", *RUNTIMES):
        raise UserError(f"runtime {runtime}: unknown", fix=f"use {' or '.join(RUNTIMES)}")
    if not place.exists():
        raise UserError(f"{place}: no such file or directory", fix="give an exp-dir, or what kdstream export wrote")
    if runtime:
        return runtime
    if place.is_file():
        return "sherpa-onnx"
    is_exported = any(place.glob("encoder-*.onnx"))
    if (place / CONFIG_FILE).is_file() and (has_checkpoint or any(place.glob("*.pt"))):
        return "torch" if find_spec("torch") or not is_exported else "sherpa-onnx"
    if is_exported:
        return "sherpa-onnx"
    problem = f"{place}: holds neither {CONFIG_FILE} and checkpoints, nor an exported encoder-*.onnx"
    raise UserError(problem, fix="give a directory that kdstream train or kdstream export wrote")


def refuse_settings(runtime: str, **given: bool) -> None:
    """Raises UserError for a setting that is given and that the runtime does not have."""
    for name, is_given in given.items():
        if is_given:
            other = next(other for other in RUNTIMES if other != runtime)
            raise UserError(f"{name}: not in {runtime}", fix=f'leave it out, or use runtime="{other}"')


def refuse_choice(encoder: Path, decode: DecodeConfig, int8: bool | None) -> None:
    """Raises UserError for a keyword that chooses among exports, where one of them is named."""
    given = [keyword for name, keyword in CHOICES.items() if getattr(decode, name) != getattr(DecodeConfig, name)]
    given += ["int8"] * (int8 is not None)
    if given:
        problem = f"{', '.join(given)}: for the exports of a directory, and {encoder} is one file"
        raise UserError(problem, fix="leave out what chooses one, or give the directory")


def find_encoder(folder: Path, decode: DecodeConfig, int8: bool | None) -> Path:
    """The one exported encoder in `folder` that fits; epoch, iter, avg and the chunk are as in `load`.

    Raises UserError, with the names, where none or several do.
    """
    encoders = sorted(folder.glob("encoder-*.onnx"))
    weights, chunk, left, right = ".*", r"\d+", r"\d+", r"(-right-\d+)?"
    if decode.iter or decode.epoch:
        weights = f"iter-{decode.iter}-avg-{decode.avg}" if decode.iter else f"epoch-{decode.epoch}-avg-{decode.avg}"
    elif decode.avg != DecodeConfig.avg:
        weights = rf".*-avg-{decode.avg}"
    if decode.chunk_size is not None:
        chunk = str(decode.chunk_size)
    if decode.left_context_frames is not None:
        left = str(decode.left_context_frames)
    if decode.right_context_frames is not None:
        right = f"-right-{decode.right_context_frames}" if decode.right_context_frames else ""
    fitting = [
        path
        for path in encoders
        if re.fullmatch(rf"encoder-{weights}-chunk-{chunk}-left-{left}{right}(\.int8)?.onnx", path.name)
    ]
    small = [path for path in fitting if path.name.endswith(".int8.onnx")]
    exact = [path for path in fitting if path not in small]
    fitting = small if int8 or (int8 is None and not exact) else exact
    if len(fitting) == 1:
        return fitting[0]
    if not encoders:
        raise UserError(f"{folder}: holds no exported encoder-*.onnx", fix="write one with kdstream export")
    names = ", ".join(path.name for path in fitting or encoders)
    if fitting:
        raise UserError(f"{folder}: several exports fit: {names}", fix="name the file that you mean")
    fix = "name the file that you mean, or write another with kdstream export"
    if all("-offline." in path.name for path in encoders):
        fix = "write a streaming one with kdstream export; this one is for sherpa-onnx's OfflineRecognizer"
    raise UserError(f"{folder}: no export fits; there are: {names}", fix=fix)
