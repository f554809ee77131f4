#!/usr/bin/env bash
# webvtt-py 0.6.0: start_in_seconds has no milliseconds, and asrtoolkit 0.2.4 writes captions of whole seconds from it.
#
# Expected: a caption's start_in_seconds and end_in_seconds are its times in seconds, with the thousandths, as those of
#   webvtt-py 0.4.6 are.  asrtoolkit reads .vtt and .srt with them, for whatever version, and writes .stm, .srt, .vtt
#   and .json: times stay within a hundredth, as there are two digits.
# Happens: since webvtt-py 0.5.0 both are whole seconds, rounded down: 1.9 s is 1, so all is early by up to 0.999 s,
#   and by half a second in the mean.  What is said from 2.1 to 2.9 s is from 2 to 2: whoever cuts audio by that has
#   nothing, and asrtoolkit leaves such captions out, which it logs.  In its .stm the others are early, so the last
#   words of a segment are beyond its end.  webvtt-py says "in seconds" of the two, and only of in_seconds(), which they
#   call, that milliseconds are left out.  Nothing is raised.
# So: take start_time.in_milliseconds() / 1000, and install webvtt-py 0.4.6 for asrtoolkit.
#
#   bash findings/webvtt-seconds.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   webvtt-py 0.6.0, asrtoolkit 0.2.4
#   in seconds: 1 to 2, 2 to 2, 3 to 6, 3600 to 3602
#   stm: 1.00 2.00 yes, 3.00 6.00 that was last year, 3600.00 3602.00 good bye
#   in_milliseconds() / 1000: 1.9, 2.1, 3.25, 3600.5
#   as stated
#   webvtt-py 0.4.6, asrtoolkit 0.2.4
#   in seconds: 1.9 to 2.1, 2.1 to 2.9, 3.25 to 6.999, 3600.5 to 3602.5
#   stm: 1.90 2.10 yes, 2.10 2.90 i did, 3.25 7.00 that was last year, 3600.50 3602.50 good bye
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > read.py <<'PYTHON'
"""Four captions, as webvtt-py and asrtoolkit read them."""

import logging
import sys
from importlib.metadata import version

import webvtt
from asrtoolkit import time_aligned_text

CAPTIONS = (
    ("00:00:01.900", "00:00:02.100", "yes"),
    ("00:00:02.100", "00:00:02.900", "I did"),
    ("00:00:03.250", "00:00:06.999", "that was last year"),
    ("01:00:00.500", "01:00:02.500", "good bye"),
)

logging.disable()
with open("captions.vtt", "w") as file:
    file.write("WEBVTT\n\n" + "\n\n".join(f"{start} --> {end}\n{text}" for start, end, text in CAPTIONS) + "\n")
times = [(caption.start_in_seconds, caption.end_in_seconds) for caption in webvtt.WebVTT.read("captions.vtt")]
time_aligned_text("captions.vtt").write("captions.stm")
with open("captions.stm") as file:
    lines = [" ".join(line.split()[3:5] + line.split()[6:]) for line in file]
print(f"webvtt-py {version('webvtt-py')}, asrtoolkit {version('asrtoolkit')}")
print(f"in seconds: {', '.join(f'{start} to {end}' for start, end in times)}")
print(f"stm: {', '.join(lines)}")
if version("webvtt-py") == "0.4.6":
    stated = [(1.9, 2.1), (2.1, 2.9), (3.25, 6.999), (3600.5, 3602.5)]
    stated_lines = ["1.90 2.10 yes", "2.10 2.90 i did", "3.25 7.00 that was last year", "3600.50 3602.50 good bye"]
else:
    exact = [caption.start_time.in_milliseconds() / 1000 for caption in webvtt.read("captions.vtt")]
    print(f"in_milliseconds() / 1000: {', '.join(map(str, exact))}")
    stated = [(1, 2), (2, 2), (3, 6), (3600, 3602)]
    stated_lines = ["1.00 2.00 yes", "3.00 6.00 that was last year", "3600.00 3602.00 good bye"]
as_stated = times == stated and lines == stated_lines
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
for version in 0.6.0 0.4.6; do
  python3 -m venv "$folder/venv-$version"
  pip=("$folder/venv-$version/bin/pip" install --quiet --disable-pip-version-check)
  "${pip[@]}" "webvtt-py==$version" beautifulsoup4==4.15.0 editdistance==0.8.1 fire==0.7.1 num2words==0.5.14 \
    regex==2026.11.19 termcolor==3.3.0 tqdm==4.70.1 xlrd==1.2.0 docopt==0.6.2
  "${pip[@]}" --no-deps asrtoolkit==0.2.4 # it names pytest, too
  "$folder/venv-$version/bin/python" -W ignore read.py
done
