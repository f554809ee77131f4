#!/usr/bin/env bash
# nlpaug 1.1.11: NoiseAug's noise is inaudible or drowns the speech, by its colour, and ShiftAug may leave nothing.
#
# Expected: NoiseAug adds noise of the named colour to the middle of a recording, at a level that suits the samples, and
#   at one level for all colours, as the colour is all that can be set.  "random" picks one of nine names.
#   ShiftAug(duration=3) shifts by at most 3 s, as its help calls the duration a maximum, to the side of direction.
# Happens: the level depends on the colour and on the length alone.  In 10 s of speech at -20 dBFS the SNR of white
#   noise is 30 dB.  That of pink and red is 73 dB or more, which 16 bits hardly hold.  That of blue is -59 dB, which
#   drowns the speech.  That of violet is -150 dB.  Four of the nine names of "random" mean one of these two.  White
#   noise changes 16-bit samples by 1 at most.  Each colour but white is twice as steep as its name says: "pink" falls
#   by 6 dB an octave, not by 3.  All noise is the same backwards.  ShiftAug always shifts by the whole duration, so an
#   utterance of up to 3 s becomes silence under its transcript.  "left" moves speech to a later time, "right" to an
#   earlier one.  Nothing is raised or logged.
# So: give NoiseAug noises of your own, scaled to the speech, and ShiftAug a duration far below the shortest utterance.
#
#   bash findings/nlpaug-noise.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   nlpaug 1.1.11
#   white, 3 s, SNR: 25 dB
#   white, 10 s, SNR: 30 dB
#   white, an octave: 0 dB
#   pink, 3 s, SNR: 63 dB
#   pink, 10 s, SNR: 73 dB
#   pink, an octave: -6 dB
#   red, 3 s, SNR: 64 dB
#   red, 10 s, SNR: 75 dB
#   red, an octave: -12 dB
#   blue, 3 s, SNR: -54 dB
#   blue, 10 s, SNR: -59 dB
#   blue, an octave: 6 dB
#   violet, 3 s, SNR: -135 dB
#   violet, 10 s, SNR: -150 dB
#   violet, an octave: 12 dB
#   white, 16-bit samples, largest change: 1
#   ShiftAug, left, 2 s: silence
#   ShiftAug, right, 2 s: silence
#   ShiftAug, left, 3 s: silence
#   ShiftAug, right, 3 s: silence
#   ShiftAug, left, 5 s: moved by +3 s
#   ShiftAug, right, 5 s: moved by -3 s
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  nlpaug==1.1.11 numpy==2.4.6 pandas==3.1.1 gdown==6.5.1 requests==2.34.2 urllib3==2.8.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""White noise at -20 dBFS stands for speech; what is added to it is the difference of the result."""

import sys
from importlib.metadata import version

import nlpaug.augmenter.audio as naa
import numpy as np

RATE = 16000


def speech(seconds):
    return 0.1 * np.random.default_rng(0).standard_normal(seconds * RATE)


def added(samples, color):
    """The noise, where there is some: the zone that NoiseAug has by default."""
    np.random.seed(0)
    noise = np.asarray(naa.NoiseAug(color=color).augment(samples)[0], float) - samples
    return noise[int(0.2 * len(noise)) : int(0.8 * len(noise))]


def show(what, value, unit, stated):
    print(f"{what}: {value:.0f}{unit}")
    agree.append(abs(value - stated) < 1)


print(f"nlpaug {version('nlpaug')}")
agree = []
for color, slope, *ratios in (
    ("white", 0, 25, 30),
    ("pink", -6, 63, 73),
    ("red", -12, 64, 75),
    ("blue", 6, -54, -59),
    ("violet", 12, -135, -150),
):
    for seconds, stated in zip((3, 10), ratios):
        noise = added(speech(seconds), color)
        show(f"{color}, {seconds} s, SNR", 10 * np.log10(0.1**2 / np.mean(noise**2)), " dB", stated)
    power = np.abs(np.fft.rfft(noise)) ** 2
    hertz = np.fft.rfftfreq(len(noise), 1 / RATE)
    low, high = (power[(hertz >= start) & (hertz < 2 * start)].mean() for start in (500, 4000))
    show(f"{color}, an octave", 10 * np.log10(high / low) / 3, " dB", slope)
    backwards = np.abs(noise[1:] - noise[:0:-1]).max() / np.abs(noise).max()
    agree.append(backwards < 0.001)
changes = added((32767 * speech(10)).astype(np.int16), "white")
show("white, 16-bit samples, largest change", np.abs(changes).max(), "", 1)
for seconds in 2, 3, 5:
    for direction in "left", "right":
        shifted = naa.ShiftAug(sampling_rate=RATE, direction=direction).augment(np.arange(1.0, seconds * RATE + 1))[0]
        kept = np.flatnonzero(shifted)
        moved = f"moved by {(kept[0] + 1 - shifted[kept[0]]) / RATE:+.0f} s" if len(kept) else "silence"
        print(f"ShiftAug, {direction}, {seconds} s: {moved}")
        agree.append(moved == ("silence" if seconds <= 3 else f"moved by {'+' if direction == 'left' else '-'}3 s"))
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON
