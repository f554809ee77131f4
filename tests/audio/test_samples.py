"""Channels become one, and samples on another scale are refused."""

from __future__ import annotations

import numpy as np
import pytest

from kdstream.audio.samples import check_samples, mono
from kdstream.errors import UserError
from support.sound import tone

SOUND = tone().astype(np.float32)
OTHER = np.random.default_rng(0).normal(0, 0.1, len(SOUND)).astype(np.float32)


@pytest.mark.parametrize(
    "channels", [[SOUND], [SOUND, SOUND], [SOUND, 0 * SOUND], [SOUND, OTHER], [SOUND, -0.5 * SOUND], [0 * SOUND] * 2]
)
def test_channels_are_averaged(channels, caplog):
    samples = np.stack(channels)
    np.testing.assert_array_equal(mono(samples, "a.wav"), samples.mean(axis=0))
    assert caplog.records == []


def test_many_independent_channels_are_averaged(caplog):
    samples = np.random.default_rng(1).normal(0, 0.1, (16, 16000)).astype(np.float32)
    np.testing.assert_array_equal(mono(samples, "a.wav"), samples.mean(axis=0))
    assert caplog.records == []


@pytest.mark.parametrize("channels, loudest", [([SOUND, -SOUND], 0), ([-0.95 * SOUND, SOUND], 1)])
def test_channels_that_cancel_are_heard_by_the_loudest_one(channels, loudest, caplog):
    np.testing.assert_array_equal(mono(np.stack(channels), "a.wav"), channels[loudest])
    assert f"a.wav: its 2 channels cancel each other out, as in opposite phase; only channel {loudest}" in caplog.text


@pytest.mark.parametrize(
    "samples, named",
    [
        (32767 * SOUND, "divide them by 32768, or do so"),
        (-32767 * np.abs(SOUND), "divide them by 32768"),
        (8388607 * SOUND, "divide them by their largest"),
        (np.array([0.0, np.nan]), "NaN or infinite; do so"),
        (np.array([-np.inf, 0.0]), "NaN or infinite; do so"),
    ],
)
def test_samples_on_another_scale_are_refused(samples, named):
    with pytest.raises(UserError, match=f"^it: .*{named}"):
        check_samples(samples, "it", "do so")


def test_loud_samples_are_taken():
    check_samples(16 * SOUND, "it", "")  # peaks at 8
    check_samples(SOUND[:0], "it", "")
