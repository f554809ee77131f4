"""Transcriptions as files that other programs read: subtitles, and NIST's ctm and stm.  Needs no other package."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator

from kdstream.errors import printable
from kdstream.transcription import Segment, Transcription, Word
from kdstream.words import split_words

LINE = 42  # characters in a line of subtitles, as broadcasters have it
LINES = 2
CHANNEL = "1"
SPEAKER = "unknown"


def to_txt(heard: Transcription) -> str:
    """The name and the text, and below them when each word was said."""
    lines = [f"{printable(heard.audio)}: {heard.text}"]
    if heard.words:
        lines.append("    " + "  ".join(f"{word.start:.2f} {word.text}" for word in heard.words))
    return "\n".join(lines)


def to_json(heard: Transcription) -> str:
    """One object in one line."""
    return json.dumps(heard.to_json(), ensure_ascii=False)


def to_srt(heard: Transcription) -> str:
    """SubRip subtitles."""
    cues = enumerate(cues_of(heard.segments), start=1)
    return "\n".join(f"{n}\n{clock(start, ',')} --> {clock(end, ',')}\n{text}\n" for n, (start, end, text) in cues)


def to_vtt(heard: Transcription) -> str:
    """WebVTT subtitles."""
    escapes = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    cues = (f"{clock(a)} --> {clock(b)}\n{text.translate(escapes)}\n" for a, b, text in cues_of(heard.segments))
    return "\n".join(["WEBVTT\n", *cues])


def to_ctm(heard: Transcription) -> str:
    """A word a line: recording, channel, start, duration, word."""
    name = recording(heard.audio)
    return "\n".join(f"{name} {CHANNEL} {w.start:.2f} {w.end - w.start:.2f} {w.text}" for w in heard.words)


def to_stm(heard: Transcription) -> str:
    """A segment a line: recording, channel, speaker, start, end, text."""
    name = recording(heard.audio)
    return "\n".join(f"{name} {CHANNEL} {SPEAKER} {s.start:.2f} {s.end:.2f} {s.text}" for s in heard.segments)


FORMATS: dict[str, Callable[[Transcription], str]] = {
    "txt": to_txt,
    "json": to_json,
    "srt": to_srt,
    "vtt": to_vtt,
    "ctm": to_ctm,
    "stm": to_stm,
}
BY_RECORDING = ("ctm", "stm")  # a line belongs to the recording whose name, without folder and ending, stands in it
OF_ONE_FILE = ("srt", "vtt")  # nothing in them says to which recording a line belongs


def cues_of(segments: list[Segment]) -> Iterator[tuple[float, float, str]]:
    """The start, the end and the text of each subtitle: of a segment as many words as fit into LINES lines."""
    for segment in segments:
        cue: list[Word] = []
        lines: list[str] = []
        begin = 0  # of the cue in the segment's text
        spans = places(segment.text, (word.text for word in segment.words))
        for word, (first, last) in zip(segment.words, spans, strict=True):
            longer = lines_of(segment.text[begin:last])
            if cue and len(longer) > LINES:
                yield cue[0].start, cue[-1].end, "\n".join(lines)
                cue, begin, longer = [], first, lines_of(segment.text[first:last])
            cue.append(word)
            lines = longer
        yield cue[0].start, cue[-1].end, "\n".join(lines)


def lines_of(text: str) -> list[str]:
    """A text in lines of LINE characters at most, which words begin, unless one is longer than a line."""
    lines, begin, end = [], 0, 0
    for first, last in places(text, split_words(text)):
        if end and last - begin > LINE:
            lines.append(text[begin:end])
            begin = first
        end = last
    return [part for line in [*lines, text[begin:end]] for part in textwrap.wrap(line, LINE, break_on_hyphens=False)]


def places(text: str, words: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Where each word of a text begins in it, and where it ends."""
    end = 0
    for word in words:
        begin = text.index(word, end)
        end = begin + len(word)
        yield begin, end


def clock(seconds: float, point: str = ".") -> str:
    """Hours, minutes, seconds and milliseconds, as subtitles have them: 01:02:03.450."""
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02}:{minute:02}:{second:02}{point}{milliseconds:03}"


def recording(audio: str) -> str:
    """The name of a file without folder and ending, as one column."""
    return "_".join(printable(os.path.splitext(os.path.basename(audio))[0]).split()) or "audio"
