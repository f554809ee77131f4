"""Where a stream's text is cut into segments: the endpoint rules of sherpa-onnx, for every runtime.

A segment that is finished does not change any more, but its last word may be completed.  Nothing that it was made of is
kept, so a step of a stream of hours costs what one of a minute costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kdstream.config.flags import Section, flag
from kdstream.transcription import (
    OUTPUT_FRAME_SECONDS,
    Segment,
    Transcription,
    Word,
    group_words,
    mean_probability,
)
from kdstream.words import NO_CHARACTER, UNSPACED, Letter, as_text, locate


@dataclass(frozen=True)
class EndpointConfig(Section):
    """When a segment ends.  Names and defaults are those of sherpa-onnx."""

    enable_endpoint: bool = flag(True, "Cut the text of a stream into segments where the rules below say so.")
    rule1_min_trailing_silence: float = flag(2.4, "Seconds of silence that end a segment, words or none.", above=0)
    rule2_min_trailing_silence: float = flag(1.2, "Seconds of silence after words that end a segment.", above=0)
    rule3_min_utterance_length: float = flag(20.0, "Seconds after which a segment ends at a word.", above=0)

    def is_endpoint(self, length: float, trailing_silence: float) -> bool:
        """Whether a segment of `length` seconds ends whose last ones are silent: all of them where no word is said."""
        return (
            trailing_silence >= self.rule1_min_trailing_silence
            or (length > trailing_silence >= self.rule2_min_trailing_silence)
            or length >= self.rule3_min_utterance_length
        )

    def ends_words(self, trailing_silence: float) -> bool:
        """Whether so many seconds of silence end a segment that has words, however short it is."""
        return trailing_silence >= min(self.rule1_min_trailing_silence, self.rule2_min_trailing_silence)


class TimedTokens(NamedTuple):
    """Tokens of a path, the output frame (40 ms, from the stream's start) of each, and its log probability."""

    tokens: Sequence[Any]
    frames: Sequence[int]
    log_probs: Sequence[float]

    def __add__(self, more: TimedTokens) -> TimedTokens:  # pyright: ignore[reportIncompatibleMethodOverride]
        frames, log_probs = [*self.frames, *more.frames], [*self.log_probs, *more.log_probs]
        return TimedTokens([*self.tokens, *more.tokens], frames, log_probs)

    def part(self, begin: int, end: int) -> TimedTokens:
        return TimedTokens(self.tokens[begin:end], self.frames[begin:end], self.log_probs[begin:end])


NOTHING = TimedTokens((), (), ())


class Segmenter:
    """The segments of one stream.

    Rule 3 may end a segment within a word.  This word is held back, and begins the next segment.  A model may also say
    the last piece of a word only after a pause: it completes the word, which is all that may change in the last segment
    once it is finished.

    Every segment begins as an utterance does.  Most tokens put a blank before it, and what has none there completes a
    word.  Those of Chinese and the like put none (`Tokenizer.joins`), as the first token of a stream tells: there
    nothing completes a word but a byte that begins no character, and what follows the longest segment.

    Args:
      spell: the letters of tokens, see `words.spell`.

    segments: the finished ones, or what `take` has left of them.
    """

    def __init__(self, rules: EndpointConfig, spell: Callable[[Sequence[Any]], list[Letter]]) -> None:
        self.segments: list[Segment] = []
        self._rules, self._spell = rules, spell
        self._begin = 0  # output frame where the growing segment begins
        self._held = NOTHING
        self._blank = False  # a blank ends the finished segments
        self._joins = False  # no blank begins them
        self._parted = False  # the longest segment was the last one
        self._apart: list[bool] = []  # whether a blank parts each segment from the one before
        self._log_prob, self._count = 0.0, 0  # of their tokens
        self._first = 0  # the number of segments[0]
        self._told = 0  # how many segments `changed` has told of
        self._last_told: Segment | None = None  # the last of them, as it was then

    @property
    def cuts(self) -> bool:
        """Whether it may end a segment before the stream ends."""
        return self._rules.enable_endpoint

    def ends(self, now: int, last: int) -> bool:
        """Whether the growing segment ends here.

        Args:
          now: output frames that the stream has decoded.
          last: the output frame of the last token since the last endpoint; -1 where there is none.
        """
        if not self.cuts:
            return False
        silence = self._silence(now, last)
        if not self._rules.is_endpoint((now - self._begin) * OUTPUT_FRAME_SECONDS, silence * OUTPUT_FRAME_SECONDS):
            return False
        if last < 0 and not self._held.tokens:  # there is nothing to finish
            self._begin, self._parted = now, False
            return False
        return True

    def finish(self, now: int, tokens: TimedTokens) -> None:
        """Finishes the growing segment at the output frame `now`.

        Args:
          tokens: all tokens since the last endpoint.
        """
        silence = self._silence(now, tokens.frames[-1] if tokens.frames else -1) * OUTPUT_FRAME_SECONDS
        tokens = self._held + tokens
        end = len(tokens.tokens)
        parted = not self._rules.ends_words(silence)
        if parted:  # rule 3 ended it, perhaps within a word
            located = locate(self._spell(tokens.tokens))
            end = (located[-1].first if located else 0) or end  # a single word is not held back
        self._append(tokens.part(0, end))
        self._parted = parted
        self._held = tokens.part(end, len(tokens.tokens))
        self._begin = self._held.frames[0] if self._held.frames else now

    def growing(self, tokens: TimedTokens) -> str:
        """The text since the last segment; `tokens` as in `finish`."""
        return as_text(self._spell([*self._held.tokens, *tokens.tokens]))

    def text(self, tokens: TimedTokens) -> str:
        """All text so far; `tokens` as in `finish`."""
        letters = self._spell([*self._held.tokens, *tokens.tokens])
        begin = self._completing(letters)
        blank = " " * self._is_apart(letters, begin)
        return f"{self._text()}{as_text(letters[:begin])}{blank}{as_text(letters[begin:])}".rstrip()

    def changed(self) -> dict[int, Segment]:
        """The segments, by their numbers from 0 on, that were finished or completed since the last call."""
        since = max(self._told - 1, self._first)
        news = enumerate(self.segments[since - self._first :], since)
        changed = {n: segment for n, segment in news if n >= self._told or segment is not self._last_told}
        if self.segments:
            self._told, self._last_told = self._first + len(self.segments), self.segments[-1]
        return changed

    def take(self) -> dict[int, Segment]:
        """As `changed`; all segments but the last are kept no longer, as they cannot change any more."""
        changed = self.changed()
        self._first += max(0, len(self.segments) - 1)
        del self.segments[:-1], self._apart[:-1]
        return changed

    def end(self, audio: str, seconds: float, tokens: TimedTokens) -> Transcription:
        """Finishes the last segment at the end of the stream; `tokens` as in `finish`."""
        self._append(self._held + tokens)
        self._held = NOTHING
        words = [word for segment in self.segments for word in segment.words]
        confidence = mean_probability([self._log_prob / self._count] if self._count else [])
        return Transcription(audio, seconds, self._text(), words, confidence, self.segments)

    def _text(self) -> str:
        segments = zip(self.segments, self._apart, strict=True)
        return "".join(" " * apart + segment.text for segment, apart in segments).lstrip()

    def _silence(self, now: int, last: int) -> int:
        """Output frames since the last token of the growing segment, or since its start."""
        held = self._held.frames[-1] if self._held.frames else -1
        return now - max(last + 1, held + 1, self._begin)

    def _completing(self, letters: Sequence[Letter]) -> int:
        """How many of the first letters belong to the last word of the last segment."""
        if not self.segments or not letters or self._blank or UNSPACED.match(self.segments[-1].text[-1]):
            return 0
        if self._joins and not self._parted and letters[0].character != NO_CHARACTER:
            return 0
        ends = (n for n, letter in enumerate(letters) if letter.character == " " or UNSPACED.match(letter.character))
        return next(ends, len(letters))

    def _is_apart(self, letters: Sequence[Letter], begin: int) -> bool:
        """Whether a blank stands before letters[begin:], which the finished segments and letters[:begin] precede."""
        if not self.segments or begin == len(letters):
            return False
        before, after = self.segments[-1].text[-1], as_text(letters[begin:])[:1]
        if begin:
            before = letters[begin - 1].character
        unspaced = [UNSPACED.match(character) is not None for character in (before, after)]
        said = self._blank or letters[begin].character == " "
        return (said and not all(unspaced)) or (self._joins and not any(unspaced))

    def _append(self, tokens: TimedTokens) -> None:
        letters = self._spell(tokens.tokens)
        if letters and not self.segments:
            self._joins = letters[0].character != " "
        begin = self._completing(letters)
        apart = self._is_apart(letters, begin)
        self._blank = letters[-1].character == " " if letters else self._blank
        if begin:
            end = round((tokens.frames[letters[begin - 1].last] + 1) * OUTPUT_FRAME_SECONDS, 2)
            rest = "".join(letter.character for letter in letters[:begin])
            last = self.segments[-1]
            word = Word(last.words[-1].text + rest, last.words[-1].start, end)
            self.segments[-1] = Segment(last.text + rest, [*last.words[:-1], word], last.confidence)
            letters = letters[begin:]
        words = group_words(letters, tokens.frames)
        if words:
            self.segments.append(Segment(as_text(letters), words, mean_probability(tokens.log_probs)))
            self._apart.append(apart)
        self._log_prob += sum(tokens.log_probs)
        self._count += len(tokens.log_probs)
