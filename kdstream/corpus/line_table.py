"""The names of lines, codecs and rooms, which flags take; without torch."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdstream.config.flags import names_in
from kdstream.config.registry import Registry
from kdstream.errors import UserError, option

Change = Callable[[Any, random.Random, Path], Any]  # (cut of 16 kHz, what it draws from, folder for audio): a cut
LINES: Registry[Change] = Registry(
    "augment",
    filled_by="kdstream.corpus.lines",
    own={name: () for name in ("narrowband", "mp3", "opus", "reverb", "volume", "pauses")},
)


def names_of(text: str) -> list[str]:
    """Names of LINES, separated by commas; one that comes twice counts once.  Raises UserError for others, or none."""
    names = list(dict.fromkeys(names_in(text)))
    for name in names:
        LINES.check(name)
    if not names:
        raise UserError("names nothing", flag=option("augment", text), fix=f"use some of {','.join(LINES)}")
    return names
