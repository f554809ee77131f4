#!/usr/bin/env bash
# lhotse 1.33.0: reverb_rir can give silence, and the seeds that it stores with a drawn room do not fix the room.
#
# Expected: as in Kaldi, whose tool it follows, early_only=True keeps the first 50 ms after the direct sound, and
#   normalize_output=False gives the plain convolution.  Without an impulse response it draws a room, whose two seeds
#   stand in the cut, so the cut sounds alike whenever it is loaded.
# Happens: early_only takes the first 50 ms of the file.  Where the direct sound comes later, as in a response that was
#   recorded at a distance or not trimmed, the audio is all zeros.  normalize_output=False gives the convolution
#   divided by 32768, although samples lie between -1 and 1: that is below one step of 16 bits.  The seeds decide the
#   room's size and damping.  Where its reflections lie comes from torch's global generator: each loading has others, and
#   differs from the last one as much as from any other room.  Nothing is raised or warned of.
# So: trim responses to their direct sound before early_only, leave normalize_output alone, and store the audio of cuts
#   with drawn rooms that are to sound alike twice.
#
#   bash findings/lhotse-reverb.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   lhotse 1.33.0
#   direct sound after 2 ms: -20 dB
#   direct sound after 60 ms: -20 dB
#   after 2 ms, early_only=True: -20 dB
#   after 60 ms, early_only=True: -inf dB
#   after 2 ms, normalize_output=False: -107 dB
#   a drawn room, loaded twice: -20 dB, difference -17 dB
#   and with torch.manual_seed before each: difference below -40 dB: True
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  lhotse==1.33.0 torch==2.14.1 torchaudio==2.11.0 numpy==2.4.6 soundfile==0.14.0 urllib3==2.8.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""One second of noise at -20 dB in rooms whose direct sound comes after 2 ms and after 60 ms."""

import sys

import lhotse
import numpy as np
import soundfile as sf
import torch
from lhotse import CutSet, Recording

RATE = 16000
generator = np.random.default_rng(0)


def recording(name, samples):
    sf.write(f"{name}.wav", samples, RATE)  # 16 bits
    return Recording.from_file(f"{name}.wav")


def response(milliseconds):
    """A direct sound and a tail, after some silence."""
    tail = 0.05 * generator.standard_normal(RATE // 2) * np.exp(-np.arange(RATE // 2) / 1000)
    tail[0] = 0.9
    return recording(f"room-{milliseconds}", np.concatenate([np.zeros(RATE * milliseconds // 1000), tail]))


def level(samples):
    power = np.mean(samples.astype(float) ** 2)
    return 10 * np.log10(power) if power else -np.inf


def stored():
    """The audio of a manifest's only cut, with the seeds that stand there."""
    return next(iter(CutSet.from_file("drawn.jsonl"))).load_audio()


print(f"lhotse {lhotse.__version__}")
speech = recording("speech", 0.1 * generator.standard_normal(RATE)).to_cut()
near, far = response(2), response(60)
as_stated = abs(level(speech.load_audio()) + 20) < 0.5
for what, room, options, stated in (
    ("direct sound after 2 ms", near, {}, -20),
    ("direct sound after 60 ms", far, {}, -20),
    ("after 2 ms, early_only=True", near, {"early_only": True}, -20),
    ("after 60 ms, early_only=True", far, {"early_only": True}, -np.inf),
    ("after 2 ms, normalize_output=False", near, {"normalize_output": False}, -110),
):
    seen = level(speech.reverb_rir(room, **options).load_audio())
    print(f"{what}: {seen:.0f} dB")
    as_stated &= seen == stated or abs(seen - stated) < 3
CutSet.from_cuts([speech.reverb_rir()]).to_file("drawn.jsonl")
first, second = stored(), stored()
print(f"a drawn room, loaded twice: {level(first):.0f} dB, difference {level(second - first):.0f} dB")
as_stated &= level(second - first) > -25
torch.manual_seed(0)
first = stored()
torch.manual_seed(0)
second = stored()
alike = level(second - first) < -40
print(f"and with torch.manual_seed before each: difference below -40 dB: {alike}")
as_stated &= alike
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
