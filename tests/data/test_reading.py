"""Audio and features that cannot be read: one clear line that names file or cut."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from kdstream.corpus.fbank import compute_part
from kdstream.data.module import AsrDataModule
from support.data import (
    batches_of,
    config_of,
    error_of,
    feature_cut,
    store,
)


def test_missing_audio_names_the_file(small):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1-0003.flac"
    path.unlink()
    assert f"{path}: no such file" in error_of(lambda: store(small, ("train",)))


def test_audio_lost_between_the_stages_names_the_file_and_leaves_nothing(small):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1-0003.flac"
    kept = path.read_bytes()
    store(small, ("train",))
    shutil.rmtree(small / "fbank")
    path.unlink()
    (small / "fbank").mkdir()
    with ThreadPool(1) as pool:
        compute = partial(compute_part, small / "manifests", small / "fbank", "train", pool)
        assert str(path) in error_of(compute)
        assert list((small / "fbank").iterdir()) == []
        path.write_bytes(kept)
        compute()
    assert len(list(CutSet.from_file(small / "fbank" / "librispeech_cuts_train.jsonl.gz"))) == 6


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_truncated_audio_names_the_file(small, share):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1-0003.flac"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert str(path) in error_of(lambda: store(small, ("train",)))
    assert not (small / "fbank").exists() or list((small / "fbank").iterdir()) == []


def test_nan_in_audio_names_the_file(tmp_path):
    folder = tmp_path / "LibriSpeech" / "train" / "1" / "1"
    folder.mkdir(parents=True)
    samples = np.zeros(32000, dtype=np.float32)
    samples[777] = np.nan
    soundfile.write(folder / "1-1-0000.wav", samples, 16000, subtype="FLOAT")
    (folder / "1-1.trans.txt").write_text("1-1-0000 ONE\n")
    assert "NaN" in error_of(lambda: store(tmp_path, ("train",)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_features_name_file_and_cut(corpus, tmp_path, num_workers):
    store_dir = tmp_path / "librispeech_feats_train"
    shutil.copytree(corpus / "fbank" / "librispeech_feats_train", store_dir)
    cuts = list(CutSet.from_file(corpus / "fbank" / "librispeech_cuts_train.jsonl.gz"))
    for cut in cuts:
        cut.features.storage_path = str(store_dir / Path(cut.features.storage_path).name)
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    archive = store_dir / "feats-0.lca"
    archive.write_bytes(archive.read_bytes()[:2000])
    config = config_of(corpus, train_cuts=(str(tmp_path / "cuts.jsonl.gz"),), num_workers=num_workers)
    message = error_of(lambda: batches_of(config))
    assert str(archive) in message and "1-1-" in message
    archive.unlink()
    assert str(archive) in error_of(lambda: batches_of(config))
    assert len(batches_of(replace(config, on_the_fly_feats=True))) > 6


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", ["train", "pseudo", "unlabelled"])
def test_audio_that_training_lacks_is_named_with_manifest_and_flag(corpus, tmp_path, kind, num_workers):
    recording = Recording("lost", [AudioSource("file", [0], "/nowhere/lost.flac")], 16000, 32000, 2.0)
    cut = recording.to_cut().with_id("lost")
    cut.supervisions = [SupervisionSegment("lost", "lost", 0.0, 2.0, text="ONE TWO")]
    path = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts([cut]).to_file(path)
    config = config_of(corpus, on_the_fly_feats=True, num_workers=num_workers, **{f"{kind}_cuts": (str(path),)})
    said = "/nowhere/lost.flac: no such file; restore the file, or take cut lost out"  # not its repetition lost_repeat7
    assert error_of(lambda: batches_of(config)) == f"--{kind}-cuts: {path}: cut lost: {said}"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nan_features_name_the_cut(corpus, tmp_path, num_workers):
    features = np.zeros((200, 80), dtype=np.float32)
    features[7, 3] = np.nan
    cut = feature_cut(tmp_path, "spoilt", features, "ONE TWO")
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl.gz")
    path = (str(tmp_path / "cuts.jsonl.gz"),)
    config = config_of(corpus, train_cuts=path, valid_cuts=path, test_cuts=path, num_workers=num_workers)
    module = AsrDataModule(config, 0)
    assert "cut spoilt: features hold NaN" in error_of(lambda: list(module.train_dataloader(1)))
    assert "cut spoilt: features hold NaN" in error_of(lambda: list(module.valid_dataloader()))
    assert "cut spoilt: features hold NaN" in error_of(lambda: list(module.test_dataloaders()["cuts"]))
