"""Transforms: each is on where its flag says so, in the order of the table; noise is as loud as it is asked to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Fbank, FbankConfig, LilcomChunkyWriter, Recording
from lhotse.cut import Cut, MixedCut

from kdstream.config.sections import DataConfig
from kdstream.data.augment import (
    MUSAN_CUTS,
    Augmentation,
    Epoch,
    active_transforms,
    read_noise,
    spec_augment,
    without_transforms,
)
from kdstream.data.batch import Utterance
from kdstream.data.features import FBANK
from kdstream.data.reading import read_audio
from support.data import batches_of, config_of, error_of


def test_every_transform_has_its_flag_and_is_off_without_it():
    config = replace(DataConfig(), enable_spec_aug=False, enable_musan=False)
    assert active_transforms(config) == []
    assert active_transforms(replace(config, enable_spec_aug=True)) == ["spec-augment"]
    assert without_transforms(replace(config, enable_musan=True, enable_spec_aug=True)) == config
    assert active_transforms(replace(config, enable_musan=True, enable_spec_aug=True)) == ["musan", "spec-augment"]


@pytest.mark.parametrize("frames", [5, 40, 1500])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.5])
def test_few_masks_in_time_hide_no_more_than_the_ratio_says(frames: int, ratio: float):
    config = DataConfig(time_mask_ratio=ratio, spec_aug_time_warp_factor=0)
    features = torch.randn(frames, 80)
    for number in range(20):
        mask = spec_augment(config, Epoch(0, number))
        changed = mask(Utterance("a", "", features, second=features))
        for view in (changed.features, changed.second):
            assert (view != features).all(dim=1).sum() <= 0.15 * ratio * frames
            assert 0 < (view != features).all(dim=0).sum() < 54 or torch.equal(view, features)
        assert len(mask(Utterance("a", "", features)).features) == frames


def write_cut(folder: Path, name: str, samples: np.ndarray, rate: int) -> Cut:
    soundfile.write(folder / f"{name}.wav", samples, rate, subtype="FLOAT")
    return Recording.from_file(folder / f"{name}.wav", recording_id=name).to_cut()


def power(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples)))


@pytest.mark.parametrize("noise_rate", [16000, 22050])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_noise_is_mixed_at_the_ratio_asked_for_whatever_the_rates_are(tmp_path, rate, noise_rate):
    rng = np.random.default_rng(rate)
    noise = write_cut(tmp_path, "noise", 0.05 * rng.standard_normal(12 * noise_rate), noise_rate)
    CutSet.from_cuts([noise]).to_file(tmp_path / MUSAN_CUTS)
    config = DataConfig(manifest_dir=str(tmp_path), enable_spec_aug=False, enable_musan=True, on_the_fly_feats=True)
    augmentation = Augmentation(config, Epoch(seed=1, epoch=1))
    mixed = 0
    for index in range(12):
        seconds = rng.uniform(1.0, 3.0)
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
        cut = write_cut(tmp_path, f"tone-{index}", tone, rate)
        changed = augmentation.change_cut(cut, from_audio=True)
        clean, heard = (read_audio(which).numpy() for which in (cut, changed))
        assert len(clean) == len(heard)
        if not isinstance(changed, MixedCut):
            assert np.array_equal(clean, heard)
            continue
        mixed += 1
        (asked,) = {track.snr for track in changed.tracks[1:]}
        assert 10 <= asked <= 20
        assert 10 * np.log10(power(clean) / power(heard - clean)) == pytest.approx(asked, abs=0.1)
    assert mixed >= 2


@pytest.mark.parametrize("noise_seconds", [1, 4])
def test_noise_is_as_loud_in_stored_features_as_in_audio(tmp_path, noise_seconds):
    """White noise stands for speech too: its power is the same in each frame and each band."""
    rng = np.random.default_rng(0)

    def write(name: str, seconds: int) -> Cut:
        cut = write_cut(tmp_path, name, 0.1 * rng.standard_normal(seconds * 16000), 16000)
        return cut.compute_and_store_features(FBANK, LilcomChunkyWriter(tmp_path / name))

    CutSet.from_cuts([write("noise", noise_seconds)]).to_file(tmp_path / MUSAN_CUTS)
    config = DataConfig(manifest_dir=str(tmp_path), enable_spec_aug=False, enable_musan=True)
    mixed = 0
    for index in range(6):
        cut = write(f"speech-{index}", 4)
        in_audio, in_features = (
            Augmentation(replace(config, on_the_fly_feats=from_audio), Epoch(seed=1, epoch=1)).change_cut(
                cut, from_audio
            )
            for from_audio in (True, False)
        )
        assert isinstance(in_audio, MixedCut) == isinstance(in_features, MixedCut)
        if not isinstance(in_audio, MixedCut):
            continue
        mixed += 1
        clean, heard = (np.exp(which.load_features()).mean(axis=1) for which in (cut, in_features))
        (asked,) = {track.snr for track in in_audio.tracks[1:]}
        assert 10 * np.log10(clean.mean() / (heard - clean).mean()) == pytest.approx(asked, abs=0.2)
    assert mixed >= 2


def test_noise_with_features_of_another_kind_is_refused_where_features_are_mixed(tmp_path):
    noise = write_cut(tmp_path, "noise", 0.05 * np.random.default_rng(0).standard_normal(160000), 16000)
    extractor = Fbank(FbankConfig(num_filters=40))
    CutSet.from_cuts([noise.compute_and_store_features(extractor, LilcomChunkyWriter(tmp_path / "feats"))]).to_file(
        tmp_path / MUSAN_CUTS
    )
    assert len(read_noise(tmp_path / MUSAN_CUTS, from_audio=True)) == 1
    message = error_of(lambda: read_noise(tmp_path / MUSAN_CUTS, from_audio=False))
    assert f"{tmp_path / MUSAN_CUTS}: cut {noise.id}: stored features are kaldi-fbank of 40 bins" in message
    assert "--on-the-fly-feats 1" in message


@pytest.mark.parametrize("on_the_fly", [True, False])
def test_noise_that_lacks_what_is_mixed_is_named(corpus, tmp_path, on_the_fly):
    """Recordings where features are computed, and stored features where those are read."""
    noise = write_cut(tmp_path, "noise", 0.05 * np.random.default_rng(0).standard_normal(160000), 16000)
    if on_the_fly:
        noise = noise.compute_and_store_features(FBANK, LilcomChunkyWriter(tmp_path / "feats")).drop_recording()
    CutSet.from_cuts([noise]).to_file(tmp_path / MUSAN_CUTS)
    train = str(corpus / "fbank" / "librispeech_cuts_train.jsonl.gz")
    config = config_of(corpus, manifest_dir=str(tmp_path), train_cuts=(train,), enable_musan=True)
    message = error_of(lambda: batches_of(replace(config, on_the_fly_feats=on_the_fly)))
    assert f"{tmp_path / MUSAN_CUTS}: holds cuts without {'recordings' if on_the_fly else 'stored features'}" in message
    assert batches_of(replace(config, on_the_fly_feats=not on_the_fly))
