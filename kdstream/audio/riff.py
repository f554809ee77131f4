"""The chunks of a WAV file, and sound that its header does not count."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

TAGS = (b"ID3", b"TAG", b"APETAGEX")  # that some programs append without a chunk
LOOKED_AT = 1 << 20  # bytes behind the chunks


class SoundChunk(NamedTuple):
    """The "data" chunk.

    place: of its first byte.
    stated: its bytes, by its header.
    uncounted: bytes behind it that are neither a chunk, a tag nor zeros: sound that the header does not count, as that
      of a recorder that was killed, or of a file beyond 4 GB.
    """

    place: int
    stated: int
    uncounted: int


def find_sound_chunk(path: Path) -> SoundChunk | None:
    """None where there is no such chunk."""
    with open(path, "rb") as file:
        size, place = os.fstat(file.fileno()).st_size, 12
        while (chunk := _read_header(file, place)) and chunk[0] != b"data":
            place = _next(place, chunk[1])
        if chunk is None:
            return None
        sound, place = place + 8, _next(place, chunk[1])
        while (behind := _read_header(file, place)) and _next(
            place, behind[1]
        ) <= size + 1:  # the last may lack its pad
            place = _next(place, behind[1])
        file.seek(min(place, size))
        rest = file.read(LOOKED_AT)
    uncounted = 0 if rest.startswith(TAGS) or not rest.strip(b"\0") else size - place
    return SoundChunk(sound, chunk[1], uncounted)


def _read_header(file: BinaryIO, place: int) -> tuple[bytes, int] | None:
    """Name and size of the chunk at `place`; None where none begins."""
    file.seek(place)
    header = file.read(8)
    if len(header) < 8 or not all(32 <= byte < 127 for byte in header[:4]):
        return None
    return header[:4], int.from_bytes(header[4:], "little")


def _next(place: int, size: int) -> int:
    return place + 8 + size + size % 2
