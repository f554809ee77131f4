#!/usr/bin/env bash
# FFmpeg 9.0.2, of imageio-ffmpeg 0.8.1: filters that clean speech delay it by up to half a second, and cut its end off.
#
# Expected: ffmpeg -af FILTER changes how a recording sounds, not when a word is said; where a filter looks ahead, its
#   delay is taken off.  afwtdn, a filter against noise, and speechnorm do so.
# Happens: as many samples come out as go in, but speech is later in them, and the last of it is lost.  afftdn, which
#   takes noise off, delays by 25 ms at any rate.  dialoguenhance does by 1536 samples: 192 ms at 8000 Hz, 96 ms at
#   16,000 Hz and 32 ms at 48,000 Hz; afftfilt by 3072, superequalizer by 4095, and adrc by 192.  So a last word of half
#   a second at 8000 Hz is wholly lost in superequalizer.  Times of words and segments no longer fit, and another rate
#   has another delay.  Nothing of it is logged, and "ffmpeg -h filter=afftdn" has no word and no option on it.
# So: pad before and trim after: -af apad=pad_dur=0.025,afftdn,atrim=start=0.025.
#
#   bash findings/ffmpeg-delays.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   FFmpeg n9.0.2-17-g2a571b6068-20260930, at 8000, 16000, 48000 Hz
#   anull: 0, 0, 0 samples late; 4, 4, 4 of 4 tones
#   afwtdn: 0, 0, 0 samples late; 4, 4, 4 of 4 tones
#   speechnorm: 0, 0, 0 samples late; 4, 4, 4 of 4 tones
#   afftdn: 200, 400, 1200 samples late; 4, 4, 4 of 4 tones
#   adrc: 192, 192, 192 samples late; 4, 4, 4 of 4 tones
#   dialoguenhance: 1536, 1536, 1536 samples late; 4, 4, 4 of 4 tones
#   afftfilt: 3072, 3072, 3072 samples late; 4, 4, 4 of 4 tones
#   superequalizer: 4095, 4095, 4095 samples late; 3, 4, 4 of 4 tones
#   apad=pad_dur=0.025,afftdn,atrim=start=0.025: 0, 0, 0 samples late; 4, 4, 4 of 4 tones
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check imageio-ffmpeg==0.8.1 soundfile==0.14.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Rising tones of half a second, the last of them up to the end, through filters at three sampling rates."""

import subprocess
import sys

import imageio_ffmpeg
import numpy as np
import soundfile as sf

RATES = 8000, 16000, 48000
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def tones(samples, rate):
    """How often the level rises."""
    length = rate // 200
    level = np.sqrt(np.convolve(samples**2, np.ones(length) / length, "same"))
    return int(np.count_nonzero(np.diff((level > 0.5 * np.percentile(level, 90)).astype(int), prepend=0) == 1))


def through(chain, rate):
    """How many samples are missing, how many the rest is late by, how many tones there are, and what is logged."""
    times = np.arange(4 * rate) / rate
    samples = np.where(times % 1 >= 0.5, 0.3 * np.sin(2 * np.pi * (400 + 300 * times) * times), 0)
    sf.write("in.wav", samples, rate, subtype="PCM_16")
    command = f"-y -loglevel error -i in.wav -af {chain} -ac 1 -ar {rate} out.wav"
    logged = subprocess.run([FFMPEG, *command.split()], check=True, stderr=subprocess.PIPE).stderr
    found, _ = sf.read("out.wav")
    alike = np.fft.irfft(np.fft.rfft(found, 8 * rate) * np.fft.rfft(samples, 8 * rate).conj())
    return len(samples) - len(found), int(np.argmax(alike)), tones(found, rate), logged


print(f"FFmpeg {imageio_ffmpeg.get_ffmpeg_version()}, at {', '.join(map(str, RATES))} Hz")
as_stated = True
for chain, *stated in (
    ("anull", 0, 0, 0),
    ("afwtdn", 0, 0, 0),
    ("speechnorm", 0, 0, 0),
    ("afftdn", 200, 400, 1200),
    ("adrc", 192, 192, 192),
    ("dialoguenhance", 1536, 1536, 1536),
    ("afftfilt", 3072, 3072, 3072),
    ("superequalizer", 4095, 4095, 4095),
    ("apad=pad_dur=0.025,afftdn,atrim=start=0.025", 0, 0, 0),
):
    missing, late, heard, logged = zip(*(through(chain, rate) for rate in RATES), strict=True)
    print(f"{chain}: {', '.join(map(str, late))} samples late; {', '.join(map(str, heard))} of 4 tones")
    lost = chain == "superequalizer"
    as_stated &= late == tuple(stated) and heard == (4 - lost, 4, 4) and missing == (0, 0, 0) and not any(logged)
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
