"""Windows and steps: what is laid side by side, and its gradient."""

from __future__ import annotations

import pytest
import torch

from kdstream.models.streaming import ChunkConfig
from kdstream.models.windows import Windows, in_steps, own_frames, windows
from support.models import difference


@pytest.mark.parametrize(
    "frames, heads, block, left, right",
    [(64, 4, 32, 64, 0), (75, 2, 26, 16, 0), (9, 1, 4, 5, 0), (5, 1, 8, 2, 0), (48, 2, 8, 16, 4), (36, 1, 4, 7, 8)],
)
def test_the_gradient_of_windows_is_torchs_own(frames, heads, block, left, right):
    x = torch.randn(2, frames, 8, requires_grad=True)
    plain = windows(x, heads, block, left, right)
    gradient = torch.randn_like(plain)
    (expected,) = torch.autograd.grad(plain, x, gradient)
    ours = Windows.apply(x, heads, block, left, right)
    assert torch.equal(ours, plain)
    (by_sums,) = torch.autograd.grad(ours, x, gradient)
    assert difference(by_sums, expected) < 1e-5


@pytest.mark.parametrize("frames", [1, 8, 9, 40])
def test_a_step_is_a_chunk_and_the_frames_after_it(frames):
    chunk = ChunkConfig(8, 16, 4)
    x = torch.arange(frames + 4.0).view(1, -1, 1)
    steps = in_steps(x, chunk)
    after = torch.cat([x, torch.zeros(1, 8, 1)], dim=1)
    for number, step in enumerate(steps.unflatten(1, (-1, 12)).unbind(1)):
        assert torch.equal(step, after[:, 8 * number : 8 * number + 12])
    assert torch.equal(own_frames(steps, chunk, frames), x[:, :frames])


def test_the_window_of_a_step_is_the_chunks_before_it_and_all_of_the_step():
    chunk = ChunkConfig(8, 16, 4)
    steps = in_steps(torch.arange(1.0, 45.0).view(1, -1, 1), chunk)
    seen = windows(steps, 1, chunk.chunk, chunk.left, chunk.right).flatten(1)
    assert seen.shape == (5, 28)
    expected = torch.arange(-15.0, 13.0) + 8 * torch.arange(5.0).unsqueeze(1)
    assert torch.equal(seen, expected.clamp(min=0.0))


def test_without_right_context_frames_stay_where_they_are():
    x = torch.randn(2, 30, 3)
    for chunk in (None, ChunkConfig(8, 16)):
        assert in_steps(x, chunk) is x and own_frames(x, chunk, 30) is x
