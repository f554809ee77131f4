#!/usr/bin/env bash
# pysubs2 1.8.1: a subtitle's last line is dropped where it is only a number.
#
# Expected: text is what stands between a subtitle's times and the empty line after it, whatever it says.
# Happens: the reader takes all between two times as text, and then takes away a number at its end, since in an .srt the
#   number of the next subtitle stands there.  A .vtt has no such numbers, and neither has the last subtitle of an .srt:
#   there a second line "42" is taken for one, and is lost without a word.  It survives where it is the only line.
# So: where subtitles go through pysubs2, leave no number alone on a second line.
#
#   bash findings/pysubs2-numbers.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   pysubs2 1.8.1: the answer is / 42, 1999, in the year / 2000
#   srt: the answer is / 42, 1999, in the year
#   vtt: the answer is, 1999, in the year
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pysubs2==1.8.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""Three subtitles with numbers, as .srt and .vtt, and what pysubs2 reads."""

import sys
from importlib.metadata import version

import pysubs2

TEXTS = "the answer is\n42", "1999", "in the year\n2000"


def times(second, comma):
    return f"00:00:0{second}{comma}000 --> 00:00:0{second + 1}{comma}000"


def read(text):
    return [event.plaintext for event in pysubs2.SSAFile.from_string(text)]


def shown(texts):
    return ", ".join(texts).replace("\n", " / ")


srt = read("\n".join(f"{i + 1}\n{times(i, ',')}\n{text}\n" for i, text in enumerate(TEXTS)))
vtt = read("\n".join(["WEBVTT\n", *(f"{times(i, '.')}\n{text}\n" for i, text in enumerate(TEXTS))]))
print(f"pysubs2 {version('pysubs2')}: {shown(TEXTS)}")
print(f"srt: {shown(srt)}")
print(f"vtt: {shown(vtt)}")
as_stated = srt == [*TEXTS[:2], "in the year"] and vtt == ["the answer is", "1999", "in the year"]
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
