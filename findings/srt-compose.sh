#!/usr/bin/env bash
# srt 3.5.3: compose leaves out words that begin and end at one time.
#
# Expected: compose(subtitles) writes a block for each subtitle; its help says so.
# Happens: with reindex=True, the default, a subtitle whose end is not after its start is dropped, and the others are
#   numbered anew, so no gap shows.  It is a line of the log at level INFO, which Python does not print by default.
#   A transducer or an aligner can put two words on one frame of 40 ms.  Where each word's subtitle ends as the next one
#   begins, the first of the two is lost: "to be or not" becomes "to or not".
# So: give every word an end after its start, or compose(..., reindex=False), and count the blocks.
#
#   bash findings/srt-compose.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   srt 3.5.3: to be or not
#   default: to or not; numbers [1, 2, 3]
#   reindex=False: to be or not; numbers [1, 2, 3, 4]
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check srt==3.5.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""Four words with the times of their frames, as subtitles, and what is left of them."""

import sys
from datetime import timedelta
from importlib.metadata import version

import srt

WORDS = "to", "be", "or", "not"
FRAMES = 10, 18, 18, 25, 40  # of 40 ms: where each word begins, and where the last one ends


def composed(**options):
    """The words and numbers in the text that compose gives."""
    times = [timedelta(milliseconds=40 * frame) for frame in FRAMES]
    subtitles = [srt.Subtitle(i + 1, times[i], times[i + 1], word) for i, word in enumerate(WORDS)]
    read = list(srt.parse(srt.compose(subtitles, **options)))
    return [each.content for each in read], [each.index for each in read]


print(f"srt {version('srt')}: {' '.join(WORDS)}")
default, as_given = composed(), composed(reindex=False)
for what, (words, numbers) in ("default", default), ("reindex=False", as_given):
    print(f"{what}: {' '.join(words)}; numbers {numbers}")
as_stated = default == (["to", "or", "not"], [1, 2, 3]) and as_given == (list(WORDS), [1, 2, 3, 4])
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
