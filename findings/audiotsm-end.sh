#!/usr/bin/env bash
# audiotsm 0.1.2: wsola and phasevocoder delay speech, and lose the end of it: up to a quarter of a second at 8000 Hz.
#
# Expected: wsola(channels, speed).run(reader, writer) gives all of the recording, faster or slower.  run's
#   flush=True, the default, means that there is no more to come.
# Happens: with the default of 1024 samples to a frame, all is 512 samples late at speed 1.0: 32 ms at 16,000 Hz, 64 ms
#   at 8000 Hz.  The end is cut off: wsola leaves out some 2100 samples, 260 ms at 8000 Hz.  A last word of 0.2 s is
#   wholly gone there at speeds of 1.0 and 1.1, and its transcript stays.  phasevocoder is as late, and leaves out some
#   1600.  ola is not late and leaves out less than a frame of its 256.  Nothing is raised or warned of.
# So: append 4096 zeros, and take 512 samples off the start of the result and what is too long off its end.
#
#   bash findings/audiotsm-end.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   audiotsm 0.1.2, numpy 2.4.6
#   wsola, 8000 Hz, speed 1.0: samples late and left out: [512, 2112]
#   wsola, 16000 Hz, speed 1.0: samples late and left out: [512, 2176]
#   phasevocoder, 8000 Hz, speed 1.0: samples late and left out: [512, 1600]
#   phasevocoder, 16000 Hz, speed 1.0: samples late and left out: [512, 1664]
#   ola, 8000 Hz, speed 1.0: samples late and left out: [0, 192]
#   ola, 16000 Hz, speed 1.0: samples late and left out: [0, 128]
#   tones of 5 at 8000 Hz, speed 1.0: wsola, with zeros, ola: (4, 5, 5)
#   tones of 5 at 8000 Hz, speed 1.1: wsola, with zeros, ola: (4, 5, 5)
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check audiotsm==0.1.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Tones of 0.2 s, a second apart, the last of them up to the end."""

import sys
from importlib.metadata import version

import numpy as np
from audiotsm import ola, phasevocoder, wsola
from audiotsm.io.array import ArrayReader, ArrayWriter

SECONDS = 5


def tones(rate):
    times = np.arange(rate * SECONDS) / rate
    return np.where(times % 1 >= 0.8, 0.3 * np.sin(2 * np.pi * (500 + 100 * times) * times), 0)


def change(method, samples, speed):
    writer = ArrayWriter(1)
    method(1, speed=speed).run(ArrayReader(samples[None]), writer)
    return writer.data[0]


def heard(samples, rate):
    """How often the level rises."""
    length = rate // 50
    level = np.sqrt(np.convolve(samples**2, np.ones(length) / length, "same"))
    return int(np.count_nonzero(np.diff((level > 0.1).astype(int), prepend=0) == 1))


def show(what, found, stated):
    print(f"{what}: {found}")
    agree.append(found == stated)


agree = []
print(f"audiotsm {version('audiotsm')}, numpy {np.__version__}")
for method, rate, *stated in (
    (wsola, 8000, 512, 2112),
    (wsola, 16000, 512, 2176),
    (phasevocoder, 8000, 512, 1600),
    (phasevocoder, 16000, 512, 1664),
    (ola, 8000, 0, 192),
    (ola, 16000, 0, 128),
):
    samples = tones(rate)
    found = change(method, samples, 1.0)
    alike = np.fft.irfft(np.fft.rfft(found, 2 * len(samples)) * np.fft.rfft(samples, 2 * len(samples)).conj())
    late = int(np.argmax(alike))
    lost = len(samples) - (len(found) - late)
    show(f"{method.__name__}, {rate} Hz, speed 1.0: samples late and left out", [late, lost], stated)
for speed, stated in (1.0, 4), (1.1, 4):
    samples = tones(8000)
    found, without = change(wsola, samples, speed), change(ola, samples, speed)
    whole = change(wsola, np.pad(samples, (0, 4096)), speed)[512:][: int(len(samples) / speed)]
    counts = heard(found, 8000), heard(whole, 8000), heard(without, 8000)
    show(f"tones of {SECONDS} at 8000 Hz, speed {speed}: wsola, with zeros, ola", counts, (stated, SECONDS, SECONDS))
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON
