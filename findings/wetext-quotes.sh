#!/usr/bin/env bash
# wetext 0.1.8: with a double quote in it a Japanese text becomes empty, and the 1990s are seconds.
#
# Expected: (inverse) text normalisation rewrites the numbers of a text, and leaves its punctuation as it is.
# Happens: the sign " (U+0022) goes wrong everywhere.  Inverse normalisation gives "" for the whole of a Japanese text,
#   raises an AssertionError without a message for an English one, and writes \" in a Chinese one.  Normalisation writes
#   \" in all three.  Numbers do not matter: a text without any is hit too.  Curly and Japanese quotes are left alone.
#   English decades and metres are taken for times: "1990s" are 1,990 seconds, and a race over 100m lasts minutes.
# So: replace U+0022 before a text goes into wetext, count texts that come out empty, and spell out decades and metres.
#
#   bash findings/wetext-quotes.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   wetext 0.1.8
#   ja itn: 彼は二十三歳です -> 彼は23歳です
#   ja itn: 彼は"はい"と言った ->
#   ja itn: 彼は「はい」と言った -> 彼は「はい」と言った
#   en itn: twenty three people -> 23 people
#   en itn: he said "yes" -> AssertionError
#   en itn: he said “yes” -> he said “yes”
#   zh itn: 他说"二十三" -> 他说\"23\"
#   en tn: he said "yes" -> he said \"yes\"
#   en tn: in the 80s -> in the eighties
#   en tn: in the 1990s -> in the one thousand nine hundred and ninety seconds
#   en tn: the 100m race -> the one hundred minutes race
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  wetext==0.1.8 kaldifst==1.8.3 contractions==0.1.73 textsearch==0.0.24 pyahocorasick==2.3.1 anyascii==0.3.3
cd "$folder"
PYTHONUTF8=1 "$folder/venv/bin/python" - <<'PYTHON'
"""Short texts with quotes and with times, in three languages."""

import sys
from importlib.metadata import version

from wetext import Normalizer

TEXTS = (
    ("ja", "itn", "彼は二十三歳です", "彼は23歳です"),
    ("ja", "itn", '彼は"はい"と言った', ""),
    ("ja", "itn", "彼は「はい」と言った", "彼は「はい」と言った"),
    ("en", "itn", "twenty three people", "23 people"),
    ("en", "itn", 'he said "yes"', "AssertionError"),
    ("en", "itn", "he said “yes”", "he said “yes”"),
    ("zh", "itn", '他说"二十三"', r"他说\"23\""),
    ("en", "tn", 'he said "yes"', r"he said \"yes\""),
    ("en", "tn", "in the 80s", "in the eighties"),
    ("en", "tn", "in the 1990s", "in the one thousand nine hundred and ninety seconds"),
    ("en", "tn", "the 100m race", "the one hundred minutes race"),
)


def normalized(language, operator, text):
    try:
        return Normalizer(lang=language, operator=operator).normalize(text)
    except AssertionError:
        return "AssertionError"


print(f"wetext {version('wetext')}")
as_stated = True
for language, operator, text, stated in TEXTS:
    seen = normalized(language, operator, text)
    print(f"{language} {operator}: {text} -> {seen}".rstrip())
    as_stated &= seen == stated
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
