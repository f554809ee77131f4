"""How frames of other lengths are fitted to ours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdstream.kd.speech_encoder import FIRST_MIDDLE_MS, FrameGrid


def middles(grid: FrameGrid, frames: int) -> torch.Tensor:
    """(frames, 1): a feature that says where a frame's middle lies."""
    return (grid.first_ms + grid.frame_ms * torch.arange(float(frames))).unsqueeze(1)


@pytest.mark.parametrize(
    "frame_ms, first_ms, stride, farthest",
    [
        (20.0, 12.5, 1, 10.0),  # the nearest frame
        (20.0, 0.0, 1, 10.0),
        (10.0, 12.5, 1, 5.0),  # means of two
        (5.0, 0.0, 1, 2.5),  # of four
        (40.0, 20.0, 2, 20.0),  # the nearest of frames twice as long
        (80.0, 40.0, 4, 40.0),
        (25.0, 12.5, 1, 1e-3),  # between two
        (16.0, 8.0, 1, 1e-3),
        (30.0, 15.0, 2, 1e-3),
    ],
)
def test_a_frame_of_ours_gets_what_lies_at_its_middle(frame_ms, first_ms, stride, farthest):
    grid = FrameGrid(frame_ms, first_ms)
    frames = 40
    ours = FIRST_MIDDLE_MS + 10 * (stride - 1) + 20 * stride * torch.arange(float(frames))
    theirs = grid.fit(middles(grid, int(frames * 20 * stride / frame_ms) + 8), frames)[:, 0]
    assert grid.stride == stride and theirs.shape == (frames,)
    assert (theirs - ours).abs().max() <= farthest


def test_before_the_first_frame_and_behind_the_last_one_these_are_taken():
    numbers = torch.arange(4.0).unsqueeze(1)
    assert FrameGrid(20.0, 85.0).fit(numbers, 7)[:, 0].tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert FrameGrid(25.0, 95.0).fit(numbers, 3)[:, 0].tolist() == [0, 0, 0]
    assert FrameGrid(25.0, 0.0).fit(numbers, 5)[2:, 0].tolist() == [3, 3, 3]


@pytest.mark.parametrize("kernel, stride, padding, dilation", [(3, 2, 0, 1), (3, 1, 1, 1), (4, 2, 1, 1), (3, 1, 2, 2)])
def test_a_convolution_moves_frames_by_its_kernel_stride_and_padding(kernel, stride, padding, dilation):
    conv = nn.Conv1d(1, 1, kernel, stride, padding, dilation, bias=False)
    nn.init.constant_(conv.weight, 1 / kernel)  # the mean of what it reads: of middles, the middle
    grid = FrameGrid(10.0, 5.0)
    made = conv(middles(grid, 40).T.unsqueeze(0))[0].T
    inner = slice(padding, len(made) - padding)  # beside the borders
    torch.testing.assert_close(made[inner], middles(grid.through(conv), len(made))[inner])


def test_padding_may_have_a_name():
    assert FrameGrid(10.0, 5.0).through(nn.Conv1d(1, 1, 5, padding="same")) == FrameGrid(10.0, 5.0)
    assert FrameGrid(10.0, 5.0).through(nn.Conv1d(1, 1, 5, padding="valid")) == FrameGrid(10.0, 25.0)
