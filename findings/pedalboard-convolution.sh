#!/usr/bin/env bash
# pedalboard 0.9.26: Convolution makes a room's impulse response as loud as any other, and speech 18 dB quieter.
#
# Expected: Convolution(response), for "speaker simulation or reverb modeling", convolves, as scipy.signal.fftconvolve
#   does.  A response of one sample of 1.0 changes nothing, and one from far away is quieter than one from nearby.
# Happens: each response is divided by the root of the sum of its squares, and by 8.  One sample of 1.0 makes speech
#   18 dB quieter, and so do one of 0.1 and one of 10: the level that distances and microphones give is lost.  A room
#   whose fftconvolve is 10 dB louder than the speech ends up 18 dB below it.  With mix=0.5 the dry speech is not half
#   of what is heard, but 8 times the rest.  Responses in files and in arrays fare alike.  The form of the result is
#   that of fftconvolve, and nothing is raised or warned of.
# So: use scipy.signal.fftconvolve, or multiply the result by 8 times the root of the sum of the response's squares.
#
#   bash findings/pedalboard-convolution.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   pedalboard 0.9.26, scipy 1.17.1; dB over the level of what goes in
#   one sample of 1: scipy +0 dB, pedalboard -18 dB
#   one sample of 0.1: scipy -20 dB, pedalboard -18 dB
#   one sample of 10: scipy +20 dB, pedalboard -18 dB
#   a room: scipy +10 dB, pedalboard -18 dB
#   a room, 20 dB quieter: scipy -10 dB, pedalboard -18 dB
#   an echo after 50 ms, mix=0.5, the speech and its echo: 0.50 and 0.06
#   the same form as scipy's, if multiplied: True
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  pedalboard==0.9.26 soundfile==0.14.0 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Noise through impulse responses that differ in level, with pedalboard and with scipy."""

import sys
from importlib.metadata import version

import numpy as np
import soundfile as sf
from pedalboard import Convolution
from scipy.signal import fftconvolve

RATE = 16000
random = np.random.default_rng(0)


def decibels(samples, reference):
    return 10 * np.log10(np.mean(samples**2) / np.mean(reference**2))


def one_sample(level):
    return np.pad([level], (0, 999))


def show(what, found, stated):
    print(f"{what}: {found}")
    agree.append(found == stated)


agree = []
print(f"pedalboard {version('pedalboard')}, scipy {version('scipy')}; dB over the level of what goes in")
speech = 0.05 * random.standard_normal(2 * RATE)
room = random.standard_normal(RATE // 2) * np.exp(-np.arange(RATE // 2) / 1000)
room *= np.sqrt(10 / np.sum(room**2))  # 10 dB louder
for what, response, stated in (
    ("one sample of 1", one_sample(1.0), (0, -18)),
    ("one sample of 0.1", one_sample(0.1), (-20, -18)),
    ("one sample of 10", one_sample(10.0), (20, -18)),
    ("a room", room, (10, -18)),
    ("a room, 20 dB quieter", room / 10, (-10, -18)),
):
    response = response.astype("float32")
    sf.write("response.wav", response, RATE, subtype="FLOAT")
    right = fftconvolve(speech, response)[: len(speech)]
    found = Convolution("response.wav")(speech.astype("float32"), RATE)
    array = Convolution(response, sample_rate=RATE)(speech.astype("float32"), RATE)
    levels = round(decibels(right, speech)), round(decibels(found, speech))
    print(f"{what}: scipy {levels[0]:+} dB, pedalboard {levels[1]:+} dB")
    agree.append(levels == stated and np.array_equal(found, array))
    repaired = 8 * np.sqrt(np.sum(response**2)) * found
    agree.append(decibels(repaired - right, right) < -60)
delayed = np.roll(one_sample(1.0), 800).astype("float32")
found = Convolution(delayed, mix=0.5, sample_rate=RATE)(speech.astype("float32"), RATE)
dry, wet = (np.dot(found[800:], part) / np.dot(part, part) for part in (speech[800:], speech[:-800]))
show("an echo after 50 ms, mix=0.5, the speech and its echo", f"{dry:.2f} and {wet:.2f}", "0.50 and 0.06")
show("the same form as scipy's, if multiplied", all(agree), True)
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON
