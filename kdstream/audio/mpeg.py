"""How much sound an MP3 file holds, counted frame by frame.

An MP3 file states its length, if at all, in a first frame that holds no sound (Xing's, Info's or VBRI's).  Without it
libsndfile takes the bit rate of the first frame for that of all, and stops too early where the rate varies; in files
that were joined it stops where the first one ends.  So frames are counted here, and `mended` states their number.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# kbit/s of layers 1 to 3, by the header's index; MPEG-2 and 2.5 share a table
BIT_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by the version's bits
SYNC = re.compile(rb"\xff[\xe2-\xff]")
LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")


class Frame(NamedTuple):
    """What a frame's header says.  size: bytes of the frame.  samples: of each channel."""

    sample_rate: int
    channels: int
    samples: int
    size: int
    side_info: int  # bytes between the header and the sound, where Xing's tag stands


class Count(NamedTuple):
    """The frames of a file.

    kinds: (sample rate, channels) of all frames with sound; more than one in files that were joined.
    frames: with sound.
    stated: the number of frames that the first length tag gives; None where there is no tag.
    samples: of each channel in all frames with sound, the coder's delay included.
    ranges: (begin, end) bytes of runs of frames with sound.
    """

    kinds: set[tuple[int, int]]
    frames: int
    stated: int | None
    samples: int
    ranges: list[tuple[int, int]]

    @property
    def samples_of_frame(self) -> float:
        """On average."""
        return self.samples / max(1, self.frames)

    @property
    def seconds_of_frame(self) -> float:
        return self.samples_of_frame / max([1, *(rate for rate, _ in self.kinds)])


def parse_frame(data: bytes, place: int) -> Frame | None:
    """The frame whose header stands at `place`; None where there is no header, or one of "free" bit rate."""
    header = data[place : place + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE2:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    rate_index, speed_index = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or rate_index in (0, 15) or speed_index == 3:
        return None
    rate = 1000 * BIT_RATES[1 if version == 3 else 2, layer][rate_index - 1]
    sample_rate = SAMPLE_RATES[version][speed_index]
    padding, mono = header[2] >> 1 & 1, header[3] >> 6 == 3
    if layer == 1:
        samples, size = 384, (12 * rate // sample_rate + padding) * 4
    else:
        samples = 576 if layer == 3 and version != 3 else 1152
        size = samples // 8 * rate // sample_rate + padding
    side_info = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return Frame(sample_rate, 1 if mono else 2, samples, size, side_info)


def stated_frames(data: bytes, place: int, frame: Frame) -> int | None:
    """The number of frames that a length tag in this frame gives; 0 for a tag without number; None without a tag."""
    body = data[place + 4 : place + frame.size]
    if body[32:36] == b"VBRI":
        return int.from_bytes(body[46:50], "big")
    tag = body[frame.side_info :]
    if tag[:4] not in LENGTH_TAGS:
        return None
    return int.from_bytes(tag[8:12], "big") if tag[7:8] and tag[7] & 1 else 0


def count_frames(data: bytes) -> Count:
    """Goes through the frames of a file; what is no frame (ID3 and APE tags, rubbish) is passed over."""
    kinds: set[tuple[int, int]] = set()
    ranges: list[tuple[int, int]] = []
    frames, samples, stated, place = 0, 0, None, 0
    while place + 4 <= len(data):
        if data[place : place + 3] == b"ID3" and len(data) >= place + 10:
            size = data[place + 6 : place + 10]
            place += 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
            continue
        frame = parse_frame(data, place)
        in_step = bool(ranges) and ranges[-1][1] == place
        # after rubbish, and at the start, chance can look like a header: two in a row do not
        if frame is None or not (in_step or _follows(data, place + frame.size)):
            found = SYNC.search(data, place + 1)
            tag = data.find(b"ID3", place + 1, found.start() if found else len(data))
            place = tag if tag >= 0 else found.start() if found else len(data)
            continue
        number = stated_frames(data, place, frame)
        if number is not None:
            stated = number or None if frames == 0 and stated is None else stated
            ranges.append((place + frame.size, place + frame.size))
        elif place + frame.size <= len(data):
            kinds.add((frame.sample_rate, frame.channels))
            frames, samples = frames + 1, samples + frame.samples
            if in_step:
                ranges[-1] = (ranges[-1][0], place + frame.size)
            else:
                ranges.append((place, place + frame.size))
        place += frame.size
    return Count(kinds, frames, stated, samples, ranges)


def _follows(data: bytes, place: int) -> bool:
    return place >= len(data) or parse_frame(data, place) is not None or data[place : place + 3] in (b"ID3", b"TAG")


def mended(data: bytes, count: Count) -> bytes:
    """The frames of `count` alone, behind a tag that gives their number: libsndfile reads such a file to its end."""
    first = next(begin for begin, end in count.ranges if end > begin)
    frame = parse_frame(data, first)
    assert frame is not None
    header = bytearray(data[first : first + 4])
    header[1] |= 1  # no checksum
    version_1 = header[1] >> 3 & 3 == 3
    header[2] = (0x50 if version_1 else 0x80) | (header[2] & 0x0C)  # 64 kbit/s, no padding: 96 bytes or more
    made = parse_frame(bytes(header), 0)
    assert made is not None
    tag = bytes(made.side_info) + b"Xing" + (1).to_bytes(4, "big") + count.frames.to_bytes(4, "big")
    return (bytes(header) + tag).ljust(made.size, b"\0") + b"".join(data[begin:end] for begin, end in count.ranges)
