"""Audio resampled in pieces is the whole audio resampled, and what a file gives."""

from __future__ import annotations

import lhotse
import numpy as np
import pytest
import soundfile
import torch

from kdstream.data.reading import read_audio
from kdstream.data.resampling import ResamplingStream, resample
from kdstream.decoding.audio import read_audio_file
from kdstream.units import SAMPLE_RATES


def noise(samples: int) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.slow
@pytest.mark.parametrize("rate", SAMPLE_RATES)
@pytest.mark.parametrize(
    "sizes", [(5000,), (0, 1, 2, 399, 3000), (100,) * 40, (7,) * 100], ids=lambda sizes: len(sizes)
)
def test_pieces_give_the_samples_of_the_whole(rate, sizes):
    samples = noise(sum(sizes))
    stream = ResamplingStream(rate)
    pieces = torch.cat([*(stream.accept(piece) for piece in samples.split(list(sizes))), stream.finish()])
    torch.testing.assert_close(pieces, resample(samples, rate), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_samples_come_out_as_soon_as_the_filter_can_give_them(rate):
    stream = ResamplingStream(rate)
    given = sum(len(stream.accept(piece)) for piece in noise(rate).split(rate // 100))
    assert 0 <= 16000 - given <= 2 * 160  # less than 20 ms are held back


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_samples_are_resampled_as_files_are(rate, tmp_path):
    samples = noise(rate)
    soundfile.write(tmp_path / "noise.wav", samples.numpy(), rate, subtype="FLOAT")
    torch.testing.assert_close(resample(samples, rate), read_audio_file(tmp_path / "noise.wav"), atol=1e-6, rtol=0)


def test_a_tone_stays_a_tone():
    tone = torch.from_numpy(np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)).float()
    expected = torch.from_numpy(np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).float()
    assert float((resample(tone, 44100) - expected)[100:-100].abs().max()) < 1e-2


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_cuts_are_resampled_as_lhotse_does_it(rate, tmp_path):
    pytest.importorskip("torchaudio", reason="without torchaudio lhotse resamples in another way")
    soundfile.write(tmp_path / "noise.wav", noise(2 * rate + 123).numpy(), rate)
    recording = lhotse.Recording.from_file(tmp_path / "noise.wav")
    for offset, duration in ((0.0, recording.duration), (0.3217, 1.0), (0.5, 0.7321)):
        cut = recording.to_cut().truncate(offset=offset, duration=duration)
        assert torch.equal(read_audio(cut), torch.from_numpy(cut.resample(16000).load_audio()[0]))
