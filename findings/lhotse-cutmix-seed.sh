#!/usr/bin/env bash
# lhotse 1.33.0: CutMix in the workers of a DataLoader adds the same noises in every worker and in every epoch.
#
# Expected: each epoch mixes other noises, as PerturbSpeed, PerturbVolume and ReverbWithImpulseResponse draw anew.
# Happens: CutMix has seed=42 by default and makes its generator at its first call, which is in a worker.  All workers
#   begin at the same place, and so does each epoch, since it starts new workers.  200 utterances, 1,000 noises and
#   2 workers: 97 of the noises are heard in the first epoch, and the same 97, with the same SNRs, in all that follow.
#   seed="randomized" parts the workers and not the epochs: 183 noises, and these again.
# So: give seed="trng", or persistent_workers=True with seed="randomized", and count the noises that were mixed.
#
#   bash findings/lhotse-cutmix-seed.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64); the figures of "trng" vary:
#   lhotse 1.33.0: 200 utterances, 1000 noises, 2 workers, 3 epochs
#   default: [97, 97, 97] noises; each epoch as the first: True
#   seed='randomized': [183, 183, 183] noises; each epoch as the first: True
#   seed='randomized', persistent_workers=True: [183, 180, 180] noises; each epoch as the first: False
#   seed='trng': [180, 181, 186] noises; each epoch as the first: False
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  lhotse==1.33.0 torch==2.14.1 numpy==2.4.6 urllib3==2.8.0  # which lhotse imports without asking for it
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Which noises three epochs of a DataLoader mix.  Nothing is read: the cuts need no audio for that."""

import sys

import lhotse
from lhotse import CutSet, MonoCut, Recording
from lhotse.dataset import CutMix, DynamicCutSampler
from lhotse.dataset.dataloading import make_worker_init_fn
from torch.utils.data import DataLoader, Dataset

RATE = 16000


def cuts(name, how_many, seconds):
    recordings = (Recording(f"{name}{i}", [], RATE, int(seconds * RATE), seconds) for i in range(how_many))
    return CutSet.from_cuts(MonoCut(each.id, 0, seconds, 0, recording=each) for each in recordings)


speech, noise = cuts("speech", 200, 3.0), cuts("noise", 1000, 10.0)


class Mixed(Dataset):
    """A batch's noises and their SNRs; CutMix is made here once, as a recipe does it."""

    def __init__(self, **seed):
        self.mix = CutMix(noise, snr=(10, 20), p=1.0, **seed)

    def __getitem__(self, batch):
        return [(cut.tracks[1].cut.recording_id, cut.tracks[1].snr) for cut in self.mix(batch)]


def epochs(persistent_workers=False, **seed):
    """What each of three epochs mixes."""
    sampler = DynamicCutSampler(speech, max_duration=30.1, shuffle=True)
    loader = DataLoader(
        Mixed(**seed),
        sampler=sampler,
        batch_size=None,
        num_workers=2,
        worker_init_fn=make_worker_init_fn(seed=0),
        persistent_workers=persistent_workers,
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        yield {tuple(mixed) for batch in loader for mixed in batch}


print(f"lhotse {lhotse.__version__}: 200 utterances, 1000 noises, 2 workers, 3 epochs")
as_stated = True
for options, few, again in (
    ({}, True, True),
    ({"seed": "randomized"}, False, True),
    ({"seed": "randomized", "persistent_workers": True}, False, False),
    ({"seed": "trng"}, False, False),
):
    first, *others = list(epochs(**options))
    names = [len({name for name, _ in each}) for each in (first, *others)]
    same = all(each == first for each in others)
    said = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "default"
    print(f"{said}: {names} noises; each epoch as the first: {same}")
    as_stated &= (names[0] <= 110) == few and same == again
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
