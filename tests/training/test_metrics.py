"""Loss sums and how they are shown."""

from __future__ import annotations

import math

import pytest

from kdstream.training.metrics import MetricsTracker


class FakeWriter:
    def __init__(self) -> None:
        self.scalars = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name] = (value, step)


def test_text_is_icefalls():
    metrics = MetricsTracker(loss=667.5, simple_loss=1302.2, pruned_loss=501.6, frames=1000.0)
    assert str(metrics) == "loss=0.6675, simple_loss=1.302, pruned_loss=0.5016, over 1000.00 frames. "


def test_addition_sums_and_leaves_out_what_is_not_finite():
    total = MetricsTracker(loss=1.0, frames=2.0) + MetricsTracker(loss=math.nan, frames=3.0)
    total = total + MetricsTracker(loss=4.0, apc_loss=math.inf, frames=1.0)
    assert total == {"loss": 5.0, "frames": 6.0, "apc_loss": 0.0}


def test_decay_forgets_old_batches_at_the_rate_of_its_factor():
    total = MetricsTracker()
    for _ in range(2000):
        total = total.decayed(1 - 1 / 200) + MetricsTracker(loss=30.0, frames=10.0)
    assert total["frames"] == pytest.approx(2000.0, rel=1e-3)  # the last 200 batches' worth
    assert total.mean() == pytest.approx(3.0)


def test_means_are_per_frame_and_empty_is_worst():
    metrics = MetricsTracker(loss=30.0, frames=10.0)
    assert dict(metrics.means()) == {"loss": 3.0}
    assert MetricsTracker().mean() == math.inf


def test_summary_has_tensorboards_names():
    writer = FakeWriter()
    MetricsTracker(loss=30.0, ctc_loss=5.0, frames=10.0).write_summary(writer, "train/valid_", 7)
    assert writer.scalars == {"train/valid_loss": (3.0, 7), "train/valid_ctc_loss": (0.5, 7)}
