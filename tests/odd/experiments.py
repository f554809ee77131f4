"""Odd features, tokenizers, checkpoints and config.json, and odd values of flags."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from lhotse import CutSet, Fbank, FbankConfig, Mfcc, NumpyFilesWriter

from kdstream.commands import COMMANDS
from odd import accounts
from odd.harness import Case, Outcome
from odd.manifests import COUNT, ODD_VALUES, case_of, places
from odd.world import World
from support.tokenizers import ICEFALLS

# Commands that read stored features.
READ_FEATURES = ("train", "train, validation", "pseudo-label", "cache-teacher", "validate-manifest")


def odd_features(world: World, rng: random.Random, folder: Path) -> Case:
    """Stored features of another kind, or damaged ones."""
    cuts = world.cuts("test", COUNT)
    place = rng.randrange(COUNT)
    what = rng.choice(["40 bins", "mfcc", "20 ms", "NaN", "infinity", "gone", "cut short", "no bytes", "all are loud"])
    others: dict[str, Any] = {
        "40 bins": Fbank(FbankConfig(num_filters=40)),
        "mfcc": Mfcc(),
        "20 ms": Fbank(FbankConfig(num_filters=80, frame_shift=0.02)),
    }
    writer = NumpyFilesWriter(folder / "feats")
    must = "refuse"
    if what in others:
        for n in range(COUNT) if rng.random() < 0.5 else (place,):
            cuts[n] = cuts[n].drop_features().compute_and_store_features(others[what], writer)
    else:
        array = cuts[place].load_features().copy()
        array[rng.randrange(len(array)), rng.randrange(80)] = {"NaN": math.nan, "infinity": math.inf}.get(what, 0.0)
        if what == "all are loud":
            array, must = np.abs(array) * 1e4, ""
        features = cuts[place].features
        features.storage_path = str(writer.storage_path)
        features.storage_key = writer.write(f"odd-{place}", array)
        stored = Path(writer.storage_path) / features.storage_key
        if what == "gone":
            stored.unlink()
        elif what in ("cut short", "no bytes"):
            stored.write_bytes(b"" if what == "no bytes" else stored.read_bytes()[:1000])
    manifest = folder / "cuts.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(manifest)
    command = rng.choice(READ_FEATURES)
    return case_of(
        world,
        rng,
        folder,
        "features",
        f"features: {what}",
        manifest,
        [cut.id for cut in cuts],
        command=command,
        must=must,
    )


def odd_tokenizer(world: World, rng: random.Random, folder: Path) -> Case:
    """A --bpe-model that is damaged or of another kind."""
    path = folder / "odd.model"
    sound = world.bpe_model.read_bytes()
    what = rng.choice(
        ["no bytes", "text", "cut short", "bytes", "gone", "directory", "own ids", "fallback", "word", "more"]
    )
    must = "refuse"
    if what in ("no bytes", "text", "bytes", "cut short"):
        content = {"no bytes": b"", "text": b"<blk> 0\n", "bytes": rng.randbytes(500)}
        path.write_bytes(content.get(what, sound[: rng.randrange(1, len(sound))]))
    elif what == "directory":
        path.mkdir()
    elif what != "gone":
        must = _train_other_tokenizer(world, path, what)
    if rng.random() < 0.5:
        argv = world.train(folder / "exp", world.manifest("test"), "", "--max-train-batches", "2")
        argv[argv.index("--bpe-model") + 1] = str(path)
        ids = [cut.id for cut in world.cuts("test", 99)]
        return Case(
            "tokenizer",
            f"{what}, train",
            argv,
            ["odd.model", "--bpe-model"],
            lambda _: accounts.trained(folder / "exp", ids),
            must,
        )
    exp_dir = world.copy_of("student", folder)
    argv = ["streaming-decode", "--exp-dir", str(exp_dir), "--avg", "1", "--bpe-model", str(path)]
    return Case("tokenizer", f"{what}, streaming-decode", argv, ["odd.model"], must="refuse")


def _train_other_tokenizer(world: World, path: Path, what: str) -> str:
    """What must become of it in training."""
    texts = [cut.supervisions[0].text for cut in world.cuts("train", 99)] * 4
    kinds: dict[str, tuple[dict[str, Any], str]] = {
        "own ids": (dict(vocab_size=12, model_type="char"), "refuse"),
        "fallback": (dict(vocab_size=290, byte_fallback=True, hard_vocab_limit=False, **ICEFALLS), "handle"),
        "word": (dict(vocab_size=20, model_type="word", hard_vocab_limit=False, **ICEFALLS), ""),
        "more": (dict(vocab_size=16, hard_vocab_limit=False, **ICEFALLS), "handle"),
    }
    settings, must = kinds[what]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(path.with_suffix("")), minloglevel=2, num_threads=1, **settings
    )
    return must


def odd_checkpoint(world: World, rng: random.Random, folder: Path) -> Case:
    """A checkpoint that is damaged, of another model, or no checkpoint."""
    exp_dir = world.copy_of("student", folder)
    path = exp_dir / "epoch-2.pt"
    raw = path.read_bytes()
    path.unlink()
    names = [
        "no bytes",
        "bytes",
        "cut short",
        "flipped",
        "gone",
        "directory",
        "a list",
        "a tensor",
        "no model",
        "keys",
        "shapes",
    ]
    what, must = rng.choice([*names, "NaN", "pickled object", "no model_avg", "half", "another model"]), "refuse"
    if what in ("no bytes", "bytes", "cut short", "flipped"):
        path.write_bytes(_damaged(raw, what, rng))
    elif what == "directory":
        path.mkdir()
    elif what == "another model":
        shutil.copy(world.teacher / "epoch-2.pt", path)
    elif what != "gone":
        must = _save_odd(world, path, what, rng)
    audio = str(world.audio(0))
    exp_names = ["epoch-2.pt", "student"]
    makers: dict[str, list[str]] = {
        "transcribe": ["transcribe", "--exp-dir", str(exp_dir), "--epoch", "2", "--avg", "1", audio],
        "decode": ["streaming-decode", "--exp-dir", str(exp_dir), "--epoch", "2", "--avg", "1"],
        "export": ["export", "--exp-dir", str(exp_dir), "--epoch", "2", "--avg", "1"],
        "resume": world.train(
            exp_dir, world.manifest("train"), "", "--num-epochs", "3", "--resume", "1", "--causal", "1"
        ),
        "teach": world.train(
            folder / "exp", world.manifest("train"), "", "--max-train-batches", "2", "--causal", "1",
            "--teacher-exp-dir", str(exp_dir), "--teacher-epoch", "2",
        ),
    }  # fmt: skip
    command = rng.choice(list(makers))
    if (what == "no model_avg" and command == "resume") or command == "resume" and what in ("gone", "directory"):
        must = ""
    return Case("checkpoint", f"{what}, {command}", makers[command], exp_names, must=must)


def _damaged(raw: bytes, what: str, rng: random.Random) -> bytes:
    if what == "flipped":
        flipped = bytearray(raw)
        flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    return {"no bytes": b"", "bytes": rng.randbytes(5000)}.get(what, raw[: rng.randrange(1, len(raw))])


class Foreign:
    """Something that no checkpoint holds."""


def _save_odd(world: World, path: Path, what: str, rng: random.Random) -> str:
    """Writes the checkpoint; returns what must become of it."""
    saved: Any = torch.load(world.student / "epoch-2.pt", weights_only=True)
    model = saved["model"]
    key = rng.choice([name for name, tensor in model.items() if tensor.is_floating_point() and tensor.ndim])
    must = "refuse"
    if what == "a list":
        saved = [1, 2]
    elif what == "a tensor":
        saved = torch.zeros(3)
    elif what == "no model":
        del saved["model"]
    elif what == "no model_avg":
        saved["model_avg"] = None
    elif what == "pickled object":
        saved["more"] = Foreign()
    for weights in (model, saved["model_avg"]) if isinstance(saved, dict) and saved.get("model_avg") else (model,):
        if what == "keys":
            weights["odd." + key] = weights.pop(key)
        elif what == "shapes":
            weights[key] = torch.zeros(7, 7, 7)
        elif what == "NaN":
            weights[key] = weights[key] * math.nan
        elif what == "half":
            weights[key], must = weights[key].half(), ""
    torch.save(saved, path)
    return must


def odd_config(world: World, rng: random.Random, folder: Path) -> Case:
    """A config.json that is damaged, or holds an odd value."""
    exp_dir = world.copy_of("student", folder)
    path = exp_dir / "config.json"
    settings = json.loads(path.read_text())
    if rng.random() < 0.3:
        raw = path.read_bytes()
        contents = {
            "no bytes": b"", "cut short": raw[: rng.randrange(1, len(raw) - 2)], "a list": b"[]", "null": b"null",
            "a number": b"1", "mark": b"\xef\xbb\xbf" + raw, "no text": rng.randbytes(100), "twice": raw + raw,
            "version": b'{"version": 99}', "odd version": b'{"version": "x"}',
        }  # fmt: skip
        what = rng.choice(list(contents))
        path.write_bytes(contents[what])
        must = "" if what == "mark" else "refuse"
    else:
        place, name = rng.choice(list(places(settings)))
        before, must = place[name], ""
        place[name] = rng.choice(ODD_VALUES)
        what = f"{name} {before!r} is {place[name]!r}"[:90]
        path.write_text(json.dumps(settings))
    audio = str(world.audio(0))
    makers = {
        "transcribe": ["transcribe", "--exp-dir", str(exp_dir), "--avg", "1", audio],
        "decode": ["streaming-decode", "--exp-dir", str(exp_dir), "--avg", "1"],
        "resume": ["train", "--exp-dir", str(exp_dir), "--num-epochs", "3", "--resume", "1"],
        "teach": world.train(
            folder / "exp", world.manifest("train"), "", "--max-train-batches", "2", "--causal", "1",
            "--teacher-exp-dir", str(exp_dir),
        ),
    }  # fmt: skip
    command = rng.choice(list(makers))
    names = ["config.json", "--", str(exp_dir)]
    return Case("config.json", f"{what}, {command}", makers[command], names, must=must)


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    """A command's parser, without running the command."""

    class Found(Exception):
        pass

    found: list[argparse.ArgumentParser] = []

    def parse_args(self: argparse.ArgumentParser, *_: Any) -> None:
        found.append(self)
        raise Found

    original, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, parse_args  # type: ignore
    try:
        importlib.import_module(f"kdstream.{COMMANDS[command].module}").main([])
    except Found:
        pass
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore
    return found[0]


