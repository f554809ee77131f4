"""Audio files as people have them, made in code."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import soundfile

RATE = 16000


def tone(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    """(S,) of a tone whose loudness grows, so that no part is like another."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.1 + 0.4 * time / seconds) * np.sin(2 * np.pi * hertz * time)


def encoded(samples: np.ndarray, rate: int = RATE, **form: Any) -> bytes:
    """The bytes of a file; `form` as soundfile.write takes it."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **form)
    return file.getvalue()


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    """16 bits, with "data" at byte 36."""
    data = encoded(samples, rate, format="WAV", subtype="PCM_16")
    assert data[36:40] == b"data"
    return data


def with_sizes(data: bytes, riff: int, sound: int) -> bytes:
    """A `wav` whose header states other sizes."""
    return data[:4] + struct.pack("<I", riff) + data[8:40] + struct.pack("<I", sound) + data[44:]


def with_chunk(data: bytes) -> bytes:
    """A `wav` with another chunk behind its sound."""
    chunk = b"LIST" + struct.pack("<I", 4) + b"INFO"
    return data[:4] + struct.pack("<I", len(data) + len(chunk) - 8) + data[8:] + chunk


def flac_without_length(data: bytes) -> bytes:
    """As `flac - | cat` writes it."""
    return data[:21] + bytes([data[21] & 0xF0]) + b"\0" * 4 + data[26:]


def mp3(seconds: float = 2.0, rate: int = RATE, channels: int = 1, quiet: slice = slice(8000, 24000)) -> bytes:
    """Noise, but for the samples of `quiet`: a bit rate that varies."""
    noise = 0.3 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    noise[quiet] = 0
    return encoded(noise, rate, format="MP3")
