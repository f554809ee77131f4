#!/usr/bin/env bash
# lhotse 1.33.0, ffmpeg 7 and newer: in a Kaldi data directory of lhotse no channel of a stereo recording can be read.
#
# Expected: export_to_kaldi writes a line of wav.scp for each channel, and each line gives that channel's samples.
# Happens: the lines take a channel with ffmpeg's -map_channel.  ffmpeg 4.2 knows it.  ffmpeg 7.0 and 9.0 refuse it and
#   write no byte, so Kaldi's tools get an empty wav, and lhotse itself cannot read what it exported.  The export says
#   nothing: it runs no line.  A mono wav has a plain path, and is not concerned.
# So: after the export replace "-map_channel 0.0.N" by "-af pan=mono|c0=cN", which all three know.
#
#   bash findings/lhotse-kaldi-channels.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   lhotse 1.33.0
#   ffmpeg 4.2.2, channel 0: 16000 samples of 0.25; with pan: 16000 samples of 0.25
#   ffmpeg 4.2.2, channel 1: 16000 samples of 0.50; with pan: 16000 samples of 0.50
#   ffmpeg 4.2.2, channel 1 read by lhotse: 0.50
#   ffmpeg 7.0.2, channel 0: 0 bytes, Unrecognized option 'map_channel'.; with pan: 16000 samples of 0.25
#   ffmpeg 7.0.2, channel 1: 0 bytes, Unrecognized option 'map_channel'.; with pan: 16000 samples of 0.50
#   ffmpeg 7.0.2, channel 1 read by lhotse: AudioLoadingError
#   ffmpeg 9.0.2, channel 0: 0 bytes, Unrecognized option 'map_channel'.; with pan: 16000 samples of 0.25
#   ffmpeg 9.0.2, channel 1: 0 bytes, Unrecognized option 'map_channel'.; with pan: 16000 samples of 0.50
#   ffmpeg 9.0.2, channel 1 read by lhotse: AudioLoadingError
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet --disable-pip-version-check install)
"${pip[@]}" lhotse==1.33.0 torch==2.14.1 numpy==2.4.6 soundfile==0.14.0 urllib3==2.8.0
for version in 0.4.9 0.7.0 0.8.1; do # three packages of one program
  "${pip[@]}" --no-deps --target "$folder/ffmpeg-$version" imageio-ffmpeg==$version
done
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""A second of stereo, whose channels are constants, exported and read back."""

import io
import os
import subprocess
import sys
from pathlib import Path

import lhotse
import numpy as np
import soundfile as sf
from lhotse import MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.kaldi import export_to_kaldi, load_kaldi_data_dir

RATE, LEVELS = 16000, (0.25, 0.5)
INSTEAD = "-af 'pan=mono|c0=c{}'"

sf.write("call.wav", np.tile(np.float32(LEVELS), (RATE, 1)), RATE)
recordings = RecordingSet.from_recordings([Recording.from_file("call.wav")])
said = [SupervisionSegment(f"said-{n}", "call", 0, 1, channel=n, text="YES", speaker="A") for n in (0, 1)]
export_to_kaldi(recordings, SupervisionSet.from_segments(said), "kaldi")
lines = dict(line.split(" ", 1) for line in Path("kaldi/wav.scp").read_text().splitlines())


def heard(command):
    """What the line's command writes: its length and its level."""
    found = subprocess.run(command.rstrip("| "), shell=True, capture_output=True)
    if not found.stdout:
        return f"0 bytes, {found.stderr.decode().splitlines()[0]}"
    samples, _ = sf.read(io.BytesIO(found.stdout))
    return f"{len(samples)} samples of {samples.mean():.2f}"


def read_back():
    recordings, _, _ = load_kaldi_data_dir("kaldi", RATE)
    try:
        return f"{recordings['call_1'].load_audio().mean():.2f}"
    except Exception as error:
        return type(error).__name__


print(f"lhotse {lhotse.__version__}")
as_stated, search = True, os.environ["PATH"]
for package in ("0.4.9", "0.7.0", "0.8.1"):
    (program,) = Path(f"ffmpeg-{package}/imageio_ffmpeg/binaries").glob("ffmpeg-*")
    program.chmod(0o755)
    links = Path(f"bin-{package}").resolve()
    links.mkdir()
    (links / "ffmpeg").write_text(f'#!/bin/sh\nexec {program.resolve()} -loglevel error "$@"\n')  # it says much
    (links / "ffmpeg").chmod(0o755)
    os.environ["PATH"] = f"{links}:{search}"
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True).stdout.split()[2]
    version = version.split("-")[0].lstrip("n")
    knows = version.startswith("4")
    for number, level in enumerate(LEVELS):
        line = lines[f"call_{number}"]
        right = f"{RATE} samples of {level:.2f}"
        as_it_is = heard(line)
        other = heard(line.replace(f"-map_channel 0.0.{number}", INSTEAD.format(number)))
        print(f"ffmpeg {version}, channel {number}: {as_it_is}; with pan: {other}")
        as_stated &= (as_it_is == right) == knows and (knows or "Unrecognized option" in as_it_is) and other == right
    back = read_back()
    print(f"ffmpeg {version}, channel 1 read by lhotse: {back}")
    as_stated &= (back == "0.50") == knows
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
