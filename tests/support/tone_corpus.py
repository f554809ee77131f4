"""A small corpus of tones on disk, made without kdstream: wav, features, cuts, and a tokenizer."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import sentencepiece
import soundfile
from lhotse import CutSet, Fbank, FbankConfig, MonoCut, NumpyFilesWriter, Recording, SupervisionSegment
from lhotse.cut import Cut

SAMPLE_RATE = 16000
LETTERS = "ABCDEFGH"
LETTER_SECONDS = 0.12
SETS = {"train": range(16), "valid": range(2), "test": range(16)}
NOISE = 0.02
FBANK = Fbank(FbankConfig(num_filters=80, dither=0.0, snip_edges=False, low_freq=20.0, high_freq=-400.0))


def make_corpus(folder: Path) -> None:
    """Writes FOLDER/{train,valid,test}.jsonl.gz and what they name, and FOLDER/lang/{bpe.model,tokens.txt}.

    Paths in the manifests begin with `folder`, as it is given.
    """
    rng, noise = random.Random(0), np.random.RandomState(0)
    texts = [make_text(rng) for _ in range(max(SETS["train"]) + 1)]
    (folder / "wav").mkdir(parents=True)
    (folder / "lang").mkdir()
    writer = NumpyFilesWriter(folder / "feats")
    cuts = []
    for index, text in enumerate(texts):
        samples = sound(text)
        samples += NOISE * noise.randn(len(samples))
        path = folder / "wav" / f"utterance-{index:02d}.wav"
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        cuts.append(make_cut(path, text, writer))
    for name, places in SETS.items():
        CutSet.from_cuts(cuts[place] for place in places).to_file(folder / f"{name}.jsonl.gz")
    train_tokenizer(folder / "lang", texts)


def make_text(rng: random.Random) -> str:
    """Words of one to three letters, none of which follows itself."""
    return " ".join("".join(rng.sample(LETTERS, rng.randint(1, 3))) for _ in range(rng.randint(3, 8)))


def sound(text: str) -> np.ndarray:
    """A tone for each letter, and a short silence between words."""
    times = np.arange(round(LETTER_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    silence = np.zeros(len(times) // 2)
    pitches = {letter: 250.0 * 1.4**place for place, letter in enumerate(LETTERS)}
    pieces = [0.3 * np.sin(2 * np.pi * pitches[letter] * times) if letter in pitches else silence for letter in text]
    return np.concatenate(pieces)


def make_cut(path: Path, text: str, writer: NumpyFilesWriter) -> Cut:
    """A cut of a whole recording, with stored features."""
    recording = Recording.from_file(path)
    supervision = SupervisionSegment(recording.id, recording.id, 0.0, recording.duration, text=text)
    cut = MonoCut(recording.id, 0.0, recording.duration, 0, [supervision], recording=recording)
    return cut.compute_and_store_features(FBANK, writer)


def train_tokenizer(folder: Path, texts: list[str]) -> None:
    """bpe.model with icefall's first three ids, and its tokens.txt."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "bpe"),
        model_type="char",
        vocab_size=len(LETTERS) + 4,
        user_defined_symbols=["<blk>", "<sos/eos>"],
        unk_id=2,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    pieces = [f"{model.id_to_piece(i)} {i}\n" for i in range(model.get_piece_size())]
    (folder / "tokens.txt").write_text("".join(pieces), encoding="utf-8")
