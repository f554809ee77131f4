"""The embedded corpus: who speaks which sentence, and how its files are made, offline, in LibriSpeech's layout.

Speakers and sentences of train, dev and test do not overlap.  The test and dev speakers are other eSpeak voices, and
the same two neural voices at pitches that training does not have.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import torchaudio
from tqdm import tqdm

from kdstream.corpus.mini_grammar import make_parts
from kdstream.corpus.pools import results_of
from kdstream.corpus.speech_synthesis import REQUIREMENTS, synthesise
from kdstream.errors import UserError
from kdstream.files import replacing, write_text
from kdstream.units import SAMPLE_RATE

SETTINGS_FILE = "mini_corpus.json"
VERSION = 1  # of voices and sound; the grammar is part of the settings by its sentences' checksum


@dataclass(frozen=True)
class Speaker:
    """A voice at a pitch: its sound is played `pitch` times faster, and it speaks slower to make up for that."""

    part: str
    voice: str
    pitch: float
    share: int  # of the part's utterances


SPEAKERS: dict[int, Speaker] = {
    101: Speaker("train", "hibari", 0.85, 3),
    102: Speaker("train", "hibari", 0.95, 3),
    103: Speaker("train", "hibari", 1.0, 3),
    104: Speaker("train", "hibari", 1.05, 3),
    105: Speaker("train", "hibari", 1.15, 3),
    106: Speaker("train", "joe", 0.9, 3),
    107: Speaker("train", "joe", 1.0, 3),
    108: Speaker("train", "joe", 1.1, 3),
    109: Speaker("train", "espeak:en-us+m2", 1.0, 2),
    110: Speaker("train", "espeak:en-us+m5", 1.0, 2),
    111: Speaker("train", "espeak:en-us+m6", 1.0, 2),
    112: Speaker("train", "espeak:en-us+adam", 1.0, 2),
    113: Speaker("train", "espeak:en-us+f1", 1.0, 2),
    201: Speaker("dev", "hibari", 0.975, 3),
    202: Speaker("dev", "joe", 1.15, 2),
    203: Speaker("dev", "espeak:en-us+m4", 1.0, 1),
    301: Speaker("test", "hibari", 0.9, 3),
    302: Speaker("test", "hibari", 1.1, 3),
    303: Speaker("test", "joe", 0.95, 2),
    304: Speaker("test", "joe", 1.05, 2),
    305: Speaker("test", "espeak:en-us+m1", 1.0, 1),
    306: Speaker("test", "espeak:en-us+steph", 1.0, 1),
}


class Line(NamedTuple):
    """One utterance to speak."""

    speaker: int
    number: int
    text: str

    @property
    def id(self) -> str:
        return f"{self.speaker}-1-{self.number:04d}"

    def path(self, root: Path) -> Path:
        return root / SPEAKERS[self.speaker].part / str(self.speaker) / "1" / f"{self.id}.flac"


def assign_speakers(parts: dict[str, list[str]]) -> list[Line]:
    """Gives the sentences of each part to its speakers, by their shares."""
    lines = []
    for part, sentences in parts.items():
        turns = [number for number, speaker in SPEAKERS.items() if speaker.part == part for _ in range(speaker.share)]
        counts = dict.fromkeys(turns, 0)
        for index, sentence in enumerate(sentences):
            speaker = turns[index % len(turns)]
            lines.append(Line(speaker, counts[speaker], sentence))
            counts[speaker] += 1
    return lines


def speak(line: Line, seed: int) -> np.ndarray:
    """The utterance's samples (S,) at 16 kHz, which depend on the line and the seed alone.

    The pitch is the speaker's.  Tempo, loudness, the pauses around the sentence and a faint noise are random.
    """
    speaker = SPEAKERS[line.speaker]
    noise_seed = zlib.crc32(f"{seed} {line.id} {line.text}".encode())
    rng = np.random.default_rng(noise_seed)
    tempo = rng.uniform(0.85, 1.05) / speaker.pitch
    samples, rate = synthesise(speaker.voice, _as_prose(line.text), tempo, noise_seed)
    played_at = round(rate * speaker.pitch / 200) * 200  # a round rate keeps the resampling filter short
    samples = torchaudio.functional.resample(torch.from_numpy(samples), played_at, SAMPLE_RATE).numpy()
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    samples = samples * (rng.uniform(0.3, 0.9) / np.abs(samples).max())
    samples = np.pad(samples, [int(SAMPLE_RATE * rng.uniform(0.1, 0.3)) for _ in range(2)])
    noise_level = np.sqrt(np.mean(samples**2)) * 10 ** (-rng.uniform(30, 45) / 20)
    return np.clip(samples + noise_level * rng.standard_normal(len(samples)), -1, 1).astype(np.float32)


def _as_prose(text: str) -> str:
    return text.capitalize().replace(" i ", " I ") + "."


def write_speech(work: tuple[Line, Path, int]) -> None:
    """Speaks one line into its file, which is written whole or not at all."""
    line, root, seed = work
    with replacing(line.path(root)) as temporary:
        soundfile.write(temporary, speak(line, seed), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def write_lists(lines: list[Line], root: Path) -> None:
    """.trans.txt beside the audio, and SPEAKERS.TXT."""
    transcripts: dict[Path, list[str]] = {}
    for line in lines:
        folder = line.path(root).parent
        transcripts.setdefault(folder / f"{line.speaker}-1.trans.txt", []).append(f"{line.id} {line.text}\n")
    for path, rows in transcripts.items():
        write_text(path, "".join(rows))
    rows = [f"{number} | {s.part} | {s.voice} at pitch {s.pitch}\n" for number, s in SPEAKERS.items()]
    write_text(root / "SPEAKERS.TXT", ";ID | SUBSET | VOICE\n" + "".join(rows))


def claim(output_dir: Path, settings: dict[str, object]) -> bool:
    """Notes in `output_dir` what is made there.  Returns whether this very corpus is there already, finished."""
    path = output_dir / SETTINGS_FILE
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except ValueError:
            found = {}
        finished = found.pop("finished", False)
        if found != settings:
            raise UserError(
                f"{path}: another corpus is here ({found})", fix="give another --output-dir, or delete this one"
            )
        return bool(finished)
    write_text(path, json.dumps(settings) + "\n")
    return False


def make_corpus(output_dir: Path, seed: int, sizes: dict[str, int], jobs: int) -> None:
    """Makes the corpus with `sizes` utterances in its parts.  Raises UserError if a synthesiser is missing."""
    for module, requirement in REQUIREMENTS.items():
        if importlib.util.find_spec(module) is None:
            everything = " ".join(REQUIREMENTS.values())
            raise UserError(f"speech synthesiser {requirement} is missing", fix=f"pip install {everything}")
    lines = assign_speakers(make_parts(seed, sizes))
    checksum = zlib.crc32("\n".join(line.text for line in lines).encode())
    settings = {"version": VERSION, "seed": seed, "sizes": sizes, "text": checksum}
    if claim(output_dir, settings):
        print(f"{output_dir}: finished before")
        return
    root = output_dir / "LibriSpeech"
    missing = [(line, root, seed) for line in lines if not line.path(root).is_file()]
    random.Random(0).shuffle(missing)  # voices differ in speed, and the time left is guessed from the first lines
    torch.set_num_threads(1)  # in the processes too, which are forked: importing torch anew takes seconds
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        spoken = results_of(pool.imap_unordered, write_speech, missing, chunksize=8)
        for _ in tqdm(spoken, desc="speaking", total=len(missing), unit=" sentences", disable=None):
            pass
    write_lists(lines, root)
    write_text(output_dir / SETTINGS_FILE, json.dumps({**settings, "finished": True}) + "\n")
