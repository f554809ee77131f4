#!/usr/bin/env bash
# dover-lap 1.3.1: custom weights go to other systems than they are given to, and rank weights favour the worst system.
#
# Expected: --custom-weight '[0.8,0.1,0.1]' is for the input RTTMs in the order given, as in the README's example.  By
#   default the weights are by rank: a system that agrees more with the others has more weight, as in the paper.
# Happens: the inputs of each recording are shuffled before the weights are put to them, so each recording has another
#   assignment (greedy mapping, the default).  --label-mapping hungarian sorts the inputs, by how well they agree, and
#   then puts the weights to them.  The rank is by the seconds of overlap with the other systems, from the lowest up: in
#   greedy mapping a system that misses most of the speech comes first, and wins wherever three systems differ.
#   Nothing is said, and the output is a valid RTTM.
# So: call DOVERLap.combine_turns_list with weight_type="custom" and the greedy mapping, which keeps the order of its
#   inputs.  The greedy mapping of 1.3.1 needs numpy < 1.24.
#
#   bash findings/dover-lap-weights.sh    # needs python3.11 with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   dover-lap 1.3.1: recordings of 6 whose output is that of the system with the weight 0.8
#   greedy [0.8,0.1,0.1]: 4
#   greedy [0.1,0.8,0.1]: 3
#   greedy [0.1,0.1,0.8]: 3
#   hungarian [0.8,0.1,0.1]: 0
#   hungarian [0.1,0.8,0.1]: 6
#   hungarian [0.1,0.1,0.8]: 0
#   in the order given: 6, 6, 6
#   two systems of 33 s and one of 11 s, rank weights (the default): the last 3 s are of the system of 11 s
#   rank weights, --dover-weight 3: 11 s of speech in the output
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  dover-lap==1.3.1 numpy==1.23.5 scipy==1.11.4 intervaltree==3.2.1 click==8.1.8 spy-der==0.4.1
cd "$folder"
PATH=$folder/venv/bin:$PATH python -W ignore - <<'PYTHON'
"""Three systems that divide 10 s between two speakers elsewhere, and three of which one misses most of the speech."""

import contextlib
import io
import subprocess
import sys
from importlib.metadata import version

from dover_lap.libs.rttm import load_rttm
from dover_lap.src.doverlap import DOVERLap

NAMES = ("one.rttm", "two.rttm", "three.rttm")
RECORDINGS = tuple(f"recording-{number}" for number in range(6))


def write(name, recordings, turns):
    with open(name, "w") as file:
        for recording in recordings:
            for speaker, start, end in turns:
                file.write(f"SPEAKER {recording} 1 {start:.3f} {end - start:.3f} <NA> <NA> {speaker} <NA> <NA>\n")


def combine(*options):
    """The output's turns of each recording: (start, end), in order."""
    command = ["dover-lap", "--gaussian-filter-std", "0.01", *options, "output.rttm", *NAMES]
    subprocess.run(command, check=True, capture_output=True)
    found = {}
    for turn in load_rttm("output.rttm")[0]:
        found.setdefault(turn.file_id, []).append((turn.onset, turn.offset, turn.speaker_id))
    return {recording: sorted(turns) for recording, turns in found.items()}


def show(text, as_it_should):
    print(text)
    agree.append(as_it_should)


agree = []
print(f"dover-lap {version('dover-lap')}: recordings of 6 whose output is that of the system with the weight 0.8")
changes = 7, 4, 4.5  # seconds at which the second speaker begins
for name, change in zip(NAMES, changes):
    write(name, RECORDINGS, [("anna", 0, change), ("ben", change, 10)])
all_weights = [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]
for mapping, stated in ("greedy", (4, 3, 3)), ("hungarian", (0, 6, 0)):
    for weights, change, count in zip(all_weights, changes, stated):
        text = str(weights).replace(" ", "")
        output = combine("--label-mapping", mapping, "--weight-type", "custom", "--custom-weight", text)
        seen = sum(output[recording][0][1] == change for recording in RECORDINGS)
        show(f"{mapping} {text}: {seen}", seen == count)

counts = []
for weights, change in zip(all_weights, changes):
    counts.append(0)
    for recording in RECORDINGS:
        turns = [[turn for turn in load_rttm(name)[0] if turn.file_id == recording] for name in NAMES]
        with contextlib.redirect_stderr(io.StringIO()):
            combined = DOVERLap.combine_turns_list(turns, recording, weight_type="custom", custom_weight=weights)
        counts[-1] += min(turn.offset for turn in combined) == change
show(f"in the order given: {', '.join(map(str, counts))}", counts == [6, 6, 6])

agreed = [("anna", 0, 10), ("ben", 10, 20), ("carl", 20, 30)]
write(NAMES[0], ["recording"], [*agreed, ("anna", 30, 33)])
write(NAMES[1], ["recording"], [*agreed, ("ben", 30, 33)])
write(NAMES[2], ["recording"], [("anna", 0, 4), ("ben", 10, 14), ("carl", 30, 33)])
output = combine()["recording"]
at_25, at_31 = ([speaker for start, end, speaker in output if start <= time < end] for time in (25, 31))
whose = "of the system of 11 s" if at_25 == at_31 and len(at_31) == 1 else "not of it"
show(
    f"two systems of 33 s and one of 11 s, rank weights (the default): the last 3 s are {whose}",
    whose == "of the system of 11 s",
)
seconds = sum(end - start for start, end, _ in combine("--dover-weight", "3")["recording"])
show(f"rank weights, --dover-weight 3: {seconds:.0f} s of speech in the output", seconds == 11)
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON
