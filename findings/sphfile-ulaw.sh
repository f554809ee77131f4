#!/usr/bin/env bash
# sphfile 1.0.3: telephone speech in µ-law becomes noise, and some times swap the channels of a conversation.
#
# Expected: SPHFile(name).write_wav(wav) gives the speech of a NIST SPHERE file, as sph2pipe does: Switchboard and
#   CALLHOME are two channels of µ-law, "sample_coding -s4 ulaw".  With start and stop it gives that part of both.
# Happens: sample_coding is read and not used.  The bytes of µ-law go into the wav as 8-bit linear samples: a channel
#   in which nobody speaks is at 0.99 of full scale, and all at -10 dB of signal to noise; soundfile has 36 dB.  A-law
#   fares alike.  The start of a part is rounded to a sample of one channel, not of both: where seconds times rate times
#   channels is odd, the left channel of the part is the right one of the file.  These are half of all times in
#   microseconds, and 1 % of those in hundredths and thousandths (2.01, 4.02, 4.06), which floats put just below a
#   sample.  Nothing is raised or warned of.
# So: read SPHERE files with soundfile, or sph2pipe where they are compressed.
#
#   bash findings/sphfile-ulaw.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   sphfile 1.0.3, soundfile 0.14.0: left and right at 0.35 and 0.00
#   pcm: 0.35 and 0.00, 86 dB; soundfile 86 dB
#   ulaw: 0.58 and 0.99, -10 dB; soundfile 36 dB
#   alaw: 0.55 and 0.66, -6 dB; soundfile 39 dB
#   from 2 s on: 0.35 and 0.00
#   from 2.01 s on: 0.00 and 0.35
#   from 2.00012 s on: 0.00 and 0.35
#   times with a unit of 1/100 s: 1 % swap the channels
#   times with a unit of 1/1000 s: 1 % swap the channels
#   times with a unit of 1/1000000 s: 50 % swap the channels
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sphfile==1.0.3 soundfile==0.14.0 numpy==1.26.4
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""A conversation in which the right channel is silent, in three codings; and parts of it."""

import io
import sys
from importlib.metadata import version

import numpy as np
import soundfile as sf
from sphfile import SPHFile

RATE, SECONDS = 8000, 10


def write(name, samples, subtype, coding, size, order):
    """A SPHERE file with the header of a corpus of telephone speech."""
    raw = io.BytesIO()
    sf.write(raw, samples, RATE, format="RAW", subtype=subtype, endian="LITTLE")
    fields = (
        "NIST_1A\n   1024",
        f"sample_count -i {len(samples)}",
        f"sample_rate -i {RATE}",
        f"channel_count -i {samples.shape[1]}",
        f"sample_n_bytes -i {size}",
        f"sample_byte_format -s{len(order)} {order}",
        f"sample_coding -s{len(coding)} {coding}",
        "end_head\n",
    )
    with open(name, "wb") as file:
        file.write("\n".join(fields).encode().ljust(1024) + raw.getvalue())


def snr(found):
    return 10 * np.log10(np.sum(talk**2) / np.sum((found - talk) ** 2))


def level(channel):
    return np.sqrt(np.mean(channel**2))


times = np.arange(RATE * SECONDS) / RATE
talk = np.stack([0.5 * np.sin(2 * np.pi * 300 * times), 0 * times], axis=1)
print(f"sphfile {version('sphfile')}, soundfile {sf.__version__}: left and right at 0.35 and 0.00")
as_stated = True
for subtype, coding, size, order, stated in (
    ("PCM_16", "pcm", 2, "01", (0.35, 0.0, 86)),
    ("ULAW", "ulaw", 1, "1", (0.58, 0.99, -10)),
    ("ALAW", "alaw", 1, "1", (0.55, 0.66, -6)),
):
    write(f"{coding}.sph", talk, subtype, coding, size, order)
    SPHFile(f"{coding}.sph").write_wav(f"{coding}.wav")
    found, _ = sf.read(f"{coding}.wav")
    right, _ = sf.read(f"{coding}.sph")
    left_and_right = level(found[:, 0]), level(found[:, 1])
    print(f"{coding}: {left_and_right[0]:.2f} and {left_and_right[1]:.2f}, {snr(found):.0f} dB;", end=" ")
    print(f"soundfile {snr(right):.0f} dB")
    as_stated &= np.allclose(left_and_right, stated[:2], atol=0.01) and abs(snr(found) - stated[2]) < 1
    as_stated &= snr(right) > 35
file = SPHFile("pcm.sph")
for start, stated in (2.0, (0.35, 0.0)), (2.01, (0.0, 0.35)), (2.000123, (0.0, 0.35)):
    file.write_wav("part.wav", start, start + 1)
    found, _ = sf.read("part.wav")
    print(f"from {start:g} s on: {level(found[:, 0]):.2f} and {level(found[:, 1]):.2f}")
    as_stated &= np.allclose((level(found[:, 0]), level(found[:, 1])), stated, atol=0.01)
for unit, stated in (100, 1), (1000, 1), (1_000_000, 50):
    numbers = range(0, 60 * unit, max(unit // 16000 * 7, 1))  # of a minute
    odd = 100 * np.mean([file.seconds_to_offset(number / unit) % 2 for number in numbers])
    print(f"times with a unit of 1/{unit} s: {odd:.0f} % swap the channels")
    as_stated &= abs(odd - stated) < 1
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
