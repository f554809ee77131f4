#!/usr/bin/env bash
# webvtt-py 0.6.0 and pysubs2 1.8.1: &amp;, &lt; and &gt; in a .vtt file come back as they stand there.
#
# Expected: WebVTT writes "&" as &amp; and "<" as &lt;, so a reader gives "Q&A < 3" for Q&amp;A &lt; 3, as browsers do.
# Happens: both give the escapes.  webvtt-py does not write them either: from its own file of "a < b > c" it reads "a  c",
#   as all from "<" to ">" counts as a tag.
# So: pass what these libraries read from a .vtt through html.unescape, and what webvtt-py is to write through
#   html.escape(text, quote=False).
#
#   bash findings/webvtt-escapes.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   webvtt-py 0.6.0, pysubs2 1.8.1: Q&A: a < b > c
#   read by webvtt-py: Q&amp;A: a &lt; b &gt; c
#   read by pysubs2: Q&amp;A: a &lt; b &gt; c
#   written and read by webvtt-py: Q&A: a  c
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check webvtt-py==0.6.0 pysubs2==1.8.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""A caption with the three characters that WebVTT escapes: read from a valid file, and written and read again."""

import sys
from html import escape
from importlib.metadata import version
from io import StringIO

import pysubs2
import webvtt

TEXT = "Q&A: a < b > c"
ESCAPED = escape(TEXT, quote=False)
START, END = "00:00:00.000", "00:00:01.000"

valid = f"WEBVTT\n\n{START} --> {END}\n{ESCAPED}\n"
written = StringIO()
webvtt.WebVTT(captions=[webvtt.Caption(START, END, TEXT)]).write(written)
seen = {
    "read by webvtt-py": webvtt.from_string(valid)[0].text,
    "read by pysubs2": pysubs2.SSAFile.from_string(valid)[0].plaintext,
    "written and read by webvtt-py": webvtt.from_string(written.getvalue())[0].text,
}
print(f"webvtt-py {version('webvtt-py')}, pysubs2 {version('pysubs2')}: {TEXT}")
for how, text in seen.items():
    print(f"{how}: {text}")
as_stated = list(seen.values()) == [ESCAPED, ESCAPED, "Q&A: a  c"]
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
