"""Reads a whole audio file, and says by its name what cannot be heard rightly."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import soundfile

from kdstream.audio.kinds import convert, ends_as_ogg, is_joined, share_there, sphere_samples, why_not_opened
from kdstream.audio.mpeg import count_frames, mended, parse_frame
from kdstream.audio.riff import find_sound_chunk
from kdstream.audio.samples import check_samples, heard_alone, power_of
from kdstream.errors import UserError, printable
from kdstream.units import FRAMES_PER_SECOND

RATES = (1000, 1_000_000)  # Hz; a header with another is damaged
BLOCK = 1 << 26  # samples that are read at once: most files in one piece, none by what a damaged header states
SHORT_BLOCK = 1 << 19  # samples of a long file that are read at once: half a minute at 16 kHz
UNKNOWN = 1 << 60  # samples: libsndfile states more where a header gives no length
CONVERT_AGAIN = "convert it again, with samples as 16-bit integers"
IGNORE_LENGTH = "-ignore_length 1 "  # ffmpeg's, of WAV and RF64
UNCOUNTED_SECONDS = 0.1  # of bytes behind the sound: fewer may be rubbish
JOINED = "several files joined into one, of which only the first would be heard"
GIVE_PARTS = "give them one by one, or join them with sox ONE TWO JOINED"
HEAD = 1024  # bytes by which a file is known


class NotOpened(UserError):
    """A file that libsndfile does not open; other programs may."""


class Sound(NamedTuple):
    """samples: (channels, S), float32 in about [-1, 1].  sample_rate: in Hz."""

    samples: np.ndarray
    sample_rate: int


def read_sound(path: Path) -> Sound:
    """All samples of a file, to its end.

    Raises UserError where the file is missing, is not audio that libsndfile reads, is cut short, damaged or joined of
    several, lacks its length, holds less than 10 ms, or has samples that are not finite numbers on a scale of [-1, 1].
    """
    head = read_head(path)
    with open_sound(path, head) as file:
        pieces = list(blocks(path, file, BLOCK))
        samples, sample_rate = (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).T, file.samplerate
        _check_end(path, file, samples.shape[1])
    check_samples(samples, str(path), CONVERT_AGAIN)
    if samples.shape[1] * FRAMES_PER_SECOND < sample_rate:
        what = "less than 10 ms of sound" if samples.size else "no samples"
        raise UserError(f"{path}: {what}", fix="give another file, or leave it out")
    return Sound(samples, sample_rate)


class LongSound(NamedTuple):
    """A file that was looked through, and is too long to be held whole.

    samples: of each channel.
    channel: that is heard alone; None where their mean is heard.
    """

    path: Path
    sample_rate: int
    samples: int
    channel: int | None

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate

    def blocks(self) -> Iterator[np.ndarray]:
        """(S,) samples as `mono` gives them, block by block.

        Raises UserError where the file can no longer be read, or has another length than when it was looked through.
        """
        left = self.samples
        with open_sound(self.path, read_head(self.path), look_for_more=False) as file:
            for block in blocks(self.path, file, SHORT_BLOCK):
                left -= len(block)
                yield block.mean(axis=1) if self.channel is None else block[:, self.channel]
        if left:
            raise UserError(f"{self.path}: has changed while it was read", fix="wait until it is written")


def find_long(path: Path, seconds: float) -> LongSound | None:
    """A file of more than `seconds`, of which no more than a block is held at once; None for a shorter one.

    Raises UserError for what `read_sound` refuses in a long file.
    """
    head = read_head(path)
    with open_sound(path, head, look_for_more=False) as file:
        if file.frames <= seconds * file.samplerate:
            return None
    with open_sound(path, head) as file:
        samples, power, power_of_mean = 0, np.zeros(file.channels), 0.0
        for block in blocks(path, file, SHORT_BLOCK):
            check_samples(block, str(path), CONVERT_AGAIN)
            samples += len(block)
            power += power_of(block.T)
            power_of_mean += float(power_of(block.mean(axis=1)))
        _check_end(path, file, samples)
        channel = heard_alone(power, power_of_mean, path) if file.channels > 1 else None
        return LongSound(path, file.samplerate, samples, channel)


def check_whole(path: Path, way_out: str, needs_libsndfile: bool = False) -> None:
    """Raises UserError for a file of which Lhotse takes a part for all: it reads as libsndfile does.

    The file ends before its header says, holds more than that, or is joined of several.  All of it is read to find the
    latter.  Nothing is said of a file that is not there.

    Args:
      way_out: beside mending the file.
      needs_libsndfile: refuse what libsndfile does not open; else Lhotse may read it otherwise, and nothing is said.
    """
    if not path.exists():
        return
    try:
        with open_sound(path, read_head(path)) as file:
            _check_end(path, file, file.frames)
            if isinstance(file.name, io.BytesIO):
                _check_heard_of(path, file)
    except UserError as error:
        if needs_libsndfile or not isinstance(error, NotOpened):
            raise UserError(error.problem, fix=f"{error.fix}, or {way_out}") from error


def _check_heard_of(path: Path, mended: soundfile.SoundFile) -> None:
    """Raises UserError where libsndfile alone hears less of the file than of its mended copy."""
    heard = soundfile.info(_name_of(path)).frames
    if mended.frames - heard >= UNCOUNTED_SECONDS * mended.samplerate:
        seconds, there = heard / mended.samplerate, mended.frames / mended.samplerate
        problem = f"its header states another length than it has: {seconds:.2f} s of {there:.2f} s would be heard"
        raise UserError(f"{path}: {problem}", fix=convert(path))


def why_unreadable(path: Path) -> str:
    """What is wrong with a file, in the words of `read_sound`; "" where nothing is."""
    try:
        read_sound(path)
    except UserError as error:
        return error.problem.removeprefix(f"{path}: ")
    return ""


def read_head(path: Path) -> bytes:
    """The first bytes of a file.  Raises UserError where it cannot be opened."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: a directory, not an audio file", fix="name an audio file")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: a pipe or a device, not a file", fix="save it to a file first")
        with open(path, "rb") as file:
            return file.read(HEAD)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", fix="give the path of an audio file") from error
    except (OSError, ValueError) as error:  # the latter: a zero byte in the name
        raise _cannot_be_read(path, error) from error


