"""Audio files and pieces of sound as samples and as features."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from kdstream.data.features import compute_fbank
from kdstream.decoding.audio import FbankStream, find_audio, read_audio_file
from kdstream.errors import UserError


def test_channels_are_mixed_and_rates_converted(tmp_path):
    rate, seconds = 44100, 0.5
    tone = np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, np.zeros_like(tone)], axis=1), rate)
    samples = read_audio_file(tmp_path / "tone.wav")
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    assert samples.shape == (8000,)
    assert np.abs(samples.numpy() - expected)[100:-100].max() < 1e-2


def test_audio_in_a_directory_is_found_in_order(tmp_path):
    audio, empty = tmp_path / "audio", tmp_path / "empty"
    for name in ("mono.wav", "stereo.FLAC", "below/telephone.wav", "below/deeper/music.mp3", "notes.txt"):
        (audio / name).parent.mkdir(parents=True, exist_ok=True)
        (audio / name).touch()
    names = [path.name for path in find_audio([str(audio), str(audio / "notes.txt")])]
    assert names == ["music.mp3", "telephone.wav", "mono.wav", "stereo.FLAC", "notes.txt"]
    empty.mkdir()
    with pytest.raises(UserError, match=f"{empty}: holds no"):
        find_audio([str(empty)])


@pytest.mark.parametrize("sizes", [(0, 1, 2, 399), (10000,), (160, 160, 160, 5), (279, 1, 3000), (100,)], ids=str)
def test_features_of_pieces_are_those_of_the_whole(sizes):
    samples = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0)) * 0.1
    stream = FbankStream()
    frames = [stream.accept(piece) for piece in samples.split(list(sizes))]
    frames = torch.cat([*frames, stream.finish()])
    whole = compute_fbank(samples) if len(samples) >= 160 else torch.zeros(0, 80)
    assert frames.shape == whole.shape
    torch.testing.assert_close(frames, whole, atol=1e-4, rtol=0)
