#!/usr/bin/env bash
# lhotse 1.33.0: what copies the audio of a cut moves its words away from their alignments.
#
# Expected: a word's alignment says where the word is heard, whatever lhotse does with the cut.  Its times count from
#   the start of the recording, so in a cut the word begins at alignment.start - cut.start.
# Happens: that holds after trimming, truncation and perturb_speed.  to_shar, save_audio and move_to_memory make a
#   recording of the cut alone and set cut.start to 0, but keep the times of the old recording: each word is late by the
#   old cut.start.  pad on the left and append move the supervision, and not its words.  No operation warns.
# So: move the alignments oneself, item.with_offset(-cut.start), before cuts that begin within a recording become Shar.
#
#   bash findings/lhotse-alignments.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   lhotse 1.33.0: where the word begins, in seconds of the cut
#   trim_to_supervisions: heard 1.0, aligned 1.0
#   truncate: heard 3.0, aligned 3.0
#   perturb_speed 1.25: heard 0.8, aligned 0.8
#   move_to_memory: heard 1.0, aligned 5.0
#   save_audio: heard 1.0, aligned 5.0
#   to_shar, from_shar: heard 1.0, aligned 5.0
#   pad on the left to 8 s: heard 6.0, aligned 5.0
#   append to 1 s: heard 2.0, aligned 5.0
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  lhotse==1.33.0 torch==2.14.1 numpy==2.4.6 soundfile==0.14.0 urllib3==2.8.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Ten seconds of silence with one word, a burst, at 5 s; the utterance around it is from 4 to 7 s."""

import sys
from pathlib import Path

import lhotse
import numpy as np
import soundfile as sf
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem

RATE = 16000
samples = np.zeros(10 * RATE, np.float32)
samples[5 * RATE : 5 * RATE + 1600] = 0.5
sf.write("talk.wav", samples, RATE)
recording = Recording.from_file("talk.wav")
words = {"word": [AlignmentItem("YES", 5.0, 0.1)]}
said = SupervisionSegment("said", "talk", 4.0, 3.0, text="YES", alignment=words)
talk = MonoCut("talk", 0, 10, 0, [said], recording=recording)
(utterance,) = CutSet.from_cuts([talk]).trim_to_supervisions().to_eager()
before = MonoCut("before", 0, 1, 0, recording=recording)


def through_shar(cut):
    Path("shar").mkdir()
    CutSet.from_cuts([cut]).to_shar("shar", fields={"recording": "wav"})
    (found,) = CutSet.from_shar(in_dir="shar")
    return found


RIGHT = {
    "trim_to_supervisions": lambda: utterance,
    "truncate": lambda: talk.truncate(offset=2.0, preserve_id=True),
    "perturb_speed 1.25": lambda: utterance.perturb_speed(1.25),
}
WRONG = {  # and how much later the alignment is than the word
    "move_to_memory": (lambda: utterance.move_to_memory(audio_format="wav"), 4.0),
    "save_audio": (lambda: utterance.save_audio("utterance.wav"), 4.0),
    "to_shar, from_shar": (lambda: through_shar(utterance), 4.0),
    "pad on the left to 8 s": (lambda: talk.truncate(offset=4.0, duration=3.0).pad(8.0, direction="left"), -1.0),
    "append to 1 s": (lambda: before.append(utterance), 3.0),
}
print(f"lhotse {lhotse.__version__}: where the word begins, in seconds of the cut")
as_stated = True
for name, (make, wrong_by) in {**{name: (make, 0.0) for name, make in RIGHT.items()}, **WRONG}.items():
    cut = make()
    heard = np.flatnonzero(abs(cut.load_audio()[0]) > 0.2)[0] / cut.sampling_rate
    aligned = cut.supervisions[0].alignment["word"][0].start - cut.start
    print(f"{name}: heard {heard:.1f}, aligned {aligned:.1f}")
    as_stated &= abs(aligned - heard - wrong_by) < 0.01
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
