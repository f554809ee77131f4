"""What a file is, by its first bytes, and what is wrong with it where libsndfile cannot read it to its end."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import soundfile

# Suffixes of the formats that libsndfile reads and people keep speech in, by its names of them
SUFFIXES_BY_FORMAT = {
    "AIFF": (".aiff", ".aif", ".aifc"),
    "AU": (".au", ".snd"),
    "CAF": (".caf",),
    "FLAC": (".flac",),
    "MP3": (".mp3", ".mp2"),
    "NIST": (".sph", ".nist"),
    "OGG": (".ogg", ".oga", ".opus"),
    "RF64": (".rf64",),
    "VOC": (".voc",),
    "W64": (".w64",),
    "WAV": (".wav", ".wave"),
}
SUFFIXES = tuple(
    suffix
    for name, suffixes in SUFFIXES_BY_FORMAT.items()
    if name in soundfile.available_formats()
    for suffix in suffixes
)
# Other suffixes of sound and film: such files are not read, and a folder that holds some is told so
OTHER_SUFFIXES = frozenset(
    [suffix for suffixes in SUFFIXES_BY_FORMAT.values() for suffix in suffixes if suffix not in SUFFIXES]
    + ".3gp .aac .ac3 .alac .amr .ape .asf .avi .dts .flv .m4a .m4b .m4v .mka .mkv .mov .mp4 .mpc .mpeg .mpg".split()
    + ".ra .ram .rm .shn .spx .tta .webm .wma .wmv .wv".split()
)
SOUND_ELSEWHERE = (  # begins of files with sound that libsndfile does not read
    (re.compile(rb"....ftyp", re.DOTALL), "MPEG-4 (m4a, mp4)"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "Matroska (webm, mkv)"),
    (re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), "Windows Media (wma)"),
    (re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), "AAC"),
    (re.compile(rb"#!AMR"), "AMR"),
    (re.compile(rb"RIFF....AVI ", re.DOTALL), "AVI"),
    (re.compile(rb"FLV\x01"), "Flash video"),
    (re.compile(rb"wvpk"), "WavPack"),
    (re.compile(rb"MAC "), "Monkey's Audio"),
    (re.compile(rb"\x0b\x77"), "AC-3"),
    (re.compile(rb"\.RMF"), "RealMedia"),
)
PACKED = (  # archives
    (re.compile(rb"PK\x03\x04"), "a zip archive"),
    (re.compile(rb"\x1f\x8b"), "a gzip archive"),
    (re.compile(rb".{257}ustar", re.DOTALL), "a tar archive"),
)
# How a file of a format begins: long enough that samples do not look like it by chance
BEGINNINGS = (
    re.compile(rb"RIFF....WAVE", re.DOTALL),
    re.compile(rb"RF64....WAVE", re.DOTALL),
    re.compile(rb"FORM....AIF[FC]", re.DOTALL),
    re.compile(rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"),  # W64
    re.compile(rb"\.snd\x00\x00......\x00\x00\x00.", re.DOTALL),  # AU, with two sizes between
    re.compile(rb"fLaC\x00\x00\x00\x22"),
    re.compile(rb"caff\x00\x01\x00\x00"),
)
OGG_PAGE = b"OggS\x00"
OGG_FIRST_PAGE, OGG_MIDDLE_PAGE = OGG_PAGE + b"\x02", OGG_PAGE + b"\x00"
SEARCHED = 1 << 24  # bytes that are searched at once
ENDLESS = 0x7F000000  # bytes; programs that write into a pipe state such a size, or more, as they know none

# libsndfile's log on a size that is larger than the file.  Sizes of the sound, and, of W64 and RF64, of all
STATED_SIZE = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)


def convert(path: Path, form: str = "") -> str:
    """The fix of whatever ffmpeg reads and we do not; `form` goes before the name."""
    made = f"{path.with_suffix('')}-converted.wav"
    return f"convert it: ffmpeg {form}-i {shlex.quote(str(path))} {shlex.quote(made)}"


def why_not_opened(path: Path, head: bytes, error: Exception) -> tuple[str, str]:
    """(problem, fix) of a file that libsndfile does not open.

    Args:
      head: its first bytes, some hundred.
      error: libsndfile's, or soundfile's.
    """
    if not head:
        return "an empty file", "restore it"
    if isinstance(error, TypeError):  # of soundfile, which goes by the suffix .raw
        return "raw samples, without a header", convert(path, "-f s16le -ar 16000 -ac 1, or what they are, ")
    for pattern, kind in SOUND_ELSEWHERE:
        if pattern.match(head):
            return f"{kind}, which libsndfile does not read", convert(path)
    for pattern, kind in PACKED:
        if pattern.match(head):
            return f"{kind}, not audio", "unpack it"
    if has_header(head):
        said = re.sub(r"^Error (?:opening .*?|in .*? file): *|^Error *: *|\.$", "", str(error), flags=re.DOTALL)
        return f"damaged, or in a coding that libsndfile does not read ({said})", f"restore it, or {convert(path)}"
    if is_text(head):
        return "text, not audio", "give an audio file"
    return "not audio, or of a kind that libsndfile does not read", convert(path)


def has_header(head: bytes) -> bool:
    """Whether a file of sound with a header begins so, and no raw samples."""
    return any(pattern.match(head) for pattern in BEGINNINGS) or head.startswith((OGG_PAGE, b"ID3", b"NIST_1A"))


def is_text(head: bytes) -> bool:
    """Whether these bytes are text in UTF-8, which may be cut within a character."""
    if any(byte < 32 and byte not in b"\t\n\r\f\v\x1b" for byte in head):
        return False
    try:
        head[: max(1, len(head) - 3)].decode()
    except UnicodeDecodeError as error:
        return error.start > 0 and error.start >= len(head) - 6
    return True


def is_joined(path: Path, head: bytes) -> bool:
    """Whether another file begins within the file, which libsndfile would not hear.  Not for MP3.

    Args:
      head: the first bytes of the file, in which an Ogg file begins all its streams.
    """
    if head.startswith(OGG_PAGE):
        return _finds(path, re.compile(re.escape(OGG_FIRST_PAGE)), max(1, head.find(OGG_MIDDLE_PAGE)))
    return any(begin.match(head) and _finds(path, begin, 1) for begin in BEGINNINGS)


def _finds(path: Path, pattern: re.Pattern[bytes], start: int) -> bool:
    """Whether the pattern, of 32 bytes at most, occurs in the file from `start` on."""
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(SEARCHED)
        while len(data) > 32:
            if pattern.search(data):
                return True
            data = data[-32:] + file.read(SEARCHED)
    return False


def ends_as_ogg(path: Path) -> bool:
    """Whether an Ogg file's last page is marked as such."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - (1 << 17)))  # two pages of the largest size
        data = file.read()
    place = data.rfind(OGG_PAGE)
    return place >= 0 and len(data) > place + 5 and bool(data[place + 5] & 4)


def sphere_samples(head: bytes) -> int:
    """The samples of a channel that the header of a SPHERE file states; 0 where it does not say."""
    stated = re.search(rb"^sample_count -i (\d+)", head, re.MULTILINE)
    return int(stated[1]) if stated else 0


def share_there(log: str) -> float:
    """How much of the sound that its header states the file holds, by libsndfile's log of opening it: in [0, 1].

    Programs write the sizes at the end: one that was killed leaves 0, which states nothing.
    """
    shares = [int(there) / int(stated) for stated, there in STATED_SIZE.findall(log) if 0 < int(stated) < ENDLESS]
    return min([1.0, *shares])
