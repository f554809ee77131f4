"""The front end in pieces of a long utterance is the front end."""

import pytest
import torch

from kdstream.models import subsampling
from kdstream.models.subsampling import Conv2dSubsampling


def small_front_end():
    torch.manual_seed(0)
    return Conv2dSubsampling(80, 16, channels=(4, 4, 16), hidden=8, dropout=0.0).eval()


@pytest.mark.parametrize("frames", [41, 46, 47, 48, 49, 50, 120, 121])
@torch.no_grad()
def test_a_long_utterance_in_pieces_gives_the_frames_of_the_whole(frames, monkeypatch):
    front_end, x, x_lens = small_front_end(), torch.randn(2, frames, 80), torch.tensor([frames, frames - 8])
    whole, lens, _ = front_end(x, x_lens)
    seen = []
    monkeypatch.setattr(subsampling, "LONGEST_AT_ONCE", 40)
    front_end.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].size(2)))
    in_pieces, lens_in_pieces, _ = front_end(x, x_lens)
    assert in_pieces.shape == whole.shape and torch.allclose(in_pieces, whole, atol=1e-5)
    assert torch.equal(lens, lens_in_pieces)
    assert max(seen) <= 40 + 7 + 4 * 3 and len(seen) == -(-((frames - 7) // 2) // 20)


def test_training_takes_an_utterance_at_once(monkeypatch):
    monkeypatch.setattr(subsampling, "LONGEST_AT_ONCE", 40)
    seen = []
    front_end = small_front_end().train()
    front_end.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].size(2)))
    front_end(torch.randn(1, 60, 80), torch.tensor([60]))[0].sum().backward()
    assert seen == [60]
