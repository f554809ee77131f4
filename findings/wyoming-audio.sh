#!/usr/bin/env bash
# wyoming 1.10.2: AudioChunkConverter adds the channels of stereo up till they clip, and folds high tones into speech.
#
# Expected: AudioChunkConverter(rate=16000, width=2, channels=1), through which servers of this protocol take audio,
#   "converts sample rate, width, and channels as necessary": mono is the mean of the channels, and what 16,000 Hz can't
#   hold is filtered out.
# Happens: mono is left plus right.  A voice in both channels is twice as loud, and above half of full scale it is
#   clipped.  From 48,000 Hz every third sample is taken as it is, so sound of 8-16 kHz, such as an "s", comes back
#   mirrored at 0-8 kHz with its full level; from 44,100 Hz it does, 1 or 2 dB lower.  Nothing is logged.
# So: send a server 16,000 Hz mono, from a resampler with a filter, or convert it oneself before the converter.
#
#   bash findings/wyoming-audio.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   wyoming 1.10.2, to 16000 Hz, 16 bit, mono
#   stereo, the same 0.3 of full scale in both: 0.60, 0 % of the samples clipped
#   stereo, the same 0.8 of full scale in both: 1.00, 57 % of the samples clipped
#   48000 Hz, a tone of 1000 Hz: 1000 Hz, 0.0 dB
#   48000 Hz, a tone of 9000 Hz: 7000 Hz, 0.0 dB
#   48000 Hz, a tone of 13000 Hz: 3000 Hz, 0.0 dB
#   44100 Hz, a tone of 9000 Hz: 7000 Hz, -1.2 dB
#   44100 Hz, a tone of 13000 Hz: 3000 Hz, -2.4 dB
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check wyoming==1.10.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Tones of 2 s go through the converter in chunks of 1024 samples."""

import sys
from importlib.metadata import version

import numpy as np
from wyoming.audio import AudioChunk, AudioChunkConverter

RATE = 16000


def tone(frequency, rate, amplitude):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(2 * rate) / rate)


def convert(samples, rate):
    """samples: (frames, channels), of -1 to 1."""
    converter = AudioChunkConverter(rate=RATE, width=2, channels=1)
    samples, channels = np.rint(32767 * samples).astype("<i2"), samples.shape[1]
    parts = (samples[start : start + 1024].tobytes() for start in range(0, len(samples), 1024))
    chunks = (AudioChunk(rate, 2, channels, part) for part in parts)
    return np.frombuffer(b"".join(converter.convert(chunk).audio for chunk in chunks), "<i2") / 32767


def show(what, seen, stated):
    print(f"{what}: {seen}")
    agree.append(seen == stated)


agree = []
print(f"wyoming {version('wyoming')}, to 16000 Hz, 16 bit, mono")
for amplitude, stated in (
    (0.3, "0.60, 0 % of the samples clipped"),
    (0.8, "1.00, 57 % of the samples clipped"),
):
    mono = convert(np.stack(2 * [tone(440, RATE, amplitude)], axis=1), RATE)
    clipped = 100 * np.mean(np.abs(mono) > 0.9999)
    seen = f"{np.abs(mono).max():.2f}, {clipped:.0f} % of the samples clipped"
    show(f"stereo, the same {amplitude} of full scale in both", seen, stated)
for rate, frequency, stated in (
    (48000, 1000, "1000 Hz, 0.0 dB"),
    (48000, 9000, "7000 Hz, 0.0 dB"),
    (48000, 13000, "3000 Hz, 0.0 dB"),
    (44100, 9000, "7000 Hz, -1.2 dB"),
    (44100, 13000, "3000 Hz, -2.4 dB"),
):
    sent = tone(frequency, rate, 0.5)
    got = convert(sent[:, None], rate)[RATE // 2 : RATE // 2 + RATE]  # of a second: bins of 1 Hz
    level = 10 * np.log10(np.mean(got**2) / np.mean(sent**2))
    strongest = np.abs(np.fft.rfft(got)).argmax()
    show(f"{rate} Hz, a tone of {frequency} Hz", f"{strongest} Hz, {round(level, 1) + 0.0:.1f} dB", stated)
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON
