"""A stand-in for faster-whisper: what it hears in a stretch of sound is planted by the loudness of the sound."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment

RATE = 16000


class Said(NamedTuple):
    """What is planted; by default a sentence that no rule drops."""

    text: str
    avg_logprob: float = -0.1
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.01


@dataclass
class VadOptions:
    max_speech_duration_s: float
    min_silence_duration_ms: int


class StandIn:
    """Installed by `install`.

    planted: by loudness, in tenths, what is said.
    heard: the loudnesses of each batch so far.
    before: called before each batch is heard.
    options: of the last batch.
    """

    def __init__(self, planted: Mapping[int, Said]) -> None:
        self.planted, self.heard = planted, []
        self.before: Callable[[int], None] = lambda batches: None
        self.options: dict[str, Any] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> StandIn:
        package, vad = types.ModuleType("faster_whisper"), types.ModuleType("faster_whisper.vad")
        package.__dict__.update(WhisperModel=Model, BatchedInferencePipeline=lambda model: self)
        vad.__dict__.update(VadOptions=VadOptions, get_speech_timestamps=loud_spans)
        monkeypatch.setitem(sys.modules, "faster_whisper", package)
        monkeypatch.setitem(sys.modules, "faster_whisper.vad", vad)
        return self

    def transcribe(self, samples: np.ndarray, clip_timestamps: list[dict[str, float]], **options: Any) -> Any:
        self.before(len(self.heard))
        clips = [(int(clip["start"] * RATE), int(clip["end"] * RATE)) for clip in clip_timestamps]  # as it rounds them
        assert clips[0][0] == 0 and clips[-1][1] == len(samples) and samples.dtype == np.float32
        levels = [loudness(samples[begin:end]) for begin, end in clips]
        self.heard.append(levels)
        self.options = options
        said = [self.planted[level] for level in levels]
        return (types.SimpleNamespace(**each._replace(text=f" {each.text}")._asdict()) for each in said), None


class Model:
    """faster_whisper.WhisperModel, with the tokens "a", "7", "$" and the end."""

    supported_languages = ["en", "de"]

    def __init__(self, folder: str, **options: Any) -> None:
        if Path(folder, "model.bin").read_bytes() == b"damaged":
            raise RuntimeError("File model.bin is incomplete")
        assert options["local_files_only"]
        self.hf_tokenizer = self.model = self.feature_extractor = self
        self.mel_filters = np.zeros((80, 201))
        self.n_mels = 128 if Path(folder, "model.bin").read_bytes() == b"large-v3" else 80

    def token_to_id(self, token: str) -> int:
        assert token == "<|endoftext|>"
        return 3

    def decode_batch(self, batch: list[list[int]]) -> list[str]:
        return [["a", "7", "$"][index] for (index,) in batch]


def loudness(samples: np.ndarray) -> int:
    return round(float(np.abs(samples).max()) * 10)


def loud_spans(samples: np.ndarray, options: VadOptions) -> Iterator[dict[str, int]]:
    """Stretches without a silence of the least length, of the largest length at most."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    silent = round(options.min_silence_duration_ms * RATE / 1000)
    spans = []
    for stretch in np.split(loud, np.flatnonzero(np.diff(loud) > silent) + 1) if len(loud) else []:
        most = round(options.max_speech_duration_s * RATE)
        for begin in range(int(stretch[0]), int(stretch[-1]) + 1, most):
            spans.append({"start": begin, "end": min(begin + most, int(stretch[-1]) + 1)})
    return spans


def sound(*parts: tuple[int, float]) -> np.ndarray:
    """Stretches of a loudness in tenths, and of some seconds."""
    return np.concatenate([np.full(round(seconds * RATE), level / 10) for level, seconds in parts])


def write_cuts(folder: Path, sounds: Mapping[str, np.ndarray], texts: Mapping[str, str] | None = None) -> Path:
    """A manifest of recordings, with transcripts where there are some."""
    cuts = []
    for name, samples in sounds.items():
        path = folder / f"{name}.wav"
        soundfile.write(path, samples, RATE, subtype="FLOAT")
        cut = Recording.from_file(path).to_cut()
        cut.id = name
        if texts and name in texts:
            cut.supervisions = [
                SupervisionSegment(f"of {name}", cut.recording_id, 0.0, cut.duration, text=texts[name], speaker="bob")
            ]
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(folder / "given.jsonl.gz")
    return folder / "given.jsonl.gz"


def write_model(folder: Path) -> Path:
    """The files that a model must have."""
    folder.mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder
