"""Segments that cannot be used are left out by a stated rule, with their place and a count."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import Recording, SupervisionSegment

from kdstream.corpus.recipes import Part
from kdstream.corpus.segments import LeftOut, usable_part
from support.data import error_of

SECONDS = 20.0


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    """Of two channels."""
    path = tmp_path_factory.mktemp("segments") / "call.wav"
    soundfile.write(path, np.zeros((round(8000 * SECONDS), 2)), 8000)
    return Recording.from_file(path)


def segment(
    name: str, start: float, end: float, text: str | None = "WORDS", channel: int | list[int] = 0, of: str = "call"
):
    return SupervisionSegment(name, of, start, end - start, channel, text=text)


GOOD = [segment(f"good-{n}", 2.0 * n, 2.0 * n + 1.5) for n in range(4)]
BAD = {
    "without a recording": [segment("lost", 0.0, 1.0, of="nowhere")],
    "on a channel that their recording lacks": [segment("third", 0.0, 1.0, channel=2)],
    "outside their recording": [segment("late", 19.5, 20.2), segment("early", -0.5, 1.0)],
    "with an empty text": [segment("silent", 9.0, 10.0, " \t"), segment("none", 9.0, 10.0, None)],
    "shorter than 0.09 s": [
        segment("short", 9.0, 9.05), segment("begins before", -0.09, 0.05), segment("ends after", 19.98, 20.08),
        segment("behind", 20.0, 20.1),
    ],
    "that overlap another of their channel": [segment("over", 10.0, 12.0), segment("lapping", 11.85, 13.0)],
}  # fmt: skip


def usable(segments, recording: Recording, channel: int | None = None) -> tuple[list[str], LeftOut]:
    left_out = LeftOut("train")
    part = usable_part(Part({recording.id: recording}, segments), left_out, channel)
    return [each.id for each in part.segments], left_out


@pytest.mark.parametrize("reason", BAD)
def test_each_fault_is_left_out_with_its_place(recording, reason):
    kept, left_out = usable([*GOOD, *BAD[reason]], recording)
    assert kept == [each.id for each in GOOD]
    assert list(left_out.places) == [reason] and len(left_out) == len(BAD[reason])
    for place, bad in zip(left_out.places[reason], BAD[reason], strict=True):
        where = "nowhere" if bad.recording_id == "nowhere" else recording.sources[0].source
        assert place == f"{bad.id} ({where}, channel {bad.channel}, {bad.start:.2f} to {bad.end:.2f} s)"


def test_missing_audio_is_left_out(recording):
    gone = Recording("gone", [type(recording.sources[0])("file", [0], "/nowhere/gone.wav")], 8000, 80000, 10.0)
    left_out = LeftOut("train")
    segments = [*GOOD, segment("lost", 0.0, 1.0, of="gone")]
    part = usable_part(Part({"call": recording, "gone": gone}, segments), left_out)
    assert list(part.recordings) == ["call"]
    assert left_out.places == {"whose audio file is not there": ["lost (/nowhere/gone.wav, channel 0, 0.00 to 1.00 s)"]}


def test_segments_may_touch_and_overlap_on_other_channels_and_reach_a_little_beyond_the_end(recording):
    fine = [
        segment("one", 0.0, 2.0), segment("two", 1.95, 3.0), segment("other side", 0.5, 2.5, channel=1),
        segment("end", 18.0, 20.08),
    ]  # fmt: skip
    left_out = LeftOut("train")
    part = usable_part(Part({recording.id: recording}, fine), left_out)
    assert not len(left_out) and len(part.segments) == 4
    assert part.segments[-1].end == SECONDS


def test_a_channel_may_be_chosen_and_of_several_the_first_is_taken(recording):
    sides = [
        segment("left", 0.0, 1.0),
        segment("right", 0.0, 1.0, channel=1),
        segment("both", 2.0, 3.0, channel=[0, 1]),
    ]
    assert usable(sides, recording)[0] == ["left", "right", "both"]
    kept, left_out = usable(sides, recording, channel=1)
    assert kept == ["right", "both"] and list(left_out.places) == ["on other channels than --channel 1"]
    part = usable_part(Part({recording.id: recording}, sides), LeftOut("train"), 1)
    assert [each.channel for each in part.segments] == [1, 1]


def test_what_is_left_out_is_logged_counted_and_listed_and_most_of_a_part_is_an_error(recording, tmp_path, caplog):
    _, left_out = usable([*GOOD, *BAD["with an empty text"], *BAD["outside their recording"][:1]], recording)
    path = Path(tmp_path, "left_out.txt")
    with caplog.at_level(logging.WARNING):
        left_out.log(len(GOOD), path)
    assert "part train: 3 of 7 segments are left out: 2 with an empty text: silent (" in caplog.text
    assert [line.split(" (")[0] for line in path.read_text().splitlines()] == [
        "with an empty text: silent", "with an empty text: none", "outside their recording: late",
    ]  # fmt: skip
    message = error_of(lambda: left_out.log(2, path))
    assert "part train: 3 of 5 segments are left out" in message and str(path) in message
    LeftOut("train").log(3, path)
    assert not path.exists()
