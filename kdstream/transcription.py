"""What a recogniser makes of speech: text, words with their times, a confidence.  Needs no other package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kdstream.units import OUTPUT_FRAME_MS
from kdstream.words import Letter, locate

OUTPUT_FRAME_SECONDS = OUTPUT_FRAME_MS / 1000


class Word(NamedTuple):
    """A word and when it was said, in seconds from the start of the audio.

    start, end: of the output frames (40 ms) that emitted its first and its last token.  A streaming model emits them
      while it hears the word, or shortly after.
    """

    text: str
    start: float
    end: float


def words_to_json(words: Sequence[Word]) -> list[dict[str, Any]]:
    return [{"word": word.text, "start": word.start, "end": word.end} for word in words]


class Segment(NamedTuple):
    """What was said between two pauses: at least one word.

    confidence: as in Transcription.
    """

    text: str
    words: list[Word]
    confidence: float | None

    @property
    def start(self) -> float:
        """Of the first word, in seconds from the start of the audio."""
        return self.words[0].start

    @property
    def end(self) -> float:
        """Of the last word, in seconds from the start of the audio."""
        return self.words[-1].end

    def to_json(self) -> dict[str, Any]:
        return {"start": self.start, "end": self.end, "text": self.text, "words": words_to_json(self.words)}


@dataclass(frozen=True)
class Transcription:
    """What was said.

    audio: the path of the file; "microphone"; "stdin"; "" for samples.
    seconds: length of the audio.
    text: the words, with blanks between them where the tokens have blanks.
    confidence: the geometric mean of the tokens' probabilities, in (0, 1]; None where nothing was said.
    segments: the same words, cut where endpoints.py says so.
    """

    audio: str
    seconds: float
    text: str
    words: list[Word]
    confidence: float | None
    segments: list[Segment] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        segments = [{"start": each.start, "end": each.end, "text": each.text} for each in self.segments]
        return {
            "audio": self.audio,
            "seconds": round(self.seconds, 2),
            "text": self.text,
            "words": words_to_json(self.words),
            "confidence": self.confidence,
            "segments": segments,
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