FLAG_VALUES = [
    "0", "1", "-1", "2", "3", "0.5", "-0.5", "nan", "inf", "-inf", "1e30", "1e-30", "", " ", "x", "x" * 300, "1,2",
    "1,,2", ",", "8,16,-1", "-1,-2", "true", "None", "../x", "é", "*", "0x10", "7", "100000",
]  # fmt: skip
# Flags that ask for a long or large piece of work, where a number is no odd one.
LABOUR = {
    "num-epochs", "world-size", "num-workers", "save-every-n", "valid-interval", "help", "inf-check", "exp-dir",
    "print-diagnostics", "microphone", "check", "output", "lang-dir", "results-json", "device", "port", "num-threads",
}  # fmt: skip
DIMENSIONS = ("dim", "layers", "heads", "kernel", "channels", "size", "frames", "context", "heads")


def odd_flag(world: World, rng: random.Random, folder: Path) -> Case:
    """A flag, or two, with odd values."""
    bases: dict[str, list[str]] = {
        "train": world.train(folder / "exp", world.manifest("test"), "", "--max-train-batches", "2", "--causal", "1"),
        "decode": ["decode", "--exp-dir", str(world.copy_of("student", folder)), "--avg", "1"],
        "streaming-decode": ["streaming-decode", "--exp-dir", str(folder / "student"), "--avg", "1"],
        "transcribe": ["transcribe", "--exp-dir", str(folder / "student"), "--avg", "1", str(world.audio(0))],
        "export": ["export", "--exp-dir", str(folder / "student"), "--avg", "1"],
        "align": ["align", "--exp-dir", str(world.copy_of("teacher", folder)), "--avg", "1"],
        "cache-teacher": [
            "cache-teacher", "--teacher-exp-dir", str(world.teacher), "--output", str(folder / "cache"),
            "--num-workers", "0",
        ],
        "train-bpe-model": [
            "train-bpe-model", "--cuts", str(world.manifest("test")), "--vocab-size", "12",
            "--lang-dir", str(folder / "l"),
        ],
    }  # fmt: skip
    command = rng.choice(["train", *bases])
    flags = [flag for action in parser_of(command)._actions for flag in action.option_strings if flag.startswith("--")]
    chosen = rng.sample([flag for flag in flags if flag[2:] not in LABOUR], rng.choice([1, 1, 2]))
    argv, values = list(bases[command]), []
    for flag in chosen:
        value = rng.choice(FLAG_VALUES)
        if value in ("100000", "1_000") and any(word in flag for word in DIMENSIONS):
            value = "5"
        argv.append(f"{flag}={value}")
        values.append(value)
    what = " ".join(argv[len(bases[command]) :])

    def check(outcome: Outcome) -> str:
        return "NaN was taken" if "=nan" in what and not any(f"{flag}=nan" in what for flag in TEXTS) else ""

    return Case("flags", f"{command} {what}"[:100], argv, [*chosen, "--", *values], check)


TEXTS = [
    "--system", "--manifest-dir", "--train-parts", "--dev-parts", "--test-parts", "--alignments", "--teacher-model",
    "--teacher-checkpoint", "--kd-similarity-file", "--teacher-bpe-model", "--parts", "--kd-layers", "--prefix",
]  # fmt: skip
