#!/usr/bin/env bash
# lhotse 1.33.0: the SNR that cut.mix takes means one thing for audio and another for features.
#
# Expected: speech.mix(noise, snr=10) puts noise 10 dB below the speech, in load_audio() and in load_features() alike.
# Happens: the two take different energies.  For audio it is the mean power.  For log-mel features it is the sum over
#   frames, so the noise is off by the ratio of the durations: 1 s of noise within 10 s of speech lies at 0 dB, not at 10.
#   CutMix(pad_to_longest=True) errs both ways: an utterance of 3 s that is padded to 15 s has its noise at 15.2 dB.
#   Of appended cuts both take the energy of the first alone: quiet.append(loud).mix(noise, snr=10) is at 36.5 dB over
#   its whole length, and the other order at 7.0 dB.
# So: stored features and features that are made from audio train on different noise under one setting.  Mix audio, and
#   mix before append.
#
#   bash findings/lhotse-snr.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   lhotse 1.33.0, snr=10
#   10 s of noise in 10 s of speech, audio: 10.0 dB
#   10 s of noise in 10 s of speech, features: 10.0 dB
#   1 s of noise in 10 s of speech, audio: 10.0 dB
#   1 s of noise in 10 s of speech, features: 0.0 dB
#   CutMix, batch of 15 s and 3 s, the 15 s, audio: 10.0 dB
#   CutMix, batch of 15 s and 3 s, the 15 s, features: 8.2 dB
#   CutMix, batch of 15 s and 3 s, the 3 s, audio: 10.0 dB
#   CutMix, batch of 15 s and 3 s, the 3 s, features: 15.2 dB
#   quiet, then loud, audio: 36.5 dB
#   loud, then quiet, audio: 7.0 dB
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  lhotse==1.33.0 torch==2.14.1 numpy==2.4.6 soundfile==0.14.0 urllib3==2.8.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""White noise stands for speech and for noise: its power is the same in each frame and each band."""

import sys

import lhotse
import numpy as np
import soundfile as sf
from lhotse import CutSet, Fbank, FbankConfig, NumpyFilesWriter, Recording
from lhotse.dataset import CutMix

RATE, FRAMES, EDGE = 16000, 100, 10  # samples and frames of a second; frames at the edges that are left out
generator = np.random.default_rng(0)
extractor = Fbank(FbankConfig(num_mel_bins=80))


def cut(name, seconds, amplitude=0.1):
    """With audio, and with features that are stored as they are."""
    samples = amplitude * generator.standard_normal(seconds * RATE)
    sf.write(f"{name}.wav", samples.astype(np.float32), RATE, subtype="FLOAT")
    cut = Recording.from_file(f"{name}.wav").to_cut()
    with NumpyFilesWriter("features") as writer:
        return cut.compute_and_store_features(extractor, writer)


def snr(signal, noise):
    return 10 * np.log10(signal.mean() / noise.mean())


def audio_snr(signal, mixed, seconds):
    """Over the seconds that have noise, of which the audio's power is known."""
    clean = signal.load_audio()[0]
    noise = mixed.load_audio()[0, : len(clean)] - clean
    return snr(clean**2, noise[: seconds * RATE] ** 2)


def feature_snr(signal, mixed, seconds):
    """The same from mel energies."""
    clean = np.exp(signal.load_features())
    noise = np.exp(mixed.load_features())[: len(clean)] - clean
    return snr(clean, noise[EDGE : seconds * FRAMES - EDGE])


def show(what, value, stated):
    print(f"{what}: {round(value, 1) + 0.0:.1f} dB")
    agree.append(abs(value - stated) < 0.3)


print(f"lhotse {lhotse.__version__}, snr=10")
agree = []
speech = cut("speech", 10)
for seconds, stated in (10, 10), (1, 0):
    noise = cut(f"noise-{seconds}", seconds)
    mixed = speech.mix(noise, snr=10)
    show(f"{seconds} s of noise in 10 s of speech, audio", audio_snr(speech, mixed, seconds), 10)
    show(f"{seconds} s of noise in 10 s of speech, features", feature_snr(speech, mixed, seconds), stated)

batch = CutSet.from_cuts([cut("long", 15), cut("short", 3)])
few = CutSet.from_cuts([cut("ten", 10), cut("other-ten", 10)])
augmented = CutMix(few, snr=10, p=1.0, pad_to_longest=True)(batch)
for which, signal, mixed, stated in zip(("15 s", "3 s"), batch, augmented, (8.2, 15.2)):
    seconds = min(10, int(signal.duration))
    show(f"CutMix, batch of 15 s and 3 s, the {which}, audio", audio_snr(signal, mixed, seconds), 10)
    show(f"CutMix, batch of 15 s and 3 s, the {which}, features", feature_snr(signal, mixed, seconds), stated)

quiet, loud, noise = cut("quiet", 5, 0.01), cut("loud", 5, 0.3), cut("whole", 10)
for order, both, stated in ("quiet, then loud", quiet.append(loud), 36.5), ("loud, then quiet", loud.append(quiet), 7.0):
    show(f"{order}, audio", audio_snr(both, both.mix(noise, snr=10), 10), stated)
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON
