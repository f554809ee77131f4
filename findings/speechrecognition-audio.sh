#!/usr/bin/env bash
# SpeechRecognition 3.17.0: stereo files are clipped, and all above 8 kHz is folded into the speech at 16 kHz.
#
# Expected: AudioFile makes the mean of a stereo file's channels.  recognize_whisper, recognize_vosk and
#   recognize_sphinx take get_wav_data or get_raw_data(convert_rate=16000), which filters what 16 kHz cannot hold.
# Happens: AudioFile makes the sum of the channels.  A voice that both share at a peak of 0.6 is cut off at 1: 38 % of
#   its samples.  The conversion has no filter.  From 48 kHz it takes each third sample: a tone at 10 kHz comes out at
#   6 kHz, as loud as it was.  From 44.1 kHz it is 1.5 dB quieter.  An "s" has much of its energy up there.  soxr, a
#   resampler with a filter, leaves less than -80 dB.  Nothing is warned of.
# So: read, mix and resample with other libraries, and give sr.AudioData 16 kHz, mono, 16 bits.
#
#   bash findings/speechrecognition-audio.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   SpeechRecognition 3.17.0
#   mono at a peak of 0.6: peak 0.60, 0 % of the samples at the limit
#   the same in both channels: peak 1.00, 38 % of the samples at the limit
#   10 kHz in 44.1 kHz: 6 kHz at -1.5 dB; with soxr: -100 dB
#   10 kHz in 48.0 kHz: 6 kHz at 0.0 dB; with soxr: -100 dB
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  SpeechRecognition==3.17.0 soundfile==0.14.0 soxr==1.0.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""A tone of 440 Hz in one and in both channels, and one of 10 kHz that becomes 16 kHz."""

import sys

import numpy as np
import soundfile as sf
import soxr
import speech_recognition as sr

RATE, SECONDS = 16000, 2


def tone(frequency, rate, peak):
    return peak * np.sin(2 * np.pi * frequency * np.arange(rate * SECONDS) / rate)


def heard(samples, rate, **options):
    """What a recogniser of SpeechRecognition gets from a file of 16 bits."""
    sf.write("file.wav", samples, rate)
    with sr.AudioFile("file.wav") as source:
        audio = sr.Recognizer().record(source)
    return np.frombuffer(audio.get_raw_data(**options), np.int16) / 32768


def level(samples, frequency):
    """A tone's level at 16 kHz, in dB of a tone with a peak of 1; -100 at least."""
    middle = samples[RATE // 2 : RATE * 3 // 2]
    phase = np.exp(-2j * np.pi * frequency * np.arange(len(middle)) / RATE)
    return 20 * np.log10(max(2 * abs(np.mean(middle * phase)), 1e-5))


print(f"SpeechRecognition {sr.__version__}")
as_stated = True
mono = tone(440, RATE, 0.6)
for what, samples, peak, share in (
    ("mono at a peak of 0.6", mono, 0.6, 0),
    ("the same in both channels", np.stack([mono, mono], axis=1), 1, 38),
):
    seen = np.abs(heard(samples, RATE))
    limited = 100 * np.mean(seen > 0.9999)
    print(f"{what}: peak {seen.max():.2f}, {limited:.0f} % of the samples at the limit")
    as_stated &= abs(seen.max() - peak) < 0.01 and abs(limited - share) < 1
for rate, stated in (44100, -1.5), (48000, 0):
    high = tone(10000, rate, 1)
    folded = level(heard(0.5 * high, rate, convert_rate=RATE) * 2, 6000) + 0.0
    filtered = level(soxr.resample(high, rate, RATE), 6000)
    print(f"10 kHz in {rate / 1000:.1f} kHz: 6 kHz at {folded:.1f} dB; with soxr: {filtered:.0f} dB")
    as_stated &= abs(folded - stated) < 0.3 and filtered < -80
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
