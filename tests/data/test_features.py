"""The filter bank equals those of kaldi-native-fbank and kaldifeat."""

from __future__ import annotations

import sys

import kaldi_native_fbank
import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

from kdstream.data.batch import make_batch
from kdstream.data.features import compute_fbank, kaldifeat_fbank
from kdstream.data.module import AsrDataModule
from kdstream.data.reading import read_audio
from kdstream.errors import UserError
from kdstream.models.streaming import LOG_EPS
from support.data import (
    batches_of,
    config_of,
    store,
)


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


def test_batches_are_padded_with_the_log_energy_of_silence(corpus):
    utterances = AsrDataModule(config_of(corpus), 0).test_sets()["test"]
    batch = make_batch(list(utterances))
    assert batch.features.shape == (6, int(batch.feature_lens.max()), 80)
    for features, length, utterance in zip(batch.features, batch.feature_lens, utterances, strict=True):
        assert torch.equal(features[:length], utterance.features)
        assert (features[length:] == LOG_EPS).all()
    assert batch.duration == pytest.approx(sum(len(u.features) for u in utterances) / 100)


def test_stored_features_equal_those_from_audio_up_to_their_compression(corpus):
    stored = batches_of(config_of(corpus, enable_spec_aug=False))
    computed = batches_of(config_of(corpus, enable_spec_aug=False, on_the_fly_feats=True))
    for a, b in zip(stored, computed, strict=True):
        assert a.cut_ids == b.cut_ids
        assert (a.features - b.features).abs().max() < 2**-5


def test_other_sampling_rates_are_resampled(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    folder = tmp_path / "LibriSpeech" / "test" / "1" / "1"
    folder.mkdir(parents=True)
    soundfile.write(folder / "1-1-0000.wav", tone, 44100)
    (folder / "1-1.trans.txt").write_text("1-1-0000 ONE\n")
    store(tmp_path, ("test",))
    cut = CutSet.from_file(tmp_path / "fbank" / "librispeech_cuts_test.jsonl.gz")[0]
    samples = read_audio(cut)
    assert samples.shape == (16000,) and cut.load_features().shape == (100, 80)
    expected = compute_fbank(0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000))
    peak = expected.mean(dim=0).argmax()
    assert compute_fbank(samples)[5:-5, peak].sub(expected[5:-5, peak]).abs().max() < 0.1
