#!/usr/bin/env bash
# pocketsphinx 5.1.1: Segmenter drops speech that lasts to the end of an audio of whole 30 ms frames, or moves it on.
#
# Expected: segment(stream) yields "each speech region detected", so also one that lasts to the end of the stream.
# Happens: it ends the stream only with a frame that is not full.  Where the audio's length is a multiple of the frame
#   (30 ms: all of 3, 6, 30 or 60 s) and the speech goes on to the end, its last segment is never yielded: nothing for
#   3.00 s of which 2 s are speech, and all 2 s for 2.99 s or 3.01 s.  AudioFile, which uses it, has no text for it.
#   The Segmenter keeps this speech.  In the next stream that it is given, it is the beginning of the first segment:
#   audio of both files in one piece, and times that run on.
# So: take a new Segmenter for each audio, and add a second of silence to its end.
#
#   bash findings/pocketsphinx-segmenter.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   pocketsphinx 5.1.1, speech from 1 s to the end
#   2.98 s: 0.99-2.98
#   2.99 s: 0.99-2.99
#   3.00 s: none
#   3.01 s: 0.99-3.01
#   60.00 s: none
#   60.01 s: 0.99-60.01
#   3.00 s and a second of silence: 0.99-3.21
#   the same Segmenter, 3.00 s and then 4.00 s with speech at 1-2 s: none, and 0.99-3.21 3.99-5.22
#   of the second one's first segment, 2.01 s are audio of the first one
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pocketsphinx==5.1.1 sounddevice==0.5.6 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""A voice-like buzz in faint noise stands for speech."""

import io
import sys
from importlib.metadata import version

import numpy as np
from pocketsphinx import Segmenter

RATE = 16000
generator = np.random.default_rng(0)


def audio(seconds, start, end, pitch=130):
    times = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * pitch * k * times) / k**0.7 for k in range(1, 25))
    buzz *= 1500 * (1 + 0.5 * np.sin(2 * np.pi * 4 * times)) * ((start <= times) & (times < end))
    return (buzz + 2 * generator.standard_normal(len(times))).astype(np.int16).tobytes()


def segments(samples, segmenter=None):
    return list((segmenter or Segmenter()).segment(io.BytesIO(samples)))


def times(found):
    return " ".join(f"{segment.start_time:.2f}-{segment.end_time:.2f}" for segment in found) or "none"


def show(what, seen, stated):
    print(f"{what}: {seen}")
    agree.append(seen == stated)


agree = []
print(f"pocketsphinx {version('pocketsphinx')}, speech from 1 s to the end")
for seconds, stated in (
    (2.98, "0.99-2.98"),
    (2.99, "0.99-2.99"),
    (3, "none"),
    (3.01, "0.99-3.01"),
    (60, "none"),
    (60.01, "0.99-60.01"),
):
    show(f"{seconds:.2f} s", times(segments(audio(seconds, 1, seconds))), stated)
first, second = audio(3, 1, 3), audio(4, 1, 2, pitch=170)
show("3.00 s and a second of silence", times(segments(first + bytes(2 * RATE))), "0.99-3.21")
segmenter = Segmenter()
found = segments(first, segmenter), segments(second, segmenter)
show(
    "the same Segmenter, 3.00 s and then 4.00 s with speech at 1-2 s",
    " and ".join((times(found[0]) + ",", times(found[1]))),
    "none, and 0.99-3.21 3.99-5.22",
)
begin = round(0.99 * RATE) * 2  # bytes
shared = len(first) - begin if found[1][0].pcm.startswith(first[begin:]) else 0
seen = f"of the second one's first segment, {shared / 2 / RATE:.2f} s are audio of the first one"
print(seen)
agree.append(shared / 2 / RATE == 2.01)
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON
