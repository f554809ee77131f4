"""The audio files in folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdstream.audio.kinds import OTHER_SUFFIXES, SUFFIXES
from kdstream.errors import UserError, printable

NAME_FILES = "name audio files, or a directory of such"
NAMED = 10  # files in a warning


def find_audio(paths: Sequence[str]) -> list[Path]:
    """The files among `paths`, and all files in and below the directories that libsndfile reads, by their suffix.

    A warning names other files there that hold sound by their suffix.  Raises UserError for a directory that holds no
    audio, or that cannot be read.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(_files_below(path))
        audio = [file for file in inside if file.suffix.lower() in SUFFIXES]
        others = [file for file in inside if file.suffix.lower() in OTHER_SUFFIXES]
        named = ", ".join(printable(str(file)) for file in others[:NAMED]) + ", ..." * (len(others) > NAMED)
        if others and audio:
            logging.warning(
                f"{printable(str(path))}: {len(others)} files are passed by, which libsndfile does not read: {named}"
            )
        if not audio:
            passed_by = f", but {len(others)} files that libsndfile does not read: {named}" * bool(others)
            fix = "convert them, e.g. with ffmpeg" if others else NAME_FILES
            raise UserError(f"{path}: holds no audio file ({' '.join(SUFFIXES)}){passed_by}", fix=fix)
        found += audio
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    """The files in and below a folder, through links too; each folder once."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}", fix="make it readable, or name the files") from error

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in seen]
        yield from (Path(place, name) for name in names if not name.startswith("._"))  # macOS's notes on a file
