"""The sound world that odd input is put into: a corpus of tones, its tokenizer, and small trained models."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from lhotse import CutSet
from lhotse.cut import Cut

from kdstream.commands import COMMANDS
from odd.harness import run
from support.tone_corpus import make_corpus

MODEL = (
    "--encoder conformer --preset tiny --num-encoder-layers 2 --encoder-dim 32 --feedforward-dim 48 --num-heads 2 "
    "--query-head-dim 16 --cnn-module-kernel 7 --frontend-channels 4,8,128 --frontend-hidden-dim 32 --decoder-dim 32 "
    "--joiner-dim 32"
).split()
QUICK = (
    "--num-workers 0 --tensorboard 0 --enable-spec-aug 0 --log-interval 1 --warm-step 5 --max-duration 12 "
    "--min-utterance-seconds 0.2 --average-period 1"
).split()


@dataclass(frozen=True)
class World:
    """Where all of it lies: FOLDER/corpus, FOLDER/teacher (full context, with CTC) and FOLDER/student (streaming)."""

    folder: Path

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def bpe_model(self) -> Path:
        return self.corpus / "lang" / "bpe.model"

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    @property
    def student(self) -> Path:
        return self.folder / "student"

    def manifest(self, name: str) -> Path:
        return self.corpus / f"{name}.jsonl.gz"

    def cuts(self, name: str, count: int) -> list[Cut]:
        """The first cuts of a set, read afresh."""
        return list(CutSet.from_file(self.manifest(name)))[:count]

    def audio(self, place: int) -> Path:
        """A wav of the corpus."""
        return self.corpus / "wav" / f"utterance-{place:02d}.wav"

    def copy_of(self, name: str, folder: Path) -> Path:
        """FOLDER/NAME: the model's directory anew, for a command to write into."""
        copy = folder / name
        copy.mkdir()
        for file in ("config.json", "bpe.model", "tokens.txt"):
            shutil.copy(self.folder / name / file, copy)
        for checkpoint in (self.folder / name).glob("epoch-*.pt"):
            (copy / checkpoint.name).symlink_to(checkpoint)
        return copy

    def train(self, exp_dir: Path | str, cuts: Path | str, valid: Path | str = "", *more: str) -> list[str]:
        """The flags of a short training."""
        valid = valid or self.manifest("valid")
        files = ["--train-cuts", str(cuts), "--valid-cuts", str(valid), "--bpe-model", str(self.bpe_model)]
        return ["train", "--exp-dir", str(exp_dir), *files, *MODEL, *QUICK, *more]


def warm_up() -> None:
    """Imports what each command would import, once for all; torch's optimisers import the last, for five seconds."""
    for command in COMMANDS.values():
        importlib.import_module(f"kdstream.{command.module}")
    importlib.import_module("torch._dynamo")
    torch.set_num_threads(1)  # a fork has none of its parent's threads


def make_world(folder: Path) -> World:
    """Makes the corpus and trains the models, in less than a minute."""
    world = World(folder)
    make_corpus(world.corpus)
    for exp_dir, more in ((world.teacher, ["--use-ctc", "1"]), (world.student, ["--causal", "1"])):
        argv = world.train(exp_dir, world.manifest("train"), "", "--num-epochs", "2", *more)
        outcome = run([*argv, "--test-cuts", str(world.manifest("test"))], folder)
        if outcome.status:
            raise RuntimeError(f"the sound training failed: {outcome.stderr}")
    outcome = run(["export", "--exp-dir", str(world.student), "--avg", "1"], folder)
    if outcome.status:
        raise RuntimeError(f"the export failed: {outcome.stderr}")
    (folder / "made").touch()
    return world
