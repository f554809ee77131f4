#!/usr/bin/env bash
# pydub 0.25.1: set_frame_rate(16000) folds all that lies above 8 kHz into the speech, without attenuation.
#
# Expected: a conversion to 16 kHz filters out what 16 kHz cannot hold; soxr leaves less than a ten-thousandth of it.
# Happens: set_frame_rate draws straight lines between samples and has no filter.  From 48 kHz a tone of 10 kHz comes out
#   as a tone of 6 kHz of the same level, and one of 14 kHz as one of 2 kHz.  From 44.1 kHz they lose 1.5 and 2.8 dB.
#   Every s, and each whistle of a screen, then lies on the bands of vowels too, and a model that was trained on what
#   another resampler made hears something else.
# So: resample with soxr, and leave pydub the cutting.
#
#   bash findings/pydub-alias.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   pydub 0.25.1, soxr 0.5.0.post1, to 16 kHz
#   10000 Hz at 48000 Hz, pydub: 6000 Hz at 0.0 dB
#   10000 Hz at 48000 Hz, soxr: below -80 dB
#   14000 Hz at 48000 Hz, pydub: 2000 Hz at 0.0 dB
#   14000 Hz at 48000 Hz, soxr: below -80 dB
#   10000 Hz at 44100 Hz, pydub: 6000 Hz at -1.5 dB
#   10000 Hz at 44100 Hz, soxr: below -80 dB
#   14000 Hz at 44100 Hz, pydub: 2000 Hz at -2.8 dB
#   14000 Hz at 44100 Hz, soxr: below -80 dB
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  pydub==0.25.1 soxr==0.5.0.post1 numpy==2.4.6 "audioop-lts==0.2.2; python_version >= '3.13'"
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Tones that 16 kHz cannot hold, converted to 16 kHz: where they land, and at which level."""

import sys
from importlib.metadata import version

import numpy as np
import soxr
from pydub import AudioSegment

RATE, AMPLITUDE = 16000, 10000


def converted(samples, rate):
    """By pydub, and by soxr."""
    segment = AudioSegment(samples.tobytes(), frame_rate=rate, sample_width=2, channels=1)
    yield "pydub", np.array(segment.set_frame_rate(RATE).get_array_of_samples(), dtype=float)
    yield "soxr", soxr.resample(samples.astype(float), rate, RATE)


def loudest(samples):
    """Its frequency in Hz, and the level of all in dB against the tone; the edges are left out."""
    inner = samples[RATE // 10 : RATE // 10 + RATE // 2]
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner))))
    return 2 * int(spectrum.argmax()), 20 * np.log10(inner.std() / (AMPLITUDE / 2**0.5))


print(f"pydub {version('pydub')}, soxr {version('soxr')}, to 16 kHz")
as_stated = True
for rate in 48000, 44100:
    for tone in 10000, 14000:
        samples = np.rint(AMPLITUDE * np.sin(2 * np.pi * tone * np.arange(rate) / rate)).astype(np.int16)
        for name, output in converted(samples, rate):
            frequency, level = loudest(output)
            said = f"{frequency} Hz at {round(level, 1) + 0.0:.1f} dB" if level > -80 else "below -80 dB"
            print(f"{tone} Hz at {rate} Hz, {name}: {said}")
            as_stated &= (level > -6 and frequency == RATE - tone) if name == "pydub" else level < -80
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