def _cannot_be_read(path: Path, error: OSError | ValueError) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{path}: cannot be read ({reason})", fix="give another file, or make it readable")


def open_sound(path: Path, head: bytes, look_for_more: bool = True) -> soundfile.SoundFile:
    """The file in libsndfile, or a copy in memory that states its true length.

    Args:
      head: its first bytes.
      look_for_more: than the first of several files that were joined; all bytes are read for this.
    Raises:
      UserError: no such length can be had.
    """
    try:
        if look_for_more and is_joined(path, head):
            raise UserError(f"{path}: {JOINED}", fix=GIVE_PARTS)
        if parse_frame(head, 0) or head.startswith(b"ID3"):
            return _open_mp3(path)  # at once, as libmpg123 prints warnings without a name of what is mended here
        file = soundfile.SoundFile(_name_of(path))
        if file.frames > UNKNOWN:
            file.close()
            raise UserError(f"{path}: its header lacks the length", fix=convert(path))
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise UserError(f"{path}: {file.samplerate} Hz; its header is damaged", fix="restore it")
        if file.format == "MP3":
            file.close()
            return _open_mp3(path)
        return _with_all_samples(path, file)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:  # the latter two: soundfile's, of raw samples
        problem, fix = (JOINED, GIVE_PARTS) if is_joined(path, head) else why_not_opened(path, head, error)
        raise NotOpened(f"{path}: {problem}", fix=fix) from error
    except OSError as error:
        raise _cannot_be_read(path, error) from error


