"""Linear CKA: what it is blind to, what it is not, and that batches and padding do not matter."""

from __future__ import annotations

import pytest
import torch

from kdstream.kd.similarity import LayerSimilarity
from kdstream.kd.taps import Tap


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tap(x: torch.Tensor, lens, stride: int = 2) -> Tap:
    return Tap(x, x, x, x, torch.tensor(lens), stride)


def cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Over frames (T, D) and (T, D'), as the definition has it."""
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def similarity(ours, theirs) -> torch.Tensor:
    gathered = LayerSimilarity()
    gathered.add(ours, theirs)
    return gathered.cka(len(ours))


def test_cka_of_identical_rotated_and_scaled_features_is_1():
    x = random(2, 9, 4, seed=0) + 3.0
    rotation = torch.linalg.qr(random(4, 4, seed=1)).Q
    values = similarity(
        {"0.0": tap(x, [9, 7])}, {"0.0": tap(x, [9, 7]), "0.1": tap(-2.5 * x @ rotation + 7.0, [9, 7])}
    )
    torch.testing.assert_close(values, torch.ones(1, 2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_cka_of_two_batches_equals_its_definition_over_all_valid_frames():
    x, y = random(3, 8, 4, seed=0), random(3, 8, 6, seed=1)
    y[..., :2] += x[..., :2]
    lens = [8, 5, 6]
    gathered = LayerSimilarity()
    for rows in (slice(0, 2), slice(2, 3)):
        of_batch = lens[rows]
        gathered.add({"0.0": tap(x[rows], of_batch)}, {"3.1": tap(y[rows], of_batch)})
    frames = [torch.cat([z[n, :length] for n, length in enumerate(lens)]) for z in (x, y)]
    assert gathered.cka(1).item() == pytest.approx(cka(*frames), rel=1e-6)
    assert 0.05 < cka(*frames) < 0.9


def test_layers_of_different_rate_are_compared_at_the_slower_one():
    x, y = random(1, 8, 4, seed=0), random(1, 4, 3, seed=1)
    expected = cka(x[0].unflatten(0, (4, 2)).mean(dim=1), y[0])
    value = similarity({"0.0": tap(x, [8], stride=1)}, {"1.0": tap(y, [4], stride=2)})
    assert value.item() == pytest.approx(expected, rel=1e-6)
