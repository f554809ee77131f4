#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg's libswresample): stereo becomes mono 3 dB louder in float than in int16.
#
# Expected: AudioResampler(layout="mono") gives the mean of both channels, in each sample format.
# Happens: FFmpeg's weight of a channel is 0.707.  For integers it scales the two to a sum of 1, and the mean comes out.
#   For float it does not: the sum of both channels times 0.707.  What both channels share at 0.9 arrives at 1.27, outside
#   of [-1, 1], and a file that is written from it clips.  Log-mel features lie 0.69 higher than those of int16.
# So: ask for s16 or s32 and scale it, or resample to layout="stereo" and take the mean yourself.
#
#   bash findings/pyav-mono.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   PyAV 18.1.0, libswresample 6.3.102
#   s16: both 0.900, left alone 0.450, right upside down 0.000
#   s32: both 0.900, left alone 0.450, right upside down 0.000
#   flt: both 1.273, left alone 0.636, right upside down 0.000
#   fltp: both 1.273, left alone 0.636, right upside down 0.000
#   dbl: both 1.273, left alone 0.636, right upside down 0.000
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""A tone in a stereo WAV file of 16 bits, alike in both channels, in one, and against each other; read as mono."""

import sys
import wave

import av
import numpy as np

RATE, PEAK = 48000, 0.9
FULL_SCALE = {"s16": 1 << 15, "s32": 1 << 31, "flt": 1, "dbl": 1}  # the name of a planar format ends with p
EXPECTED = {"both": PEAK, "left alone": PEAK / 2, "right upside down": 0}


def write(name, left, right):
    samples = np.rint(np.stack([left, right], axis=1) * 32767).astype("<i2")
    with wave.open(name, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


def peak_of_mono(name, sample_format):
    """The peak, where full scale is 1."""
    resampler = av.AudioResampler(format=sample_format, layout="mono", rate=16000)
    with av.open(name) as file:
        frames = [out for frame in file.decode(audio=0) for out in resampler.resample(frame)]
    samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
    return float(np.abs(samples / FULL_SCALE[sample_format.rstrip("p")]).max())


tone = PEAK * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
write("both.wav", tone, tone)
write("left alone.wav", tone, 0 * tone)
write("right upside down.wav", tone, -tone)
print(f"PyAV {av.__version__}, libswresample {'.'.join(map(str, av.library_versions['libswresample']))}")
as_stated = True
for sample_format in "s16", "s32", "flt", "fltp", "dbl":
    peaks = {name: peak_of_mono(f"{name}.wav", sample_format) for name in EXPECTED}
    print(f"{sample_format}: " + ", ".join(f"{name} {peak:.3f}" for name, peak in peaks.items()))
    factor = 1 if sample_format[0] == "s" else 2**0.5
    as_stated &= all(abs(peaks[name] - factor * mean) < 2e-3 for name, mean in EXPECTED.items())
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
