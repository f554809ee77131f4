#!/usr/bin/env bash
# speechbrain 1.1.2: AddNoise's own noise is too quiet in utterances that are padded, by the share of their padding.
#
# Expected: AddNoise(snr_low=10, snr_high=10)(waveforms, lengths) puts noise 10 dB below each utterance.  It takes the
#   lengths so that padding does not count.
# Happens: the speech is measured over its length.  Noise that AddNoise makes itself (white by default, or noise_funct)
#   lasts as long as the batch: its energy is summed over the batch's length and divided by the utterance's.  So white
#   noise is 3 dB too quiet for an utterance of half the batch's length, and 10 dB for one of a tenth.  Noise from a
#   csv_file has its own length, and is right.  How noisy an utterance is depends on its batch.  No warning is given.
# So: give AddNoise a csv_file of noise files, which may hold the white noise, or add the noise before padding.
#
#   bash findings/speechbrain-noise.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   speechbrain 1.1.2: snr_low=10, snr_high=10, batches of 10 s
#   white noise: 10.0 dB for 10 s, 13.0 dB for 5 s, 17.0 dB for 2 s, 20.0 dB for 1 s
#   noise from a file: 10.0 dB for 10 s, 10.0 dB for 5 s, 10.0 dB for 2 s, 10.0 dB for 1 s
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  speechbrain==1.1.2 torch==2.14.1 torchaudio==2.11.0 numpy==2.4.6 soundfile==0.14.0 \
  scipy==1.17.1 sentencepiece==0.2.3 huggingface_hub==2.4.0 HyperPyYAML==1.2.3 ruamel.yaml==0.18.17
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Utterances of 10, 5, 2 and 1 s of noise, padded to 10 s, to which AddNoise adds other noise."""

import sys
from importlib.metadata import version

import numpy as np
import soundfile as sf
import torch
from speechbrain.augment.time_domain import AddNoise

RATE, SECONDS = 16000, (10, 5, 2, 1)
torch.manual_seed(0)
batch = torch.zeros(len(SECONDS), max(SECONDS) * RATE)
for row, seconds in zip(batch, SECONDS):
    row[: seconds * RATE] = 0.1 * torch.randn(seconds * RATE)
lengths = torch.tensor(SECONDS) / max(SECONDS)
sf.write("noise.wav", 0.1 * np.random.default_rng(0).standard_normal(30 * RATE), RATE)
with open("noise.csv", "w") as file:
    file.write("ID,duration,wav,wav_format,wav_opts\nnoise,30.0,noise.wav,wav,\n")


def measured(clean, noisy):
    """The SNR in dB: the utterance is in the output at a gain, and the rest is noise."""
    gain = (clean @ noisy) / (clean @ clean)
    return 10 * torch.log10((gain * clean).pow(2).mean() / (noisy - gain * clean).pow(2).mean()).item()


print(f"speechbrain {version('speechbrain')}: snr_low=10, snr_high=10, batches of {max(SECONDS)} s")
as_stated = True
for what, options, stated in (
    ("white noise", {}, (10, 13, 17, 20)),
    ("noise from a file", {"csv_file": "noise.csv"}, (10, 10, 10, 10)),
):
    noisy = AddNoise(snr_low=10, snr_high=10, **options)(batch, lengths)
    seen = [measured(batch[i, : s * RATE], noisy[i, : s * RATE]) for i, s in enumerate(SECONDS)]
    print(f"{what}: " + ", ".join(f"{snr:.1f} dB for {s} s" for snr, s in zip(seen, SECONDS)))
    as_stated &= all(abs(a - b) < 0.5 for a, b in zip(seen, stated))
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
