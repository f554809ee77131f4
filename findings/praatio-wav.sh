#!/usr/bin/env bash
# praatio 6.2.2: Wav cuts 16-bit audio in the middle of a sample at half of all times, and what follows is noise.
#
# Expected: Wav.getSubwav(start, end) gives the audio of that interval, as QueryWav.getFrames does, and deleteSegment
#   takes it out; the times are a TextGrid's, in seconds.
# Happens: Wav rounds a time to a byte, not to a sample.  Where the byte is odd, all samples after it are made of halves
#   of two: a quiet tone becomes noise at full scale.  After deleteSegment, insert or replaceSegment at such a time the
#   rest of the file is that.  Half of the times of hand-made TextGrids are such, and at 22,050 Hz half of an aligner's,
#   which are multiples of 10 ms.  At 16,000 Hz times in milliseconds are fine, as those in its tests.
#   Nothing is raised, and save writes it so; getSamples raises struct.error for a part of an odd length.
# So: round times to samples before Wav takes them, or cut with QueryWav and extractSubwav, which are right.
#
#   bash findings/praatio-wav.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   praatio 6.2.2: a tone of amplitude 1000, its greatest sample
#   16000 Hz, 1.2345 s to 1.7345 s: 1000
#   16000 Hz, 1.2346 s to 1.7346 s: 32513 (QueryWav: 1000)
#   16000 Hz, after deleteSegment(1.2346, 1.7346): 1000 before 1.2 s, 1000 after it
#   16000 Hz, after deleteSegment(1.2345, 1.7346): 1000 before 1.2 s, 32513 after it
#   parts that are not the audio, of 1000 by getSubwav:
#   16000 Hz, multiples of 1 ms: 0
#   16000 Hz, any times: 466
#   22050 Hz, multiples of 10 ms: 487
#   44100 Hz, multiples of 1 ms: 509
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check praatio==6.2.2 typing_extensions==4.16.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""A quiet tone of 4 s, and parts of it."""

import sys
import wave
from importlib.metadata import version

import numpy as np
from praatio.audio import QueryWav, Wav

SECONDS = 4
generator = np.random.default_rng(0)


def tone(rate):
    """Written to tone.wav."""
    samples = np.rint(1000 * np.sin(2 * np.pi * 200 * np.arange(SECONDS * rate) / rate)).astype("<i2")
    with wave.open("tone.wav", "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return samples


def samples_of(frames):
    return np.frombuffer(frames[: len(frames) // 2 * 2], "<i2").astype(int)


def peak(frames):
    return np.abs(samples_of(frames)).max()


def wrong(rate, grid, count=1000):
    """How many parts of tone.wav are not its samples from there, to a sample more or less."""
    samples, sound, found = tone(rate), Wav.open("tone.wav"), 0
    for start in generator.uniform(0.1, 3, count):
        start = round(start / grid) * grid if grid else start
        part = samples_of(sound.getSubwav(start, start + 0.5).frames)
        first = round(start * rate)
        found += not any(np.array_equal(part, samples[i : i + len(part)]) for i in (first - 1, first, first + 1))
    return found


def show(text, as_it_should):
    print(text)
    agree.append(as_it_should)


agree = []
print(f"praatio {version('praatio')}: a tone of amplitude 1000, its greatest sample")
tone(16000)
sound, query = Wav.open("tone.wav"), QueryWav("tone.wav")
seen = peak(sound.getSubwav(1.2345, 1.7345).frames)
show(f"16000 Hz, 1.2345 s to 1.7345 s: {seen}", seen == 1000)
seen = peak(sound.getSubwav(1.2346, 1.7346).frames), peak(query.getFrames(1.2346, 1.7346))
show(f"16000 Hz, 1.2346 s to 1.7346 s: {seen[0]} (QueryWav: {seen[1]})", seen[0] > 20000 and seen[1] == 1000)
for start, end, stated in (1.2346, 1.7346, False), (1.2345, 1.7346, True):
    edited = sound.new()
    edited.deleteSegment(start, end)
    edited.save("edited.wav")
    frames = QueryWav("edited.wav").getFrames()
    before, after = peak(frames[: round(1.2 * 16000) * 2]), peak(frames[round(1.3 * 16000) * 2 :])
    show(
        f"16000 Hz, after deleteSegment({start}, {end}): {before} before 1.2 s, {after} after it",
        before == 1000 and (after > 20000) == stated,
    )
print("parts that are not the audio, of 1000 by getSubwav:")
for rate, grid, what, stated in (
    (16000, 0.001, "multiples of 1 ms", 0),
    (16000, None, "any times", 500),
    (22050, 0.01, "multiples of 10 ms", 500),
    (44100, 0.001, "multiples of 1 ms", 500),
):
    seen = wrong(rate, grid)
    show(f"{rate} Hz, {what}: {seen}", abs(seen - stated) <= stated / 5)
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON
