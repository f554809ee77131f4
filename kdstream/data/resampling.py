"""Resampling, mostly to 16 kHz, by Lhotse's windowed-sinc filter, of whole audio and of audio that comes in pieces.

It is what `Recording.resample` and `Cut.resample` compute where torchaudio is installed; it needs no torchaudio.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lhotse.augmentation import get_or_create_resampler
from torch import Tensor

from kdstream.errors import UserError
from kdstream.units import SAMPLE_RATE

LARGEST_FILTER = 100_000_000  # coefficients, of 4 bytes each


def check_rate(sample_rate: int, what: str, fix: str) -> None:
    """Raises UserError, with `what` and `fix`, for a rate whose filter to 16 kHz needs gigabytes, such as 44101 Hz."""
    divisor = math.gcd(sample_rate, SAMPLE_RATE)
    if (sample_rate // divisor) * (SAMPLE_RATE // divisor) > LARGEST_FILTER:
        raise UserError(f"{what}: {sample_rate} Hz, too uncommon a rate to convert", fix=fix)


def resample(samples: Tensor, sample_rate: int, wanted: int = SAMPLE_RATE) -> Tensor:
    """(..., S) at `sample_rate` to (..., S * wanted / sample_rate, rounded to the nearest) at the rate `wanted`."""
    if sample_rate == wanted:
        return samples
    made = get_or_create_resampler(sample_rate, wanted)(samples)  # rounded up
    return made[..., : (2 * samples.size(-1) * wanted + sample_rate) // (2 * sample_rate)]


class ResamplingStream:
    """`resample` of audio that comes in pieces: the same samples, but for float32 rounding (less than 1e-6).

    The filter's coefficients repeat after a period: `_period` samples that go in, `_made` that come out.  Periods are
    given out once all samples that the filter reads for them are there.
    """

    def __init__(self, sample_rate: int) -> None:
        divisor = math.gcd(sample_rate, SAMPLE_RATE)
        self._sample_rate = sample_rate
        self._period, self._made = sample_rate // divisor, SAMPLE_RATE // divisor
        # the filter reads so many samples before a period, and after it
        resampler: Any = get_or_create_resampler(sample_rate, SAMPLE_RATE)
        self._reach = 0 if sample_rate == SAMPLE_RATE else int(resampler.width)
        self._samples = torch.zeros(0)  # from the beginning of a period
        self._given = 0  # periods of them that were given out

    def accept(self, samples: Tensor) -> Tensor:
        """Takes (S,) at the stream's rate; returns the (S',) at 16 kHz, perhaps none, that are now complete."""
        self._samples = torch.cat([self._samples, samples])
        complete = max(0, (len(self._samples) - self._reach) // self._period)
        if complete <= self._given:
            return torch.zeros(0)
        made = resample(self._samples, self._sample_rate)[self._given * self._made : complete * self._made]
        kept = min(complete, math.ceil(self._reach / self._period))  # periods that the next ones' filter reads
        self._samples, self._given = self._samples[(complete - kept) * self._period :], kept
        return made

    def finish(self) -> Tensor:
        """The last samples."""
        if len(self._samples) <= self._given * self._period:
            return torch.zeros(0)
        return resample(self._samples, self._sample_rate)[self._given * self._made :]
