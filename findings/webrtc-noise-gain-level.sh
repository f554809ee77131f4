#!/usr/bin/env bash
# webrtc-noise-gain 1.3.0: auto_gain_dbfs is a switch; each level from 1 to 31 gives the same samples.
#
# Expected: AudioProcessor(auto_gain_dbfs, noise_suppression_level), in which 0 disables either and the others are
#   "[0, 31]" and "[0, 4]", brings speech to a level that auto_gain_dbfs sets.  Satellites of voice assistants let their
#   users set it, to be heard from further away.
# Happens: with 1, 3, 15 and 31 all samples are the same.  Speech of -28 dB of full scale has -18 dB then, and what is
#   quieter is louder by 12 dB at most: -48 dB becomes -36 dB, whichever is set.  Nothing is raised or logged.
#   noise_suppression_level does have its four levels; with any of them the sound is 6 ms late.
# So: set it to 0 or 1, compare only these two, and bring quiet speech to its level oneself.
#
#   bash findings/webrtc-noise-gain-level.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   webrtc-noise-gain 1.3.0
#   speech: -28 dB
#     auto_gain_dbfs 0: -28 dB
#     auto_gain_dbfs (1, 3, 15, 31), in dB: [-18, -18, -18, -18]
#     the same samples: True
#   speech: -37 dB
#     auto_gain_dbfs 0: -37 dB
#     auto_gain_dbfs (1, 3, 15, 31), in dB: [-25, -25, -25, -25]
#     the same samples: True
#   speech: -48 dB
#     auto_gain_dbfs 0: -48 dB
#     auto_gain_dbfs (1, 3, 15, 31), in dB: [-36, -36, -36, -36]
#     the same samples: True
#   noise, noise_suppression_level 0 to 4, in dB: [-40, -46, -52, -58, -61]
#   samples that suppression is late by: 96
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  webrtc-noise-gain==1.3.0 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Syllables of a made voice at several levels, and noise, in steps of 10 ms."""

import sys
from importlib.metadata import version

import numpy as np
from scipy.signal import lfilter
from webrtc_noise_gain import AudioProcessor

RATE, SECONDS = 16000, 20
GAINS = 1, 3, 15, 31


def voice():
    """Pulses with a falling pitch through four formants, and pauses."""
    parts = []
    while sum(map(len, parts)) < RATE * SECONDS:
        length = int(RATE * random.uniform(0.12, 0.3))
        pitch = random.uniform(90, 160) * np.linspace(1.1, 0.9, length)
        syllable = np.diff(np.floor(np.cumsum(pitch / RATE)), prepend=0)
        for formant in random.uniform(300, 800), random.uniform(900, 2200), 2600, 3500:
            pole = np.exp((-80 + 2j * formant) * np.pi / RATE)
            syllable = lfilter([1], [1, -2 * pole.real, abs(pole) ** 2], syllable)
        syllable *= np.hanning(length)
        parts += [syllable / np.max(np.abs(syllable)), np.zeros(int(RATE * random.uniform(0.03, 0.2)))]
    return np.concatenate(parts)[: RATE * SECONDS]


def process(samples, gain, suppression):
    processor = AudioProcessor(gain, suppression)
    steps = np.rint(32767 * samples).astype("<i2").reshape(-1, RATE // 100)
    return np.frombuffer(b"".join(processor.Process10ms(step.tobytes()).audio for step in steps), "<i2") / 32767


def level(samples):
    """Of the second half, in dB of full scale."""
    return round(20 * np.log10(np.std(samples[len(samples) // 2 :])))


def show(what, found, stated):
    print(f"{what}: {found}")
    agree.append(found == stated)


agree = []
random = np.random.default_rng(0)
print(f"webrtc-noise-gain {version('webrtc-noise-gain')}")
spoken = voice() + 0.001 * random.standard_normal(RATE * SECONDS)
for loudness, before, stated in (0.3, -28, -18), (0.1, -37, -25), (0.03, -48, -36):
    quiet = loudness * spoken
    show("speech", f"{level(quiet)} dB", f"{before} dB")
    show("  auto_gain_dbfs 0", f"{level(process(quiet, 0, 0))} dB", f"{before} dB")
    results = [process(quiet, gain, 0) for gain in GAINS]
    show(f"  auto_gain_dbfs {GAINS}, in dB", [level(each) for each in results], [stated] * 4)
    show("  the same samples", all(np.array_equal(each, results[0]) for each in results), True)
noise = 0.01 * random.standard_normal(RATE * SECONDS)
levels = [level(process(noise, 0, suppression)) for suppression in range(5)]
show("noise, noise_suppression_level 0 to 4, in dB", levels, [-40, -46, -52, -58, -61])
late = np.fft.irfft(np.fft.rfft(process(spoken * 0.3, 0, 1)) * np.fft.rfft(spoken).conj())
show("samples that suppression is late by", int(np.argmax(late)), 96)
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON
