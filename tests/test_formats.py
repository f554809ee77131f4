"""What transcribe.py writes, by the grammar of each format."""

from __future__ import annotations

import json
import re

import pytest

from kdstream.formats import FORMATS, LINE, clock, cues_of
from kdstream.transcription import Segment, Transcription, Word
from kdstream.words import split_words

WORDS = [Word(f"WORD{n}", n * 0.5, n * 0.5 + 0.4) for n in range(30)]
LONG = Segment(" ".join(word.text for word in WORDS), WORDS, 0.9)
SHORT = Segment("A<B & C", [Word("A<B", 3660.0, 3660.04), Word("&", 3660.1, 3660.2), Word("C", 3661.0, 3661.5)], 0.8)
HEARD = Transcription(
    "/a b/my talk.mp3", 3662.0, f"{LONG.text} {SHORT.text}", [*WORDS, *SHORT.words], 0.9, [LONG, SHORT]
)
NOTHING = Transcription("silence.wav", 2.0, "", [], None)
TIME = r"(\d\d):([0-5]\d):([0-5]\d)"


@pytest.mark.parametrize("form, point", [("srt", ","), ("vtt", ".")])
def test_subtitles_have_times_in_order_and_all_words(form, point):
    text = FORMATS[form](HEARD)
    assert text.startswith("WEBVTT\n\n") == (form == "vtt")
    cues = [cue.splitlines() for cue in text.removeprefix("WEBVTT\n").strip("\n").split("\n\n")]
    if form == "srt":
        assert [cue.pop(0) for cue in cues] == [str(n + 1) for n in range(len(cues))]
    times = []
    for timing, *lines in cues:
        matched = re.fullmatch(rf"{TIME}\{point}(\d{{3}}) --> {TIME}\{point}(\d{{3}})", timing)
        assert matched is not None and 1 <= len(lines) <= 2 and all(0 < len(line) <= LINE for line in lines)
        hours, minutes, seconds, thousandths = (list(map(int, matched.groups()))[n::4] for n in range(4))
        times += [
            3600 * h + 60 * m + s + t / 1000 for h, m, s, t in zip(hours, minutes, seconds, thousandths, strict=True)
        ]
    assert times == sorted(times) and times[-2:] == [3660.0, 3661.5]
    words = " ".join(" ".join(lines) for _, *lines in cues)
    assert words == (HEARD.text.replace("&", "&amp;").replace("<", "&lt;") if form == "vtt" else HEARD.text)


def test_a_subtitle_has_the_times_of_its_own_words():
    first, second, *_ = cues_of([LONG])
    spoken = first[2].split()
    assert first[:2] == (0.0, WORDS[len(spoken) - 1].end) and second[0] == WORDS[len(spoken)].start


def test_a_subtitle_has_the_blanks_of_the_text_alone_and_parts_no_word_that_fits_into_a_line():
    text = "我们有3个IPHONE,OK " * 4 + "今天很好。我有3个IPHONE手机" * 8 + "A" * (LINE + 1)
    words = [Word(word, n * 0.5, n * 0.5 + 0.4) for n, word in enumerate(split_words(text))]
    cues = list(cues_of([Segment(text, words, 0.9)]))
    lines = [line for cue in cues for line in cue[2].split("\n")]
    assert all(len(line) <= LINE for line in lines) and all(line in text for line in lines)
    assert lines[-2:] == ["A" * LINE, "A"]
    assert [word for line in lines[:-2] for word in split_words(line)] == [word.text for word in words[:-1]]
    numbers = [len(split_words(cue[2].replace("\n", " "))) for cue in cues[:-1]]
    assert [cue[0] for cue in cues[1:]] == [words[sum(numbers[:n])].start for n in range(1, len(cues))]


def test_ctm_and_stm_have_a_recording_and_times_on_each_line():
    ctm = [line.split() for line in FORMATS["ctm"](HEARD).splitlines()]
    assert len(ctm) == 33 and all(line[:2] == ["my_talk", "1"] and len(line) == 5 for line in ctm)
    assert ctm[1][2:] == ["0.50", "0.40", "WORD1"]
    stm = FORMATS["stm"](HEARD).splitlines()
    assert stm[1] == "my_talk 1 unknown 3660.00 3661.50 A<B & C" and len(stm) == 2


def test_json_has_the_segments():
    assert json.loads(FORMATS["json"](HEARD))["segments"][1] == {"start": 3660.0, "end": 3661.5, "text": "A<B & C"}


def test_nothing_said_is_no_line():
    assert {form: FORMATS[form](NOTHING) for form in ("srt", "vtt", "ctm", "stm", "txt")} == {
        "srt": "",
        "vtt": "WEBVTT\n",
        "ctm": "",
        "stm": "",
        "txt": "silence.wav: ",
    }


def test_the_clock_rounds_to_milliseconds():
    assert (clock(59.9996), clock(7261.05, ",")) == ("00:01:00.000", "02:01:01,050")
