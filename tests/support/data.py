"""Small speech in LibriSpeech's layout that several tests share."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, NumpyFilesWriter

from kdstream.config.sections import DataConfig
from kdstream.corpus.bpe import train_bpe_model, transcripts_of_parts
from kdstream.corpus.fbank import compute_part
from kdstream.corpus.manifests import prepare_part
from kdstream.data.batch import Batch
from kdstream.data.module import AsrDataModule
from kdstream.errors import UserError
from support.training import make_cut

WORDS = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE".split()


def make_part(root: Path, part: str, speaker: int, count: int, seed: int) -> list[str]:
    """Noise and tones in LibriSpeech's layout; returns the paths of the audio."""
    rng = np.random.default_rng(seed)
    folder = root / "LibriSpeech" / part / str(speaker) / "1"
    folder.mkdir(parents=True)
    lines, paths = [], []
    for index in range(count):
        name = f"{speaker}-1-{index:04d}"
        seconds = rng.uniform(1.2, 3.0)
        tone = np.sin(2 * np.pi * rng.uniform(200, 800) * np.arange(int(16000 * seconds)) / 16000)
        paths.append(str(folder / f"{name}.flac"))
        soundfile.write(paths[-1], 0.3 * tone + 0.01 * rng.standard_normal(len(tone)), 16000)
        lines.append(f"{name} {' '.join(rng.choice(WORDS, 4))}\n")
    (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return paths


def batches_of(config: DataConfig, epoch: int = 1, seed: int = 7, **arguments) -> list[Batch]:
    return list(AsrDataModule(config, seed).train_dataloader(epoch, **arguments))


def store(root: Path, parts: tuple[str, ...], perturb_speed: bool = False) -> None:
    """Stages 1 and 3 of prepare.sh, in this process."""
    (root / "manifests").mkdir(exist_ok=True)
    (root / "fbank").mkdir(exist_ok=True)
    for part in parts:
        prepare_part(root / "LibriSpeech", part, root / "manifests")
        with ThreadPool(1) as pool:
            compute_part(root / "manifests", root / "fbank", part, pool, part == "train", perturb_speed)


def train_tokenizer(root: Path, vocab_size: int = 30) -> Path:
    lang = root / f"lang_bpe_{vocab_size}"
    lang.mkdir()
    texts = transcripts_of_parts(root / "manifests", "train")
    (lang / "transcript_words.txt").write_text("\n".join(texts))
    train_bpe_model(lang / "transcript_words.txt", lang, vocab_size)
    return lang / "bpe.model"


def config_of(root: Path, **changes) -> DataConfig:
    config = DataConfig(
        manifest_dir=str(root / "fbank"),
        bpe_model=str(root / "lang_bpe_30" / "bpe.model"),
        max_duration=8.0,
        num_buckets=3,
        num_workers=0,
        spec_aug_time_warp_factor=30,  # 80 would leave utterances below 1.6 s alone
    )
    return replace(config, **changes)


def error_of(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and ";" in message  # what; the fix
    return message


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert [b.cut_ids for b in ours] == [b.cut_ids for b in theirs]
    assert [b.texts for b in ours] == [b.texts for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.features, b.features)
        assert torch.equal(a.feature_lens, b.feature_lens)


def feature_cut(directory: Path, name: str, features: np.ndarray, text: str) -> MonoCut:
    """A cut with features and no audio."""
    return make_cut(name, features, text, NumpyFilesWriter(directory / "feats"))
