#!/usr/bin/env bash
# whisper-normalizer 0.1.15: "archaeology" becomes "archeology</span>", and some texts change again the second time.
#
# Expected: the normaliser with which Whisper's word error rates are counted makes British and American spellings equal,
#   and leaves a normalised text as it is.
# Happens: its table of spellings has a piece of a web page in it, as has that of openai-whisper 20250625: a recogniser
#   that writes "archeology" where the reference has "archaeology" makes an error, which a "color" for "colour" is not.
#   A sign and leading zeros of numbers survive one pass and not two: "minus five" is "-5", and then "5".
# So: normalise references and hypotheses once each, from their raw text, and mend the table: its attribute
#   standardize_spellings.mapping is a dictionary.
#
#   bash findings/whisper-normalizer.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   whisper-normalizer 0.1.15: text, once, twice
#   colour: color, color
#   archaeology: archeology</span>, archeology
#   minus five: -5, 5
#   double oh seven: 007, 7
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check whisper-normalizer==0.1.15
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""Texts, normalised once and twice."""

import sys
from importlib.metadata import version

from whisper_normalizer.english import EnglishTextNormalizer

STATED = {
    "colour": ("color", "color"),
    "archaeology": ("archeology</span>", "archeology"),
    "minus five": ("-5", "5"),
    "double oh seven": ("007", "7"),
}

normalise = EnglishTextNormalizer()
seen = {text: (normalise(text), normalise(normalise(text))) for text in STATED}
print(f"whisper-normalizer {version('whisper-normalizer')}: text, once, twice")
for text, (once, twice) in seen.items():
    print(f"{text}: {once}, {twice}")
print("as stated" if seen == STATED else "CHANGED: not as the head of this script states")
sys.exit(seen != STATED)
PYTHON
