#!/usr/bin/env bash
# meeteval 0.4.3: labels, alternatives and segments that are not to be scored count as words of an .stm reference.
#
# Expected: a reference as NIST's scorer reads it, and as TED-LIUM ships it, is scored alike: <o,f0,male> after the times
#   is a label, {color / colour} allows either word, and "ignore_time_segment_in_scoring" takes its segment out.
# Happens: everything after the times is text.  Labels, "/", words with a brace and the mark of an ignored segment are
#   words that a hypothesis without any error has missed.  No warning is given.
# So: take the labels and the ignored segments out of an .stm before meeteval scores it, and choose one alternative.
#
#   bash findings/meeteval-stm-labels.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   meeteval 0.4.3: a hypothesis that says what the reference says
#   label: 1 errors in 3 words
#   alternatives: 3 errors in 4 words
#   not to be scored: 1 errors in 3 words
#   none of them: 0 errors in 2 words
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check meeteval==0.4.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""The errors of a perfect hypothesis against references with one of the .stm format's extras each."""

import sys
from importlib.metadata import version

from meeteval.io import STM
from meeteval.wer import cpwer

TIMES = "talk 1 speaker 0.00 2.00"
CASES = {
    "label": (f"{TIMES} <o,f0,male> good morning", f"{TIMES} good morning"),
    "alternatives": (f"{TIMES} {{color / colour}} red", f"{TIMES} colour red"),
    "not to be scored": (
        f"{TIMES} good morning\ntalk 1 speaker 2.00 3.00 ignore_time_segment_in_scoring",
        f"{TIMES} good morning",
    ),
    "none of them": (f"{TIMES} good morning", f"{TIMES} good morning"),
}


def errors(reference, hypothesis):
    result = cpwer(STM.parse(reference), STM.parse(hypothesis))["talk"]
    return result.errors, result.length


print(f"meeteval {version('meeteval')}: a hypothesis that says what the reference says")
seen = {case: errors(*texts) for case, texts in CASES.items()}
for case, (wrong, words) in seen.items():
    print(f"{case}: {wrong} errors in {words} words")
as_stated = list(seen.values()) == [(1, 3), (3, 4), (1, 3), (0, 2)]
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
