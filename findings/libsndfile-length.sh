#!/usr/bin/env bash
# soundfile 0.14.0 with libsndfile 1.2.2: files whose length is written nowhere are heard in part, without an error.
#
# Expected: sf.read gives all samples of a valid file, or raises.
# Happens: an MP3 of a varying bit rate says its length in the tag of its first frame.  The tag is optional; recorders and
#   stream dumps leave it out.  libsndfile then guesses the length from the size of the file and the bit rate of the first
#   frame, and stops there: 4.9 of 20.1 s where quiet speech comes first.  A chained Ogg file (RFC 3533, section 4: one
#   logical stream after another, as web radio and `cat` make it) is heard to the end of its first stream.
#   Nothing is raised or warned of, and sf.info states the same wrong length.
# So: count an MP3's frames by their headers, and look for a second stream in an Ogg file, before the samples are trusted.
#
#   bash findings/libsndfile-length.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   soundfile 0.14.0, libsndfile 1.2.2
#   mp3 with its tag: 20.00 s read of 20.00 s
#   mp3 without a tag: 4.90 s read of 20.09 s; info says 4.90 s
#   two ogg streams, one after the other: 3.00 s read of 6.00 s; info says 3.00 s
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.6 cffi==2.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""A quiet tone and then noise, as MP3 and as Ogg; lengths by the formats' own headers, and as soundfile reads them."""

import sys
from pathlib import Path

import numpy as np
import soundfile as sf

RATE, SAMPLES_OF_A_FRAME = 16000, 576
KILOBITS = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]  # of MPEG-2, layer III, by the header's field


def frame_sizes(mp3):
    """Bytes of each frame of an MPEG-2 layer III file at 16 kHz."""
    sizes, place = [], 0
    while place < len(mp3):
        header = int.from_bytes(mp3[place : place + 4], "big")
        assert header >> 21 == 0x7FF, "not at a frame"
        sizes.append(72 * 1000 * KILOBITS[header >> 12 & 15] // RATE + (header >> 9 & 1))
        place += sizes[-1]
    return sizes


def seconds(path):
    """As read, and as stated."""
    return len(sf.read(path)[0]) / RATE, sf.info(path).frames / RATE


print(f"soundfile {sf.__version__}, libsndfile {sf.__libsndfile_version__}")
tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(10 * RATE) / RATE)
noise = 0.3 * np.random.default_rng(0).standard_normal(10 * RATE)
sf.write("tag.mp3", np.concatenate([tone, noise]).astype(np.float32), RATE)
mp3 = Path("tag.mp3").read_bytes()
sizes = frame_sizes(mp3)
assert b"Xing" in mp3[: sizes[0]], "the first frame holds the tag and no sound"
Path("no-tag.mp3").write_bytes(mp3[sizes[0] :])
streams = []
for name in "one.ogg", "other.ogg":
    sf.write(name, tone[: 3 * RATE], RATE, format="OGG", subtype="VORBIS")
    streams.append(Path(name).read_bytes())
assert streams[0][14:18] != streams[1][14:18], "each stream of a chain has a serial number of its own"
Path("two.ogg").write_bytes(streams[0] + streams[1])

with_tag, _ = seconds("tag.mp3")
print(f"mp3 with its tag: {with_tag:.2f} s read of 20.00 s")
holds = (len(sizes) - 1) * SAMPLES_OF_A_FRAME / RATE
read, stated = seconds("no-tag.mp3")
print(f"mp3 without a tag: {read:.2f} s read of {holds:.2f} s; info says {stated:.2f} s")
of_two, stated_of_two = seconds("two.ogg")
print(f"two ogg streams, one after the other: {of_two:.2f} s read of 6.00 s; info says {stated_of_two:.2f} s")
as_stated = with_tag == 20 and read == stated and read < holds / 2 and of_two == stated_of_two == 3
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
