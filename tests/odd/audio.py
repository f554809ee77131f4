"""Odd audio files, heard by transcribe.py."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from odd import accounts
from odd.harness import Case
from odd.world import World

RATES = (4000, 8000, 11025, 22050, 32000, 44100, 48000, 96000)
FORMATS = {
    "a.flac": {}, "a.ogg": {}, "a.aiff": {}, "a.au": {}, "a.mp3": {}, "a.w64": {}, "a.rf64": {"format": "RF64"},
    "a.caf": {}, "a.opus": {"format": "OGG", "subtype": "OPUS"}, "A.WAV": {"format": "WAV"}, "a.wav": {},
}  # fmt: skip
DATA_AT = 44  # where the samples of a plain wav begin


def odd_audio(world: World, rng: random.Random, folder: Path) -> Case:
    """One odd file beside a sound one, as files or in their directory."""
    samples, _ = soundfile.read(world.audio(rng.randrange(16)), dtype="float32")
    maker = rng.choice(MAKERS)
    audio = folder / "audio"
    audio.mkdir()
    path, seconds, must = maker(samples, rng, audio)
    sound = audio / "sound.wav"
    soundfile.write(sound, samples, 16000)
    lengths: dict[Path, float | None] = {sound: len(samples) / 16000, path: seconds}
    paths = (
        [audio]
        if must != "refuse" and path.suffix.lower() in (".wav", ".flac", ".mp3") and rng.random() < 0.3
        else [path, sound]
    )
    model = rng.choice(["student", "teacher"])
    argv = ["transcribe", "--exp-dir", str(world.folder / model), "--avg", "1", "--json", "1", *map(str, paths)]

    def check(outcome: Any) -> str:
        fault = accounts.transcribed(lengths, outcome)
        refused = path.name in outcome.stderr
        return fault or ("was not refused" if must == "refuse" and not refused else "")

    what = (maker.__doc__ or "").splitlines()[0].rstrip(".")
    return Case("audio", f"{what}, {model}", argv, [path.name], check, "handle" if must == "handle" else "", 3)


Made = tuple[Path, float | None, str]  # the file, its length in seconds where it is known, and what must become of it


def packed(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """A file of another format."""
    name = rng.choice(list(FORMATS))
    path = folder / name
    rate = 48000 if name == "a.opus" else 16000
    soundfile.write(path, samples if rate == 16000 else np.repeat(samples, 3), rate, **FORMATS[name])
    return path, None if name in ("a.mp3", "a.opus", "a.ogg") else len(samples) / 16000, "handle"


def of_another_rate(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """A file of another rate, with one to six channels."""
    rate, channels = rng.choice(RATES), rng.choice([1, 2, 6])
    path = folder / "rate.wav"
    soundfile.write(path, np.stack([samples] * channels, 1), rate)
    seconds = len(samples) / rate
    return path, seconds, "handle" if seconds > 0.2 else ""


def of_another_width(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """A file of other samples."""
    subtype = rng.choice(["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"])
    path = folder / "width.wav"
    soundfile.write(path, samples, 16000, subtype=subtype)
    return path, None if "ADPCM" in subtype else len(samples) / 16000, "handle"


def loud(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """Float samples on the scale of integers."""
    path = folder / "loud.wav"
    soundfile.write(path, samples * rng.choice([32767.0, 2.0**31, 255.0]), 16000, subtype="FLOAT")
    return path, len(samples) / 16000, "refuse"


def not_finite(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """NaN or infinity among the samples."""
    path = folder / "nan.wav"
    samples = samples.copy()
    samples[rng.randrange(len(samples))] = rng.choice([np.nan, np.inf, -np.inf])
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    return path, len(samples) / 16000, "refuse"


def opposite_phase(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """Two channels, one of them upside down."""
    path = folder / "opposite.wav"
    soundfile.write(path, np.stack([samples, -samples], 1), 16000)
    return path, len(samples) / 16000, ""


def short(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """A few samples."""
    path = folder / "short.wav"
    count = rng.choice([0, 1, 2, 79, 159, 160, 400, 1000])
    soundfile.write(path, samples[:count], 16000)
    return path, None if count >= 160 else 0.0, "" if count >= 160 else "refuse"


def silent(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """Digital silence, or a constant."""
    path = folder / "silent.wav"
    soundfile.write(path, 0 * samples + rng.choice([0.0, 0.5, -1.0]), 16000)
    return path, len(samples) / 16000, "handle"


def header(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """A wav whose header says another size, as pipes and killed recorders leave it."""
    path = folder / "header.wav"
    soundfile.write(path, samples, 16000, subtype="PCM_16")
    raw = bytearray(path.read_bytes())
    raw[4:8], raw[40:44] = rng.choice(
        [
            (b"\xff" * 4, b"\xff" * 4),
            (b"\0" * 4, b"\0" * 4),
            (struct.pack("<I", 0x7FFFF024), struct.pack("<I", 0x7FFFF000)),
        ]
    )
    path.write_bytes(raw)
    return path, len(samples) / 16000, ""


def cut_short(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """The beginning of a file."""
    name = rng.choice(["cut.wav", "cut.flac", "cut.ogg", "cut.mp3", "cut.aiff"])
    path = folder / name
    soundfile.write(path, samples, 16000)
    raw = path.read_bytes()
    path.write_bytes(raw[: rng.randrange(len(raw))])
    return path, None, ""


def flipped(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """Some bytes of the header, or of the whole file, are others."""
    name = rng.choice(["flip.wav", "flip.flac", "flip.ogg", "flip.mp3", "flip.aiff", "flip.au"])
    path = folder / name
    soundfile.write(path, samples, 16000)
    raw = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 6)):
        raw[rng.randrange(rng.choice([DATA_AT, len(raw)]))] = rng.randrange(256)
    path.write_bytes(raw)
    return path, None, ""


def no_audio(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """A file that is no audio."""
    path = folder / rng.choice(["text.wav", "text.flac", "text.mp3", "text.m4a", "text.ogg", "text.txt"])
    content = rng.choice(
        [b"", b"no audio\n", rng.randbytes(3000), b"RIFF", b"fLaC", b"OggS" + bytes(40), b"ID3\3" + bytes(9)]
    )
    path.write_bytes(content)
    return path, 0.0, "refuse"


def another_box(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """A format that cannot be read: m4a, webm, amr."""
    name, content = rng.choice(
        [
            ("a.m4a", b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom" + bytes(2000)),
            ("a.webm", b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01" + bytes(2000)),
            ("a.amr", b"#!AMR\n" + bytes(2000)),
            ("a.wma", bytes.fromhex("3026b2758e66cf11") + bytes(2000)),
        ]
    )
    path = folder / name
    path.write_bytes(content)
    return path, 0.0, "refuse"


def joined(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """Two mp3 files, one after the other."""
    path = folder / "joined.mp3"
    samples = np.tile(samples, 4)
    soundfile.write(path, samples, 16000)
    path.write_bytes(2 * path.read_bytes())
    return path, None, ""


def unknown_length(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """A flac whose header lacks its length."""
    path = folder / "stream.flac"
    soundfile.write(path, samples, 16000)
    raw = bytearray(path.read_bytes())
    raw[21] &= 0xF0
    raw[22:26] = b"\0" * 4
    path.write_bytes(raw)
    return path, len(samples) / 16000, ""


def odd_name(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """An odd name."""
    name = rng.choice(
        ["a b.wav", "a'b\".wav", "-x.wav", "é.wav", "日本.wav", "a\nb.wav", "a\tb.wav", ".wav", "a.wav.wav"]
    )
    path = folder / name
    soundfile.write(path, samples, 16000, format="WAV")
    return path, len(samples) / 16000, "handle"


def directory(samples: np.ndarray, rng: random.Random, folder: Path) -> Made:
    """A directory or a link to nothing in place of a file."""
    path = folder / "odd.wav"
    if rng.random() < 0.5:
        path.symlink_to(folder / "gone.wav")
    else:
        path.mkdir()
    return path, 0.0, "refuse"


MAKERS: list[Callable[[np.ndarray, random.Random, Path], Made]] = [
    packed, of_another_rate, of_another_width, loud, not_finite, opposite_phase, short, silent, header, cut_short,
    flipped, flipped, no_audio, another_box, joined, unknown_length, odd_name, directory,
]  # fmt: skip
