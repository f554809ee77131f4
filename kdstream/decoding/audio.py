"""Sound that no manifest lists: files, folders and the microphone, as 16 kHz samples and as features.

Lhotse reads and resamples, as it does for cuts: a file gives the same features as a cut of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from lhotse import Recording
from torch import Tensor

from kdstream.data.features import FBANK, compute_fbank
from kdstream.data.reading import load_samples
from kdstream.data.resampling import resample
from kdstream.errors import UserError, option
from kdstream.units import FRAMES_PER_SECOND, SAMPLE_RATE

SUFFIXES = (".wav", ".flac", ".mp3")
FRAME = SAMPLE_RATE // FRAMES_PER_SECOND  # samples from one feature frame to the next
WINDOW_END = FRAME // 2 + SAMPLE_RATE * 25 // 2000  # samples from a frame's start to the end of its 25 ms window
NUM_FILTERS = FBANK.feature_dim(SAMPLE_RATE)
MICROPHONE_BLOCK = SAMPLE_RATE // 10
NAME_FILES = "name audio files, or a directory of such"
MICROPHONE = option("microphone", 1)


def find_audio(paths: Sequence[str]) -> list[Path]:
    """The files among `paths`, and the wav, flac and mp3 files in and below the directories.

    Raises UserError for a directory that holds none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not inside:
            raise UserError(f"{path}: holds no wav, flac or mp3 file", fix=NAME_FILES)
        found += inside
    return found


def read_audio_file(path: Path) -> Tensor:
    """Samples (S,) at 16 kHz, the mean of all channels.  Raises UserError where the file is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such file", fix=NAME_FILES)
    fix = "give another file, or convert it to wav or flac"

    def load() -> np.ndarray:
        recording = Recording.from_file(path)
        return resample(torch.from_numpy(recording.load_audio()), recording.sampling_rate).numpy()

    samples = load_samples(load, path, fix)
    if samples.shape[1] < FRAME:
        raise UserError(f"{path}: less than 10 ms of sound", fix=fix)
    return torch.from_numpy(samples.mean(axis=0))


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


def microphone() -> Iterator[np.ndarray]:
    """Blocks (S,) of 16 kHz samples from the default microphone, without end.

    Raises UserError where the platform has none.
    """
    try:
        import sounddevice  # pyright: ignore[reportMissingImports]  # optional
    except (ImportError, OSError) as error:  # OSError: the package is there, the library under it is not
        fix = "pip install sounddevice (and on Linux: apt-get install libportaudio2)"
        raise UserError(str(error), flag=MICROPHONE, fix=fix) from error
    try:
        with sounddevice.InputStream(samplerate=SAMPLE_RATE, channels=1, dtype="float32") as stream:
            while True:
                block, _ = stream.read(MICROPHONE_BLOCK)
                yield block[:, 0]
    except sounddevice.PortAudioError as error:
        raise UserError(str(error), flag=MICROPHONE, fix="plug one in, or name audio files") from error
