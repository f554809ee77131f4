"""Files of hotwords: phrases that a search prefers, in sherpa-onnx's format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from kdstream.errors import UserError, option
from kdstream.files import read_utf8
from kdstream.words import WORD_START

LONGEST = 200  # letters of a phrase: more than any name has, and no load for whoever decodes with it
LARGEST_SCORE = 100.0  # which drowns the model's own; sherpa-onnx fails over what is no float32
RANGE = f"from {-LARGEST_SCORE:g} to {LARGEST_SCORE:g}"
SHOWN = 5  # lines at fault, and letters of each, that a message names
SHOWN_LETTERS = 40  # of a line at fault


class Hotword(NamedTuple):
    """A phrase, and what each of its tokens adds to the log probability of a path that says it."""

    phrase: str
    score: float


def read_hotwords(path: Path, score: float, unknown_letters: Callable[[str], str]) -> list[Hotword]:
    """The hotwords of a file, as `parse_hotwords` reads them.  Raises UserError also where it is no text file."""
    lines = read_utf8(path, option("hotwords_file", path)).splitlines()
    return parse_hotwords(lines, str(path), score, unknown_letters, "--hotwords-file")


def parse_hotwords(
    lines: Sequence[str], source: str, score: float, unknown_letters: Callable[[str], str], flag: str = ""
) -> list[Hotword]:
    """Hotwords: one phrase a line, and perhaps its own score, e.g. `NEW YORK :2.5`.

    A phrase takes the case that the model knows: it is tried as it stands, in upper case and in lower case.

    Args:
      source: where the lines are from, for messages.
      score: of phrases without one.
      unknown_letters: the letters of a text that the model's tokens do not spell.
      flag: that names the source.
    Raises:
      UserError: no phrase, a score that is no number or out of RANGE, a phrase of more than LONGEST letters, or one
        that no path could ever say.
    """
    check_score(score)
    hotwords, faults = [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        own = words.pop() if words and words[-1].startswith(":") else None
        if not words:
            if own:
                faults.append(f"line {number} has a score and no phrase")
            continue
        phrase = " ".join(words)
        if len(phrase) > LONGEST:
            faults.append(f"line {number}, {shown(phrase)}: {len(phrase)} letters are more than {LONGEST}")
            continue
        lacking = {text: unknown_letters(text) for text in (phrase, phrase.upper(), phrase.lower())}
        spelt = next((text for text, letters in lacking.items() if not letters), None)
        if spelt is None:
            unknown = min(map(_distinct, lacking.values()), key=len)
            lacks = ", ".join(map(repr, unknown[:SHOWN])) + (", ..." if len(unknown) > SHOWN else "")
            faults.append(f"line {number}, {phrase!r}: the model has no token for {lacks}")
            continue
        try:
            hotword = Hotword(spelt, score if own is None else float(own[1:]))
        except ValueError:
            hotword = None
        if hotword is not None and may_be_score(hotword.score):
            hotwords.append(hotword)
        else:
            faults.append(f"line {number}, {shown(own or '')}: not a score such as :2.5, {RANGE}")
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        problem = f"{source}: {'; '.join(faults[:SHOWN])}{more}"
        raise UserError(problem, flag=flag, fix="correct these lines or take them out")
    if not hotwords:
        raise UserError(f"{source}: holds no phrase", flag=flag, fix="write one phrase a line")
    return hotwords


def _distinct(letters: str) -> list[str]:
    """Each letter once, without the mark that begins a word."""
    return list(dict.fromkeys(letters.replace(WORD_START, "") or " "))


def may_be_score(score: float) -> bool:
    return abs(score) <= LARGEST_SCORE  # nor is NaN


def check_score(score: float) -> None:
    """Raises UserError for a --hotwords-score that is out of RANGE."""
    if not may_be_score(score):
        raise UserError(f"must be {RANGE}", flag=option("hotwords_score", score), fix="try 0.5")


def shown(text: str) -> str:
    """How a message quotes it: a client could have it say a megabyte."""
    return repr(text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}...")
