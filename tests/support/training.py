"""A corpus of made-up features on disk, and experiments on it, for tests of training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from lhotse import CutSet, Features, MonoCut, NumpyFilesWriter, SupervisionSegment

from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import flag_value, flags_of
from kdstream.config.sections import DataConfig, TrainConfig
from kdstream.training.start import START_FIELDS
from support.models import tiny_test_config

LETTERS = "ABCDEFGH"
FRAMES_PER_LETTER = 8
LETTERS_PER_UTTERANCE = 8


def make_corpus(directory: Path, num_utterances: int, noise: float = 0.5, equal_lengths: bool = False) -> DataConfig:
    """Writes utterances in which every letter has a sound of its own; returns the config that reads them."""
    rng, random_state = random.Random(0), np.random.RandomState(0)
    sounds = {letter: random_state.randn(80) * 2 for letter in LETTERS}
    cuts = []
    writer = NumpyFilesWriter(directory / "feats")
    for index in range(num_utterances):
        count = LETTERS_PER_UTTERANCE + (0 if equal_lengths else index % 4)
        letters = [rng.choice(LETTERS)]
        while len(letters) < count:
            letters.append(rng.choice(LETTERS.replace(letters[-1], "")))
        frames: list[np.ndarray] = []
        for letter in letters:
            length = FRAMES_PER_LETTER + (0 if equal_lengths else rng.randrange(4))
            frames += [sounds[letter]] * length + [np.full(80, -4.0)] * 5
        array = (np.stack(frames) - 6 + noise * random_state.randn(len(frames), 80)).astype(np.float32)
        text = " ".join(letters)
        cuts.append(make_cut(f"utterance-{index:02d}", array, text, writer))
    manifest, few = directory / "cuts.jsonl.gz", directory / "few.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(manifest)
    CutSet.from_cuts(cuts[:4]).to_file(few)
    return DataConfig(
        bpe_model=str(train_tokenizer(directory)),
        train_cuts=(str(manifest),),
        valid_cuts=(str(few),),
        test_cuts=(str(manifest),),
        num_workers=0,
        max_duration=5.0,
        num_buckets=2,
        enable_spec_aug=False,
    )


def make_cut(cut_id: str, features: np.ndarray, text: str, writer: NumpyFilesWriter) -> MonoCut:
    """A cut that has features (T, 80) and a text, and no audio."""
    seconds = len(features) / 100
    stored = Features(
        recording_id=cut_id,
        channels=0,
        start=0.0,
        duration=seconds,
        type="fbank",
        num_frames=len(features),
        num_features=80,
        frame_shift=0.01,
        sampling_rate=16000,
        storage_type=writer.name,
        storage_path=str(writer.storage_path),
        storage_key=writer.write(cut_id, features),
    )
    supervision = SupervisionSegment(id=cut_id, recording_id=cut_id, start=0.0, duration=seconds, text=text)
    return MonoCut(cut_id, 0.0, seconds, 0, [supervision], stored)


def train_tokenizer(directory: Path, more: Sequence[str] = ()) -> Path:
    """A sentencepiece model with icefall's first three ids, one token a letter and `more`, and its tokens.txt."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([LETTERS]),  # single letters as well: it refuses to train on nothing else
        model_prefix=str(directory / "bpe"),
        vocab_size=2 * len(LETTERS) + 4 + len(more),
        hard_vocab_limit=False,
        user_defined_symbols=["<blk>", "<sos/eos>", *(f"\u2581{letter}" for letter in LETTERS), *more],
        unk_id=2,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "bpe.model"))
    pieces = [f"{model.id_to_piece(i)} {i}\n" for i in range(model.get_piece_size())]
    (directory / "tokens.txt").write_text("".join(pieces), encoding="utf-8")
    return directory / "bpe.model"


def experiment(exp_dir: Path, data: DataConfig, causal: bool = True, **train) -> ExperimentConfig:
    """A short training of the small test model on `data`; `train` overrides TrainConfig."""
    settings = dict(
        exp_dir=str(exp_dir),
        num_epochs=2,
        tensorboard=False,
        average_period=2,
        log_interval=1,
        warm_step=20,
        lr_warmup_batches=10.0,
    )
    model = tiny_test_config(
        causal,
        chunk_size=(8, 16),
        left_context_frames=(16, 32),
        frontend_channels=(4, 8, 32),
        frontend_hidden_dim=32,
    )
    return ExperimentConfig(model=model, data=data, train=TrainConfig(**{**settings, **train}))


def typed(config: ExperimentConfig) -> list[str]:
    """All settings as flags, but those of one start alone."""
    words = []
    for section in vars(config).values():
        for item in flags_of(type(section)):
            value = getattr(section, item.name)
            if value is not None and item.name not in START_FIELDS:
                words.append(f"--{item.name.replace('_', '-')}={flag_value(value)}")
    return words