def _name_of(path: Path) -> Any:
    """Bytes where names are bytes: soundfile itself encodes no name that is not valid in the file system's encoding."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def blocks(path: Path, file: soundfile.SoundFile, size: int) -> Iterator[np.ndarray]:
    """(S, channels) float32 samples, `size` at once, to the end; at least one block, which may be empty."""
    try:
        while True:
            block = file.read(size, dtype="float32", always_2d=True)
            yield block
            if len(block) < size:
                return
    except soundfile.SoundFileError as error:
        said = str(error).removeprefix("Error : ").rstrip(".")
        raise UserError(f"{path}: cut short or damaged ({said})", fix=_keep_the_rest(path)) from error


def _open_mp3(path: Path) -> soundfile.SoundFile:
    """An MP3 file, or a copy of it that states how many frames it has."""
    data = path.read_bytes()
    count = count_frames(data)
    if count.stated is not None and count.stated > count.frames + 1:  # some coders count the tag's frame too
        _raise_cut_short(path, *(frames * count.seconds_of_frame for frames in (count.frames, count.stated)))
    if count.stated in (None, count.frames, count.frames + 1):
        file = soundfile.SoundFile(_name_of(path))
        # without a tag libsndfile guesses; it knows of no frames where the bit rate is "free", and then nor do we
        if count.stated is not None or file.frames + count.samples_of_frame >= count.samples:
            return file
        file.close()
    if len(count.kinds) > 1:
        problem = "joined from MP3 files of different rates or channels"
        raise UserError(f"{path}: {problem}", fix="give them one by one")
    return soundfile.SoundFile(io.BytesIO(mended(data, count)))


def _with_all_samples(path: Path, file: soundfile.SoundFile) -> soundfile.SoundFile:
    """The file; a mended copy of a WAV that states no sound though there is some, as a killed recorder leaves it.

    Raises UserError for what is left so of other kinds, and for sound behind what the header states.
    """
    if file.format in ("AU", "RF64") and not file.frames and (size := path.stat().st_size) > HEAD:
        file.close()
        problem = f"its header states no sound, but the file has {size} bytes"
        raise UserError(f"{path}: {problem}", fix=convert(path, IGNORE_LENGTH * (file.format == "RF64")))
    chunk = find_sound_chunk(path) if file.format in ("WAV", "WAVEX") else None
    if chunk is None or not chunk.uncounted:
        return file
    if chunk.stated == 0:
        file.close()
        data = bytearray(path.read_bytes())
        data[chunk.place - 4 : chunk.place] = (len(data) - chunk.place).to_bytes(4, "little")
        return soundfile.SoundFile(io.BytesIO(bytes(data)))
    if chunk.uncounted * file.frames >= UNCOUNTED_SECONDS * file.samplerate * chunk.stated:
        stated = file.frames / file.samplerate
        file.close()
        problem = f"its header states {stated:.2f} s of sound, but {chunk.uncounted} bytes more stand behind them"
        raise UserError(f"{path}: {problem}", fix=convert(path, IGNORE_LENGTH))
    return file


def _check_end(path: Path, file: soundfile.SoundFile, samples: int) -> None:
    """Raises UserError where the file ends 10 ms or more before its header says; warns where that is not certain.

    Less than a feature frame is nothing that was said: some programs count the header itself.
    """
    stated = file.frames if file.format != "MP3" else samples  # whose frames were counted
    share = share_there(file.extra_info)
    if not share:
        raise UserError(f"{path}: cut short: none of the sound that its header states", fix="restore it")
    stated = max(stated, round(samples / share))
    if (stated - samples) * FRAMES_PER_SECOND >= file.samplerate:
        _raise_cut_short(path, samples / file.samplerate, stated / file.samplerate)
    if doubt := _doubt(path, file, samples):
        logging.warning(f"{printable(str(path))}: {doubt}, so it may be cut short; what is there is heard")


def _doubt(path: Path, file: soundfile.SoundFile, samples: int) -> str:
    """What lets one think that the file is cut short, and does not prove it; ""."""
    if file.format == "OGG" and not ends_as_ogg(path):
        return "lacks Ogg's mark of the end"
    stated = sphere_samples(read_head(path)) if file.format == "NIST" else 0
    of_all_channels = stated == samples * file.channels  # so some programs count
    if (stated - samples) * FRAMES_PER_SECOND < file.samplerate or of_all_channels:
        return ""
    return f"has {samples / file.samplerate:.2f} s of the {stated / file.samplerate:.2f} s that its header states"


def _raise_cut_short(path: Path, seconds: float, stated: float) -> NoReturn:
    problem = f"cut short: {seconds:.2f} s of the {stated:.2f} s that its header states"
    raise UserError(f"{path}: {problem}", fix=_keep_the_rest(path))


def _keep_the_rest(path: Path) -> str:
    return f"restore it, or keep what is there: {convert(path).removeprefix('convert it: ')}"
