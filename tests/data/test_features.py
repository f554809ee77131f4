"""The filter bank equals those of kaldi-native-fbank and kaldifeat."""

from __future__ import annotations

import sys

import kaldi_native_fbank
import numpy as np
import pytest
import torch

from kdstream.data.features import compute_fbank, kaldifeat_fbank
from kdstream.errors import UserError


@pytest.mark.parametrize("num_samples", [16000, 16079, 16080, 48123])
def test_fbank_equals_kaldi_native_fbank(num_samples):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, num_samples).astype(np.float32)
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.frame_opts.samp_freq = 16000
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400
    reference = kaldi_native_fbank.OnlineFbank(options)
    reference.accept_waveform(16000, samples.tolist())
    reference.input_finished()
    expected = np.stack([reference.get_frame(i) for i in range(reference.num_frames_ready)])
    ours = compute_fbank(samples).numpy()
    assert ours.shape == expected.shape and ours.dtype == np.float32
    assert np.abs(ours - expected).max() < 1e-3


def test_kaldifeat_computes_the_same_features():
    pytest.importorskip("kaldifeat", reason="kaldifeat is not built; run: bash local/setup_env.sh --kaldifeat")
    samples = np.random.RandomState(0).uniform(-0.5, 0.5, 16000 * 3 + 77).astype(np.float32)
    ours, theirs = (compute_fbank(samples, extractor) for extractor in ("lhotse", "kaldifeat"))
    assert ours.shape == theirs.shape and theirs.dtype == torch.float32
    assert (ours - theirs).abs().max() < 1e-3


def test_a_missing_kaldifeat_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "kaldifeat", None)
    kaldifeat_fbank.cache_clear()
    with pytest.raises(UserError, match="--feature-extractor kaldifeat: it does not import .*setup_env.sh --kaldifeat"):
        compute_fbank(np.zeros(16000, np.float32), "kaldifeat")
