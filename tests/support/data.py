"""Small speech in LibriSpeech's layout that several tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from kdstream.config.sections import DataConfig
from kdstream.data.batch import Batch
from kdstream.data.module import AsrDataModule

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
