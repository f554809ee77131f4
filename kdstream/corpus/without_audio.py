"""Transcripts of which a recipe found no audio: recipes that go by the audio files pass over them without a word."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdstream.files import read_utf8

NAMED = 3  # recordings in the log's line


def _of_aishell(corpus_dir: Path, _: Mapping[str, Any]) -> Iterator[str]:
    transcripts = read_utf8(corpus_dir / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt")
    yield from (line.split()[0] for line in transcripts.split("\n") if line.strip())


def _of_switchboard(_: Path, arguments: Mapping[str, Any]) -> Iterator[str]:
    if arguments.get("transcripts_dir"):  # sw2001A-ms98-a-trans.text is of sw02001
        names = (path.name for path in sorted(Path(str(arguments["transcripts_dir"])).rglob("sw*trans.text")))
        yield from (f"sw0{name[2:6]}" for name in names)


# The ids of the recordings that have a transcript, of recipes that go by the audio files
TRANSCRIBED: dict[str, Callable[[Path, Mapping[str, Any]], Iterable[str]]] = {
    "aishell": _of_aishell,
    "switchboard": _of_switchboard,
}


def warn_of_transcripts_without_audio(
    recipe: str, corpus_dir: Path, arguments: Mapping[str, Any], found: set[str]
) -> None:
    """Logs how many recordings have a transcript and no audio file, and names the first.

    Args:
      arguments: of the recipe.
      found: the ids of the recordings that it found.
    """
    if recipe not in TRANSCRIBED:
        return
    lacking = list(dict.fromkeys(each for each in TRANSCRIBED[recipe](corpus_dir, arguments) if each not in found))
    if lacking:
        named = ", ".join(lacking[:NAMED]) + ", ..." * (len(lacking) > NAMED)
        logging.warning(f"{corpus_dir}: {len(lacking)} recordings have a transcript and no audio file: {named}")
