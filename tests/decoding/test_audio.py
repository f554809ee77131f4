"""Audio files and pieces of sound as samples and as features."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from kdstream.data.features import compute_fbank
from kdstream.decoding.audio import FbankStream, read_audio_file


def test_channels_are_mixed_and_rates_converted(tmp_path):
    rate, seconds = 44100, 0.5
    tone = np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, np.zeros_like(tone)], axis=1), rate)
    samples = read_audio_file(tmp_path / "tone.wav")
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    assert samples.shape == (8000,)
    assert np.abs(samples.numpy() - expected)[100:-100].max() < 1e-2


@pytest.mark.parametrize("sizes", [(0, 1, 2, 399), (10000,), (160, 160, 160, 5), (279, 1, 3000), (100,)], ids=str)
def test_features_of_pieces_are_those_of_the_whole(sizes):
    samples = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0)) * 0.1
    stream = FbankStream()
    frames = [stream.accept(piece) for piece in samples.split(list(sizes))]
    frames = torch.cat([*frames, stream.finish()])
    whole = compute_fbank(samples) if len(samples) >= 160 else torch.zeros(0, 80)
    assert frames.shape == whole.shape
    torch.testing.assert_close(frames, whole, atol=1e-4, rtol=0)
