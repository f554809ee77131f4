"""Flags of every command that runs cells."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from kdstream.config.flags import add_jobs
from kdstream.errors import UserError, option

CHECKOUT_RECIPE = Path(__file__).resolve().parents[2] / "egs" / "librispeech"  # not in an installed package


def add_runner_flags(parser: argparse.ArgumentParser, seeds: str) -> None:
    """Adds the flags that compare-methods and sweep share; `seeds` is the default of --seeds."""
    add = parser.add_argument
    add("--exp-root", type=Path, required=True, help="Directory of the experiment directories, logs and results.")
    add("--seeds", type=integers, default=seeds, help="Seeds of training (default: %(default)s)")
    add_jobs(parser, "Cells that run at a time", default=1)
    for name, what in (("--train-flags", "Of every training"), ("--decode-flags", "Of every decoding")):
        add(name, type=shared_flags, default=(), help=f"{what}; paths as seen from --recipe (default: none)")
    add(
        "--recipe",
        type=directory,
        default=CHECKOUT_RECIPE if CHECKOUT_RECIPE.is_dir() else Path.cwd(),
        help="Where the commands run: train.py and decode.py there, else `kdstream train` and so on (default: "
        "egs/librispeech of the checkout; without one the current directory)",
    )


def shared_flags(text: str) -> list[str]:
    """Flags that all cells have.  Raises UserError for one that each has for itself."""
    try:
        flags = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {str(error).lower()}") from error
    for name, instead in (("--exp-dir", "--exp-root"), ("--seed", "--seeds")):
        if any(flag.partition("=")[0] == name for flag in flags):
            raise UserError("each cell has its own", flag=name, fix=f"leave it out, and give {instead}")
    return flags


def directory(text: str) -> Path:
    """An absolute path.  Raises UserError if it is no directory."""
    path = Path(text).resolve()
    if not path.is_dir():
        raise UserError("no such directory", flag=option("recipe", text), fix="give one from which paths in flags lead")
    return path


def integers(text: str) -> tuple[int, ...]:
    """1,2,3; each counts once."""
    return tuple(dict.fromkeys(map(int, text.split(","))))
