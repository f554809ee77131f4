"""Sound that no manifest lists: files, the microphone and standard input, as 16 kHz samples and as features.

A file gives the same features as a cut of it.
"""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdstream.audio.files import LongSound, find_long, read_sound
from kdstream.audio.kinds import convert, has_header
from kdstream.audio.samples import mono
from kdstream.data.features import FBANK, compute_fbank
from kdstream.data.resampling import ResamplingStream, check_rate, resample
from kdstream.errors import UserError, option
from kdstream.units import FRAMES_PER_SECOND, SAMPLE_RATE

FRAME = SAMPLE_RATE // FRAMES_PER_SECOND  # samples from one feature frame to the next
WINDOW_END = FRAME // 2 + SAMPLE_RATE * 25 // 2000  # samples from a frame's start to the end of its 25 ms window
NUM_FILTERS = FBANK.feature_dim(SAMPLE_RATE)
HELD_SECONDS = 300.0  # of a file that is decoded chunk by chunk and held whole; an hour of features is 115 MB
MICROPHONE_BLOCK = SAMPLE_RATE // 10
MICROPHONE = option("microphone", 1)
STDIN = "-"  # as it is typed
STDIN_BLOCK = 2 * SAMPLE_RATE  # bytes, at most
STDIN_PAUSE = 0.1  # seconds after which a block is empty
HEAD = 32  # bytes that tell a header
PIPE = "pipe raw samples into it: ffmpeg -i FILE -f s16le -ar 16000 -ac 1 - | ..."


def read_audio_file(path: Path) -> Tensor:
    """Samples (S,) at 16 kHz, of all channels together.  Raises UserError for what `read_sound` refuses."""
    sound = read_sound(path)
    check_rate(sound.sample_rate, str(path), convert(path))
    samples = resample(torch.from_numpy(sound.samples), sound.sample_rate)
    return torch.from_numpy(mono(samples.numpy(), path))


def find_long_audio(path: Path) -> LongSound | None:
    """A file of more than HELD_SECONDS; None for a shorter one.  Raises UserError as `read_audio_file` does."""
    sound = find_long(path, HELD_SECONDS)
    if sound is not None:
        check_rate(sound.sample_rate, str(path), convert(path))
    return sound


def read_features(sound: LongSound) -> Iterator[Tensor]:
    """The features of a long file in pieces (T, 80), read one after the other.

    They differ from those of the whole file by float32 rounding.
    """
    resampling, fbank = ResamplingStream(sound.sample_rate), FbankStream()
    for block in sound.blocks():
        yield fbank.accept(resampling.accept(torch.from_numpy(block)))
    yield fbank.accept(resampling.finish())
    yield fbank.finish()


class FbankStream:
    """Log mel energies of audio that comes in pieces: the same frames that `compute_fbank` gives for the whole.

    A frame is returned as soon as all samples of its window are there.
    """

    def __init__(self) -> None:
        self._samples = torch.zeros(0)  # from the start of the last frame that was returned
        self._returned = 0  # frames of these samples that were returned

    def accept(self, samples: Tensor) -> Tensor:
        """Takes samples (S,) at 16 kHz.  Returns the frames (T, 80) that are now complete; T may be 0."""
        self._samples = torch.cat([self._samples, samples])
        complete = max(0, (len(self._samples) - WINDOW_END) // FRAME + 1)
        if complete <= self._returned:
            return torch.zeros(0, NUM_FILTERS)
        frames = compute_fbank(self._samples)[self._returned : complete]
        # The window of the next frame reaches back into this last one.
        self._samples, self._returned = self._samples[(complete - 1) * FRAME :], 1
        return frames

    def finish(self) -> Tensor:
        """The last frames (T, 80), whose windows reach beyond the end of the audio."""
        if len(self._samples) < FRAME:
            return torch.zeros(0, NUM_FILTERS)
        return compute_fbank(self._samples)[self._returned :]


def microphone() -> Generator[np.ndarray, None, None]:
    """Blocks (S,) of 16 kHz samples from the default microphone, without end.

    When it is closed, a warning says how often sound was lost, because blocks were not taken fast enough.  Raises
    UserError where the platform has none.
    """
    try:
        import sounddevice  # pyright: ignore[reportMissingImports]  # optional
    except (ImportError, OSError) as error:  # OSError: the package is there, the library under it is not
        fix = "pip install sounddevice (and on Linux: apt-get install libportaudio2)"
        raise UserError(str(error), flag=MICROPHONE, fix=fix) from error
    losses = 0
    try:
        with sounddevice.InputStream(samplerate=SAMPLE_RATE, channels=1, dtype="float32") as stream:
            while True:
                block, overflowed = stream.read(MICROPHONE_BLOCK)
                losses += overflowed
                yield block[:, 0]
    except sounddevice.PortAudioError as error:
        raise UserError(str(error), flag=MICROPHONE, fix="plug one in, or name audio files") from error
    finally:
        if losses:
            logging.warning(
                f"{MICROPHONE}: sound was lost {losses} times, as decoding was slower than speech; "
                "use a smaller model or a longer --chunk-size"
            )


def standard_input() -> Generator[np.ndarray, None, None]:
    """Blocks (S,) of 16 kHz samples from standard input, as they come: raw, 16 bits, little-endian, one channel.

    While none come, blocks are empty, ten a second, so that who takes them need not wait.  Half a sample at the end is
    dropped.  Raises UserError for a terminal at once, and later for a file with a header, and for less than 10 ms.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("standard input is no pipe and no file", flag=STDIN, fix=PIPE)
    return _raw_blocks(sys.stdin.fileno())


def _raw_blocks(file: int) -> Generator[np.ndarray, None, None]:
    """`standard_input` of a file descriptor."""
    data, samples, ended = b"", 0, False
    while not ended:
        read = b""
        if select.select([file], [], [], STDIN_PAUSE)[0]:
            read = os.read(file, STDIN_BLOCK)
            ended = not read
        data += read
        is_head = not samples and not ended and len(data) < HEAD  # it is held back
        if not samples and not is_head and has_header(data):
            raise UserError("a file with a header, not raw samples", flag=STDIN, fix=PIPE)
        whole = 0 if is_head else len(data) // 2
        yield np.frombuffer(data, "<i2", whole).astype(np.float32) / 32768
        data, samples = data[2 * whole :], samples + whole
    if samples < FRAME:
        raise UserError("less than 10 ms of sound", flag=STDIN, fix=PIPE)
