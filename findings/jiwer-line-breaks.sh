#!/usr/bin/env bash
# jiwer 4.0.0: a single line break or tab does not part words, and two of them do.
#
# Expected: jiwer.wer parts words at any white space, as str.split does, so how a transcript is broken into lines is no
#   error.
# Happens: runs of two and more white spaces become a blank first, and then words are parted at blanks alone.  A single
#   line break survives: the words on both sides of it are one word of the reference, and cost a substitution and an
#   insertion.  A text of 20 lines of 10 words has 21.0 % errors against the same words on one line, and so it has with
#   tabs instead of line breaks.  With the line ends of Windows, empty lines between, or blanks before the breaks it has
#   none.
# So: give jiwer ' '.join(text.split()), or a list with one string an utterance.
#
#   bash findings/jiwer-line-breaks.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   jiwer 4.0.0: 20 lines of 10 words as reference, the same words on one line as hypothesis
#   blank: 0.0 % errors, 0 substitutions, 0 insertions, 0 deletions
#   line break: 21.0 % errors, 19 substitutions, 19 insertions, 0 deletions
#   tab: 21.0 % errors, 19 substitutions, 19 insertions, 0 deletions
#   line break of Windows: 0.0 % errors, 0 substitutions, 0 insertions, 0 deletions
#   empty line between: 0.0 % errors, 0 substitutions, 0 insertions, 0 deletions
#   blank and line break: 0.0 % errors, 0 substitutions, 0 insertions, 0 deletions
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jiwer==4.0.0 rapidfuzz==3.14.6 click==8.5.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""One transcript in lines, against itself on one line."""

import sys
from importlib.metadata import version

import jiwer

LINES = [" ".join(f"word{10 * line + i}" for i in range(10)) for line in range(20)]
ENDS = {  # and whether jiwer parts words there
    "blank": (" ", True),
    "line break": ("\n", False),
    "tab": ("\t", False),
    "line break of Windows": ("\r\n", True),
    "empty line between": ("\n\n", True),
    "blank and line break": (" \n", True),
}

print(f"jiwer {version('jiwer')}: 20 lines of 10 words as reference, the same words on one line as hypothesis")
as_stated = True
for name, (end, parts) in ENDS.items():
    reference, hypothesis = end.join(LINES), " ".join(LINES)
    assert reference.split() == hypothesis.split()
    found = jiwer.process_words(reference, hypothesis)
    counts = f"{found.substitutions} substitutions, {found.insertions} insertions, {found.deletions} deletions"
    print(f"{name}: {100 * found.wer:.1f} % errors, {counts}")
    breaks = 0 if parts else len(LINES) - 1
    as_stated &= (found.substitutions, found.insertions, found.deletions) == (breaks, breaks, 0)
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
