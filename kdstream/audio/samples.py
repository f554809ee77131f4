"""Samples of any source: refused where they are no sound on the usual scale, and mixed to one channel."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from kdstream.errors import UserError, printable

LOUDEST = 8.0  # float samples beyond are not on a scale of [-1, 1]; mixes and loud masters may well exceed 1
CANCELLED = 0.01  # -20 dB: a mean of channels that has less of their power has lost what they say


def mono(samples: np.ndarray, path: Path | str) -> np.ndarray:
    """(channels, S) to (S,): the mean of the channels.

    Where they cancel each other out, as channels in opposite phase do, it is the loudest channel, and a warning.
    """
    mean = samples.mean(axis=0)
    if len(samples) == 1:
        return mean
    channel = heard_alone(power_of(samples), float(power_of(mean)), path)
    return mean if channel is None else samples[channel]


def power_of(samples: np.ndarray) -> np.ndarray:
    """(..., S) to (...): the sum of the squares."""
    return np.einsum("...s,...s->...", samples, samples, dtype=np.float64)


def heard_alone(power: np.ndarray, power_of_mean: float, path: Path | str) -> int | None:
    """The channel that is heard alone, and a warning, where the mean of all would be almost silent; else None.

    Args:
      power: of each channel.
    """
    if power_of_mean >= CANCELLED * power.mean():
        return None
    loudest = int(power.argmax())
    logging.warning(
        f"{printable(str(path))}: its {len(power)} channels cancel each other out, as in opposite phase; "
        f"only channel {loudest} is heard"
    )
    return loudest


def check_samples(samples: np.ndarray, what: str, fix: str) -> None:
    """Raises UserError for samples that are NaN, infinite, or not on a scale of [-1, 1].

    what: the file that they are of, with which the message begins; "" for samples without one.
    """
    begin = f"{what}: " if what else ""
    if not samples.size:
        return
    peak = max(float(samples.max()), -float(samples.min()))  # NaN where one is
    if not np.isfinite(peak):
        raise UserError(f"{begin}samples are NaN or infinite", fix=fix)
    if peak > LOUDEST:
        scale = "divide them by 32768" if peak <= 32768 else "divide them by their largest"
        raise UserError(f"{begin}float samples up to {peak:.0f}, not on a scale of [-1, 1]", fix=f"{scale}, or {fix}")
