"""What a recogniser makes of speech: text, words with their times, a confidence.  Needs no other package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kdstream.units import ENCODER_FRAME_MS
from kdstream.words import Letter, locate

OUTPUT_FRAME_SECONDS = 2 * ENCODER_FRAME_MS / 1000


class Word(NamedTuple):
    """A word and when it was said, in seconds from the start of the audio.

    start, end: of the output frames (40 ms) that emitted its first and its last token.  A streaming model emits them
      while it hears the word, or shortly after.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcription:
    """What was said.

    audio: the path of the file; "microphone"; "" for samples.
    seconds: length of the audio.
    text: the words, with blanks between them where their script has blanks.
    confidence: the geometric mean of the tokens' probabilities, in (0, 1]; None where nothing was said.
    """

    audio: str
    seconds: float
    text: str
    words: list[Word]
    confidence: float | None

    def to_json(self) -> dict[str, Any]:
        words = [{"word": word.text, "start": word.start, "end": word.end} for word in self.words]
        return {
            "audio": self.audio,
            "seconds": round(self.seconds, 2),
            "text": self.text,
            "words": words,
            "confidence": self.confidence,
        }


def group_words(letters: Sequence[Letter], frames: Sequence[int]) -> list[Word]:
    """The words that tokens spell, by the rule of words.py.

    Args:
      letters: from `words.spell` of the tokens.
      frames: the output frame (40 ms) that emitted each token.
    """
    words: list[Word] = []
    for text, first, last in locate(letters):
        start, end = frames[first], frames[last] + 1
        words.append(Word(text, round(start * OUTPUT_FRAME_SECONDS, 2), round(end * OUTPUT_FRAME_SECONDS, 2)))
    return words


def mean_probability(log_probs: Sequence[float]) -> float | None:
    """The geometric mean of probabilities; None of none."""
    return math.exp(sum(log_probs) / len(log_probs)) if log_probs else None
