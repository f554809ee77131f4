"""Frames of MP3 files are counted, whatever their headers state."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from kdstream.audio.mpeg import count_frames, mended, parse_frame
from support.sound import mp3

ID3 = b"ID3\x03\x00\x00\x00\x00\x01\x00" + b"\xff\xfb\x90\x00" * 32  # 128 bytes of picture that look like headers
ID3_AT_THE_END = b"TAG".ljust(128, b" ")


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_counted_frames_are_those_that_the_coder_states(rate, channels):
    count = count_frames(mp3(1.0, rate, channels))
    assert count.frames == count.stated and count.kinds == {(rate, channels)}
    assert 0 < count.samples - rate < 4 * 1152  # the coder's delay and padding


def test_tags_around_and_rubbish_between_are_no_frames():
    data = mp3()
    count = count_frames(data)
    around = count_frames(ID3 + data + ID3_AT_THE_END)
    assert (around.frames, around.stated, around.kinds) == (count.frames, count.stated, count.kinds)
    twice = count_frames(data + b"\0" * 100 + ID3 + data)
    assert twice.frames == 2 * count.frames and twice.kinds == count.kinds


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xfb", b"ID3", b"ID3\x03\x00\x00\x7f\x7f\x7f\x7f", b"no frames" * 99]
)
def test_what_is_no_mp3_has_no_frames(data):
    assert count_frames(data).frames == 0


def test_a_frame_that_is_cut_is_not_counted():
    data = mp3()
    count = count_frames(data)
    assert count_frames(data[:-1]).frames == count.frames - 1
    assert count_frames(data[: len(data) // 2]).frames < count.frames == count_frames(data[: len(data) // 2]).stated


@pytest.mark.parametrize("rate, channels", [(16000, 1), (16000, 2), (44100, 1), (44100, 2), (8000, 1)])
def test_a_mended_file_has_every_sample_of_every_frame(rate, channels):
    data = mp3(2.0, rate, channels, quiet=slice(0, rate))
    tag = parse_frame(data, 0)
    assert tag is not None
    whole, _ = soundfile.read(io.BytesIO(data), always_2d=True)
    untold = data[tag.size :]
    heard, _ = soundfile.read(io.BytesIO(mended(untold, count_frames(untold))), always_2d=True)
    delay = len(heard) - count_frames(data).samples
    assert -529 <= delay <= 0  # the decoder's own
    loud = slice(len(whole) * 3 // 4, len(whole) * 3 // 4 + 1000)
    alike = np.isclose(heard[loud.start : -1000, 0], whole[loud.start, 0], atol=1e-5).nonzero()[0]
    (start,) = [n for n in alike if np.allclose(heard[n:][loud], whole[loud], atol=1e-5)]
    shared = min(len(whole), len(heard) - start)
    assert shared > len(whole) - 600
    np.testing.assert_allclose(heard[start : start + shared], whole[:shared], atol=1e-5)
