"""For tests of decoding: a model that says many things, its slow scores, experiments, test sets, scripts run here."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import lhotse
import numpy as np
import sentencepiece
import soundfile
import torch
from torch import Tensor

from kdstream.checkpoints.store import save_pretrained
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.models.transducer import Transducer
from support.models import tiny_test_model
from support.paths import ROOT
from support.tokenizers import ICEFALLS
from support.training import train_tokenizer

TEXTS = ("THE FIRST DAY", "A SECOND DAY CAME", "AND THEN THE THIRD", "NO MORE")
SECONDS = (1.5, 2.31, 0.4, 1.07)
NOISE_CUTS = "librispeech_cuts_noise.jsonl.gz"
SCRIPTS = {"whole": "egs/librispeech/decode.py", "chunkwise": "egs/librispeech/streaming_decode.py"}


def talkative_model(causal: bool = True, seed: int = 5, blank: float = 3.0, **overrides) -> Transducer:
    """A random model whose hypotheses have blanks (the more, the higher `blank`), repeated and different tokens."""
    model = tiny_test_model(causal, seed, **overrides)
    with torch.no_grad():
        output = model.joiner.output_linear
        output.weight.normal_(std=0.5)
        output.bias.zero_()
        output.bias[0] = blank
        model.decoder.embedding.weight.normal_(std=2.0)
    return model


@torch.no_grad()
def log_probs(model: Transducer, frame: Tensor, tokens: tuple[int, ...], blank_penalty: float = 0.0) -> Tensor:
    """(V,) after `tokens`, computed from scratch."""
    size = model.config.context_size
    context = ([-1] * (size - 1) + [0] + list(tokens))[-size:]
    logits = model.joiner(frame, model.decoder(torch.tensor([context]), need_pad=False)[0, 0])
    logits[0] -= blank_penalty
    return logits.log_softmax(dim=-1)


def noise_test_set(folder: Path) -> DataConfig:
    """A test part "noise" that says TEXTS, and a BPE model."""
    (folder / "text").write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "bpe"), vocab_size=30, hard_vocab_limit=False,
        minloglevel=3, **ICEFALLS,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    recordings, supervisions = [], []
    for n, (text, seconds) in enumerate(zip(TEXTS, SECONDS, strict=True)):
        path = folder / f"utt{n}.wav"
        loudness = np.repeat(rng.uniform(0.01, 0.5, 50), 800)[: int(seconds * 16000)]
        soundfile.write(path, loudness * rng.uniform(-1, 1, len(loudness)), 16000)
        recordings.append(lhotse.Recording.from_file(path))
        supervisions.append(lhotse.SupervisionSegment(f"utt{n}", f"utt{n}", 0, recordings[-1].duration, text=text))
    cuts = lhotse.CutSet.from_manifests(
        lhotse.RecordingSet.from_recordings(recordings), lhotse.SupervisionSet.from_segments(supervisions)
    )
    cuts.to_file(folder / NOISE_CUTS)
    return DataConfig(
        manifest_dir=str(folder),
        test_parts=("noise",),
        bpe_model=str(folder / "bpe.model"),
        max_duration=3.0,
        num_workers=0,
    )


def run_script(monkeypatch, path: str, *args: Any) -> str:
    """Runs a script of this repository as its command line would; returns its one line of error, or ""."""
    script = ROOT / path
    monkeypatch.setattr(sys, "argv", [path, *map(str, args)])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        return str(end.code)
    return ""


FEW_LAYERS = {"zipformer": (1, 1, 1), "conformer": (3,)}


def make_experiment(folder: Path, causal: bool, encoder: str = "zipformer", bpe_model: Path | None = None) -> Path:
    """An experiment directory with config.json and pretrained.pt of a small talkative model, and its tokenizer.

    bpe_model: another than that of a few English words.
    """
    bpe_model = bpe_model or train_tokenizer(folder)
    vocab_size = Tokenizer(bpe_model).vocab_size
    layers = FEW_LAYERS[encoder]
    model = talkative_model(causal, seed=1, encoder=encoder, num_encoder_layers=layers, vocab_size=vocab_size)
    with torch.no_grad():  # what is said depends on what is heard, more than on what was said before
        model.joiner.encoder_proj.weight.mul_(3.0)
        model.decoder.embedding.weight.mul_(0.4)
        model.joiner.output_linear.bias[0] = 2.0
        model.joiner.output_linear.bias[2] = -1e4  # <unk>, which not every runtime says
    exp_dir = folder / "exp"
    exp_dir.mkdir()
    ExperimentConfig(model=model.config, data=DataConfig(bpe_model=str(bpe_model))).save(exp_dir)
    save_pretrained(exp_dir, model)
    return exp_dir


def write_noise(path: Path, seconds: float, rate: int = 16000, channels: int = 1, seed: int = 0) -> Path:
    """A file of noise whose loudness changes every 50 ms, and silence for the last 50; all channels are equal."""
    generator = np.random.default_rng(seed)
    loudness = np.repeat(generator.uniform(0.01, 0.5, int(seconds * 20)), rate // 20)
    loudness[-rate // 20 :] = 0.0
    samples = loudness * generator.uniform(-1, 1, len(loudness))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack([samples] * channels, axis=1), rate)
    return path
