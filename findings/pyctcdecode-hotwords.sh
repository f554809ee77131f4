#!/usr/bin/env bash
# pyctcdecode 0.5.0: a phrase among the hotwords favours each of its words alone, wherever it may stand.
#
# Expected: a hotword may be a phrase, as "looney tunes" in pyctcdecode's readme.  The phrase is favoured where it is
#   said, and other words are as before, as with the hotword phrases of sherpa-onnx.
# Happens: the phrase is split, and each of its words is a hotword: "of" from "bank of england" is worth e to the power of
#   10, 22,000 times its probability, in every sentence.  So "they went off" ends with "of" although its letters have a
#   probability of 0.95 each, and no other word of the phrase is said.  With the name of a band, "the who", it begins
#   with "the".  There is no warning.
# So: give words that are seldom said as hotwords, and write no phrase that has common words in it.
#
#   bash findings/pyctcdecode-hotwords.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   pyctcdecode 0.5.0: they went off, each letter with probability 0.95
#   hotword None: they went off
#   hotword bank of england: they went of
#   hotword the who: the went off
#   hotword wentworth: they went off
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  pyctcdecode==0.5.0 numpy==1.26.4 pygtrie==2.6.2 hypothesis==6.170.17
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""A CTC model's posteriors of "they went off", each letter with probability 0.95, and what the hotwords make of it."""

import logging
import sys
from importlib.metadata import version

import numpy as np
from pyctcdecode import build_ctcdecoder

LABELS = ["", " ", *"abcdefghijklmnopqrstuvwxyz"]  # the first is CTC's blank
TEXT, SURE = "they went off", 0.95
CASES = {  # hotwords and the text stated
    None: TEXT,
    "bank of england": "they went of",
    "the who": "the went off",
    "wentworth": TEXT,
}

logging.disable()
frames = []
for letter in TEXT:  # each letter has a frame of its own, and a blank follows it
    for best in letter, "":
        row = np.full(len(LABELS), (1 - SURE) / 2 / (len(LABELS) - 2))
        row[0] = (1 - SURE) / 2
        row[LABELS.index(best)] = SURE
        frames.append(row / row.sum())
logits = np.log(frames)
decoder = build_ctcdecoder(LABELS)
print(f"pyctcdecode {version('pyctcdecode')}: {TEXT}, each letter with probability {SURE}")
as_stated = True
for phrase, stated in CASES.items():
    seen = decoder.decode(logits, hotwords=[phrase] if phrase else None)
    print(f"hotword {phrase}: {seen}")
    as_stated &= seen == stated
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
