#!/usr/bin/env bash
# lhotse 1.33.0: normalize_loudness and reverb_rir of a recording depend on which cut reads it.
#
# Expected: a cut of a changed recording sounds like that stretch of the changed recording, as after perturb_volume,
#   perturb_speed and resample.  So one gain brings the recording to the target, and quiet talk in it stays quiet; and
#   a cut begins with the reverberation of what was said before it.
# Happens: each transform is applied to the samples that a cut reads, and to nothing else.  After normalize_loudness(-23)
#   every cut has -23 LUFS of its own: cut_into_windows, truncate and trim_to_supervisions raise a stretch that is 20 dB
#   below the rest by 20 dB, background noise and other speakers too.  After reverb_rir a cut lacks the tail of all that
#   came before: what is at -23 dB in the whole recording is zeros in the cut.  The order of the calls makes no
#   difference, so there is no way to say which is meant, and nothing is warned of.
# So: save_audio a recording that was changed so before it is cut, and cut what was saved.
#
#   bash findings/lhotse-lazy-transforms.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   lhotse 1.33.0: level of the same samples in the whole cut, and in a cut of half of it
#   perturb_volume(2), before 4 s: -34.0 dB and -34.0 dB
#   normalize_loudness(-23), before 4 s: -45.5 dB and -25.7 dB
#   normalize_loudness(-23), after 4 s: -25.5 dB and -25.7 dB
#   reverb_rir, 0.1 s after 4 s: -22.7 dB and -inf dB
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  lhotse==1.33.0 torch==2.14.1 numpy==2.4.6 soundfile==0.14.0 urllib3==2.8.0 pyloudnorm==0.2.0 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Four seconds of noise at -40 dB and four at -20 dB; and what is heard behind noise that ends."""

import sys

import lhotse
import numpy as np
import soundfile as sf
from lhotse import Recording

RATE, HALF = 16000, 4  # samples of a second; seconds
generator = np.random.default_rng(0)


def recording(name, samples):
    sf.write(f"{name}.wav", samples.astype(np.float32), RATE, subtype="FLOAT")
    return Recording.from_file(f"{name}.wav")


def level(samples):
    power = np.mean(samples.astype(float) ** 2)
    return 10 * np.log10(power) if power else -np.inf


noise = generator.standard_normal((2, HALF * RATE))
rising = recording("rising", np.concatenate([0.01 * noise[0], 0.1 * noise[1]])).to_cut()
ending = recording("ending", np.concatenate([0.1 * noise[0], 0 * noise[1]])).to_cut()
tail = 0.1 * generator.standard_normal(RATE) * np.exp(-np.arange(RATE) / 3000)
tail[0] = 1
room = recording("room", tail)
print(f"lhotse {lhotse.__version__}: level of the same samples in the whole cut, and in a cut of half of it")
agree = []
for what, changed, offset, seconds, stated in (
    ("perturb_volume(2), before 4 s", rising.perturb_volume(2), 0, HALF, (-34, -34)),
    ("normalize_loudness(-23), before 4 s", rising.normalize_loudness(-23), 0, HALF, (-45.5, -25.6)),
    ("normalize_loudness(-23), after 4 s", rising.normalize_loudness(-23), HALF, HALF, (-25.6, -25.6)),
    ("reverb_rir, 0.1 s after 4 s", ending.reverb_rir(room), HALF, 0.1, (-22, -np.inf)),
):
    first, count = HALF * RATE if offset else 0, int(seconds * RATE)
    whole = level(changed.load_audio()[0, first : first + count])
    part = level(changed.truncate(offset=offset, duration=HALF).load_audio()[0, :count])
    print(f"{what}: {whole:.1f} dB and {part:.1f} dB")
    agree += [a == b or abs(a - b) < 1 for a, b in zip((whole, part), stated)]
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON
