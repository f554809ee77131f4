"""Small corpora of tones in the true layout of AISHELL-1, TED-LIUM 3, Common Voice and Switchboard.

Each maker writes a tree below `root`, as the corpus is unpacked, and returns the directory that Lhotse's recipe takes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from support.sound import encoded
from support.tone_corpus import LETTERS, make_text, sound
from support.tone_corpus import SAMPLE_RATE as RATE

CHARACTERS = str.maketrans(LETTERS, "一二三四五六七八")
PARTS = ("train", "dev", "test")
PAUSE = 0.5  # seconds between segments of a talk


def write_sphere(path: Path, samples: np.ndarray, rate: int, coding: str = "pcm") -> None:
    """A NIST SPHERE file of (S, channels) samples; coding: pcm (16 bits) or ulaw."""
    size = {"pcm": 2, "ulaw": 1}[coding]
    fields = {
        "channel_count": samples.shape[1],
        "sample_count": samples.shape[0],
        "sample_rate": rate,
        "sample_n_bytes": size,
        "sample_byte_format": "01" if size == 2 else "1",
        "sample_sig_bits": 8 * size,
        "sample_coding": coding,
    }
    lines = [
        f"{name} -i {value}" if isinstance(value, int) else f"{name} -s{len(value)} {value}"
        for name, value in fields.items()
    ]
    head = "\n".join(["NIST_1A", "   1024", *lines, "end_head", ""]).encode().ljust(1024)
    subtype = {"pcm": "PCM_16", "ulaw": "ULAW"}[coding]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + encoded(samples, rate, format="RAW", subtype=subtype, endian="LITTLE"))


def texts_of(rng: random.Random, count: int) -> list[str]:
    """Each of more than a second of tones."""
    texts = (make_text(rng) for _ in iter(int, 1))
    return [next(text for text in texts if len(text) > 9) for _ in range(count)]


def make_aishell(root: Path, per_speaker: int = 4) -> Path:
    """data_aishell/wav/<part>/S0002/BAC009S0002W0122.wav, and one file of transcripts, of words of characters."""
    rng = random.Random(1)
    lines = ["BAC009S0764W0999 没有 声音\n"]  # the true file has transcripts without audio too
    speakers = {"train": ("S0002", "S0003"), "dev": ("S0724",), "test": ("S0764",)}
    for part in PARTS:
        for speaker in speakers[part]:
            folder = root / "data_aishell" / "wav" / part / speaker
            folder.mkdir(parents=True)
            for number, text in enumerate(texts_of(rng, per_speaker)):
                name = f"BAC009{speaker}W{121 + number:04d}"
                soundfile.write(folder / f"{name}.wav", sound(text), RATE, subtype="PCM_16")
                lines.append(f"{name} {text.translate(CHARACTERS)}\n")
    transcripts = root / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    transcripts.parent.mkdir()
    transcripts.write_text("".join(lines), encoding="utf-8")
    return root


def talk(texts: Sequence[str], rate: int = RATE) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """(S,) texts with pauses between them, and where each begins and ends in seconds."""
    pieces, times, now = [], [], 0.0
    for text in texts:
        pause, spoken = np.zeros(round(PAUSE * RATE)), sound(text)
        times.append((now + PAUSE, now + PAUSE + len(spoken) / RATE))
        pieces += [pause, spoken]
        now = times[-1][1]
    samples = np.concatenate(pieces)
    return samples if rate == RATE else samples[:: RATE // rate], times


def make_tedlium(root: Path, segments: int = 4) -> Path:
    """legacy/<part>/sph/Speaker_2010.sph, long talks, and stm/Speaker_2010.stm."""
    rng = random.Random(2)
    talks = {
        "train": ("AaronHuey_2010X", "AdamDavidson_2008"),
        "dev": ("BillGates_2010",),
        "test": ("JimHemerly_2010",),
    }
    for part in PARTS:
        for name in talks[part]:
            texts = texts_of(rng, segments)
            samples, times = talk(texts)
            write_sphere(root / "legacy" / part / "sph" / f"{name}.sph", samples[:, None], RATE)
            lines = [f"{name} 1 inter_segment_gap 0 {PAUSE} <NA> ignore_time_segment_in_scoring\n"]
            for text, (start, end) in zip(texts, times, strict=True):
                lines.append(f"{name} 1 {name} {start:.2f} {end:.2f} <o,f0,male> {text.lower()}\n")
            stm = root / "legacy" / part / "stm" / f"{name}.stm"
            stm.parent.mkdir(parents=True, exist_ok=True)
            stm.write_text("".join(lines))
    return root


def make_commonvoice(root: Path, clips: int = 8) -> Path:
    """en/clips/*.mp3 at 32 kHz and en/{train,dev,test}.tsv; the directory above en is the recipe's."""
    rng, number = random.Random(3), 0
    columns = "client_id path sentence up_votes down_votes age gender accents variant locale segment".split()
    folder = root / "cv-corpus-13.0-2023-03-09" / "en"
    (folder / "clips").mkdir(parents=True)
    for part in PARTS:
        rows = ["\t".join(columns)]
        for text in texts_of(rng, clips if part == "train" else clips // 2):
            name, number = f"common_voice_en_{17000000 + number}.mp3", number + 1
            (folder / "clips" / name).write_bytes(encoded(np.repeat(sound(text), 2), 2 * RATE, format="MP3"))
            sentence = f"{text[0]}{text[1:].lower()}."
            rows.append("\t".join([f"{part}{number % 2}", name, sentence, "2", "0", "", "", "", "", "en", ""]))
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n")
    return folder.parent


def make_switchboard(root: Path, calls: int = 4, segments: int = 3) -> Path:
    """LDC97S62/swb1/sw02001.sph, two channels at 8 kHz in mu-law, and swb_ms98_transcriptions beside LDC97S62."""
    rng = random.Random(4)
    for call in range(2001, 2001 + calls):
        channels = []
        for side in "AB":
            texts = texts_of(rng, segments)
            samples, times = talk(texts, 8000)
            channels.append(samples)
            name = f"sw{call}{side}-ms98-a"
            lines = [f"{name}-0001 0.000000 {PAUSE:.6f} [silence]"]
            for number, (text, (start, end)) in enumerate(zip(texts, times, strict=True), start=2):
                lines.append(f"{name}-{number:04d} {start:.6f} {end:.6f} {text.lower()}")
            folder = root / "swb_ms98_transcriptions" / str(call)[:2] / str(call)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}-trans.text").write_text("\n".join(lines) + "\n")
        longest = max(map(len, channels))
        both = np.stack([np.pad(samples, (0, longest - len(samples))) for samples in channels], axis=1)
        write_sphere(root / "LDC97S62" / "swb1" / f"sw0{call}.sph", both, 8000, "ulaw")
    return root / "LDC97S62"
