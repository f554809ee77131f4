#!/usr/bin/env bash
# speechpy 2.4: its mel filters end at a quarter of the sampling rate, each at half of its frequency, and begin above 0.
#
# Expected: mfe, lmfe and mfcc have filters from low_frequency, "default is 0", to high_frequency, "default is
#   samplerate/2".  All whole frames are there.
# Happens: each filter is at half of its frequency.  At 16,000 Hz the highest ends at 4000 Hz and at 8000 Hz at 2000 Hz:
#   of a hiss above 4500 Hz, as in an "s", the filters have 1/1000 of the energy.  More can't be asked for, as
#   high_frequency may be no higher.  low_frequency=0 counts as not given, and that is 300: so all below 150 Hz is
#   missing, and 1 Hz has other features than 0 Hz.  The last whole frame is left out: 560 samples of 16,000 Hz have 1
#   frame of 25 ms instead of 2, and 400 none.  A frame longer than fft_length, 512, is cut off there: of 20 ms at
#   44,100 Hz that is 42 %.  Nothing is raised or warned of.
# So: make features with python_speech_features, librosa or kaldi-native-fbank.
#
#   bash findings/speechpy-filters.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   speechpy 2.4, numpy 2.4.6
#   16000 Hz, noise of 500 to 3500 Hz, in the filters: 0.998
#   16000 Hz, noise of 4500 to 8000 Hz, in the filters: 0.001
#   8000 Hz, noise of 500 to 1700 Hz, in the filters: 0.996
#   8000 Hz, noise of 2300 to 3400 Hz, in the filters: 0.003
#   low_frequency 0 is as 300: True
#   low_frequency 0 is as 1: False
#   noise of 40 to 120 Hz, low_frequency 0: 0.04
#   noise of 40 to 120 Hz, low_frequency 1: 1.00
#   400 samples, 1 whole frames: 0
#   560 samples, 2 whole frames: 1
#   720 samples, 3 whole frames: 2
#   16000 samples, 98 whole frames: 97
#   44100 Hz, 370 of each 882 samples set to 0: no difference: True
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check speechpy==2.4 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""What of tones and noise is in the mel filters, and how many frames there are."""

import sys
from importlib.metadata import version

import numpy as np
from speechpy.feature import mfe

FRAMES = {"frame_length": 0.025, "frame_stride": 0.01}
random = np.random.default_rng(0)


def noise(low, high, rate):
    """A second of it, of equal energy at all frequencies from low to high."""
    spectrum = np.fft.rfft(random.standard_normal(rate))
    frequencies = np.fft.rfftfreq(rate, 1 / rate)
    return np.fft.irfft(np.where((frequencies >= low) & (frequencies <= high), spectrum, 0))


def share(samples, rate, **options):
    """The energy in all filters over that of the samples."""
    filters, energies = mfe(samples, rate, **FRAMES, **options)
    return filters.sum() / energies.sum()


def show(what, found, stated):
    print(f"{what}: {found}")
    agree.append(found == stated)


agree = []
print(f"speechpy {version('speechpy')}, numpy {np.__version__}")
for rate, low, high, stated in (
    (16000, 500, 3500, "0.998"),
    (16000, 4500, 8000, "0.001"),
    (8000, 500, 1700, "0.996"),
    (8000, 2300, 3400, "0.003"),
):
    found = share(noise(low, high, rate), rate)
    show(f"{rate} Hz, noise of {low} to {high} Hz, in the filters", f"{found:.3f}", stated)
speech = noise(0, 8000, 16000)
zero, one, three_hundred = (mfe(speech, 16000, **FRAMES, low_frequency=low)[0] for low in (0, 1, 300))
show("low_frequency 0 is as 300", np.array_equal(zero, three_hundred), True)
show("low_frequency 0 is as 1", np.allclose(zero, one), False)
rumble = noise(40, 120, 16000)
show("noise of 40 to 120 Hz, low_frequency 0", f"{share(rumble, 16000, low_frequency=0):.2f}", "0.04")
show("noise of 40 to 120 Hz, low_frequency 1", f"{share(rumble, 16000, low_frequency=1):.2f}", "1.00")
for samples, stated in (400, 0), (560, 1), (720, 2), (16000, 97):
    whole = 1 + (samples - 400) // 160
    show(f"{samples} samples, {whole} whole frames", len(mfe(speech[:samples], 16000, **FRAMES)[0]), stated)
long, cut = np.ones(44100), np.ones(44100)
cut[np.arange(44100) % 882 >= 512] = 0
pair = [mfe(each, 44100, frame_length=0.02, frame_stride=0.02)[0] for each in (long, cut)]
show("44100 Hz, 370 of each 882 samples set to 0: no difference", np.array_equal(*pair), True)
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON
