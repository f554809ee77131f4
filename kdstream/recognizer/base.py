"""The interface of a recogniser, and the checks of what it is given."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kdstream.audio.samples import check_samples as refuse_samples
from kdstream.errors import UserError
from kdstream.transcription import Segment, Transcription
from kdstream.units import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLE_RATES


class Recognizer(ABC):
    """Writes down speech.  `kdstream.load` makes it.  One thread at a time may use it."""

    def transcribe(self, audio: Any, sample_rate: int = SAMPLE_RATE) -> Transcription:
        """Transcribes one file or one array of samples.

        Args:
          audio: path of a file (wav, flac, mp3, ogg and what else libsndfile reads; channels are averaged), or samples
            (S,) as floats in [-1, 1]: an array, a tensor or a list.
          sample_rate: of the samples, in Hz; one of kdstream.units.SAMPLE_RATES.  A file knows its own.
        Returns:
          Text, words with their times in seconds, and the confidence.  Less than 10 ms of samples say nothing.
        Raises:
          UserError: a file that is missing, damaged or cut short; samples that are not one channel of finite floats in
            about [-1, 1]; another rate; more seconds than a full-context model takes at once.
        """
        if isinstance(audio, (str, os.PathLike)):
            return self._transcribe_file(Path(audio))
        samples = check_samples(audio)
        check_rate(sample_rate)
        if is_short(len(samples), sample_rate):
            return nothing(len(samples) / sample_rate)
        return self._transcribe_samples(samples, sample_rate)

    @abstractmethod
    def stream(self) -> Stream:
        """Speech that comes in pieces.  Raises UserError for a full-context model, which cannot stream."""

    @abstractmethod
    def _transcribe_file(self, path: Path) -> Transcription:
        """`transcribe` of a file."""

    @abstractmethod
    def _transcribe_samples(self, samples: np.ndarray, sample_rate: int) -> Transcription:
        """`transcribe` of (S,) float32 samples, 10 ms or more."""


class Heard(Protocol):
    """What a runtime has heard of a stream so far: `Stream` tells it."""

    @property
    def text(self) -> str: ...

    @property
    def segments(self) -> list[Segment]: ...

    @property
    def growing(self) -> str: ...


class Stream(ABC):
    """Speech that comes in pieces of any size.  `Recognizer.stream` makes it.

    What it says in the end is what `Recognizer.transcribe` says of all samples together.
    """

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._sample_rate = SAMPLE_RATE
        self._samples = 0
        self._result: Transcription | None = None

    def accept(self, samples: Any, sample_rate: int = SAMPLE_RATE) -> None:
        """Takes the next samples and decodes every chunk that is complete.

        Args:
          samples: (S,) floats in [-1, 1]: an array, a tensor or a list, of any length.
          sample_rate: in Hz; one of kdstream.units.SAMPLE_RATES, and the same for all samples of the stream.
        Raises:
          UserError: samples that are not one channel of finite floats, or another rate.
          ValueError: the stream was finished.
        """
        if self._result is not None:
            raise ValueError("samples after finish(); open another stream")
        block = check_samples(samples)
        check_rate(sample_rate)
        if self._samples and sample_rate != self._sample_rate:
            problem = f"sample_rate {sample_rate}: the stream began at {self._sample_rate}"
            raise UserError(problem, fix="give all samples of a stream at one rate")
        if len(block):
            self._sample_rate = sample_rate
            self._samples += len(block)
            self._accept(block, sample_rate)

    @property
    def text(self) -> str:
        """The words so far."""
        return self._heard.text if self._result is None else self._result.text

    @property
    def segments(self) -> list[Segment]:
        """What has been said up to the last endpoint, in segments.

        They do not change any more, but the last word of the last one may be completed.
        """
        return self._heard.segments if self._result is None else self._result.segments

    @property
    def growing(self) -> str:
        """The words since the last endpoint; none after `finish`."""
        return self._heard.growing if self._result is None else ""

    def finish(self) -> Transcription:
        """Decodes the rest.  Called again, it returns the same."""
        if self._result is None:
            seconds = self._samples / self._sample_rate
            self._result = nothing(seconds) if is_short(self._samples, self._sample_rate) else self._finish(seconds)
        return self._result

    @abstractmethod
    def _accept(self, samples: np.ndarray, sample_rate: int) -> None:
        """`accept` of (S,) float32 samples, at least one; `sample_rate` is always the same."""

    @abstractmethod
    def _finish(self, seconds: float) -> Transcription:
        """`finish` of a stream of 10 ms or more."""


def check_samples(samples: Any) -> np.ndarray:
    """(S,) float32.  Raises UserError for what is not one channel of finite floats."""
    array = np.asarray(samples)
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.float32)
    if array.ndim != 1:
        raise UserError(f"samples of shape {array.shape}: not one channel", fix="give (S,), e.g. their mean")
    if array.dtype.kind != "f":
        fix = "give floats in [-1, 1]; 16-bit integers: samples / 32768"
        raise UserError(f"samples of type {array.dtype}: not floats", fix=fix)
    refuse_samples(array, "", "give finite floats in [-1, 1]")
    return array.astype(np.float32)


def check_settings(
    search: str, given: Collection[str], known: Collection[str], searches: Mapping[str, Collection[str]]
) -> None:
    """Raises UserError for a setting that the search does not have, and names the searches that have it."""
    for name in given:
        if name not in known:
            others = [other for other, settings in searches.items() if name in settings and other != search]
            alike = get_close_matches(name, sorted({*known, *chain(*searches.values())} - {name}), 1)
            instead = " or ".join(f'search="{other}"' for other in others) or ", ".join(alike or known)
            fix = f"leave it out, or use {instead}" if instead else "leave it out"
            raise UserError(f"{name}: not a setting of {search}", fix=fix)


def check_rate(sample_rate: int) -> None:
    if sample_rate not in SAMPLE_RATES:
        known = ", ".join(map(str, SAMPLE_RATES))
        raise UserError(f"sample_rate {sample_rate}: not a common rate", fix=f"resample to one of {known}")


def is_short(samples: int, sample_rate: int) -> bool:
    """Whether so many samples are less than a feature frame (10 ms)."""
    return samples * FRAMES_PER_SECOND < sample_rate


def nothing(seconds: float) -> Transcription:
    return Transcription("", seconds, "", [], None)
