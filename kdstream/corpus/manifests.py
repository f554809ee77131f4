"""Lhotse manifests of a corpus in LibriSpeech's layout."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from tqdm import tqdm

from kdstream.audio.files import check_header
from kdstream.data.cuts import write_manifest
from kdstream.errors import UserError


def read_transcripts(part_dir: Path) -> Iterator[tuple[Path, str, str]]:
    """Yields (folder, utterance id, text) of a part.  Raises UserError on what cannot be read."""
    seen = set()
    # not rglob, which does not follow links to directories
    found = [Path(folder) / name for folder, _, names in os.walk(part_dir, followlinks=True) for name in names]
    for transcripts in sorted(path for path in found if path.name.endswith(".trans.txt")):
        if transcripts.parent == part_dir:
            raise UserError(f"{transcripts}: lies beside the speakers' directories", fix="move it into SPEAKER/CHAPTER")
        try:
            lines = transcripts.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{transcripts}: is not in UTF-8 ({error})", fix="convert it, say with iconv") from error
        for number, line in enumerate(lines, start=1):
            utterance, _, text = line.strip().partition(" ")
            if not utterance:
                continue
            if not text.strip():
                raise UserError(
                    f"{transcripts}:{number}: {utterance} has an empty transcript", fix="fill it or take it out"
                )
            if utterance in seen:
                raise UserError(f"{transcripts}:{number}: {utterance} appears twice", fix="give each its own id")
            seen.add(utterance)
            yield transcripts.parent, utterance, text.strip()


def find_audio(folder: Path, utterance: str) -> Path:
    """The utterance's FLAC or WAV file."""
    for suffix in (".flac", ".wav"):
        if (folder / f"{utterance}{suffix}").is_file():
            return folder / f"{utterance}{suffix}"
    raise UserError(
        f"{folder / utterance}.flac: no such file", fix=f"restore it or take {utterance} out of the .trans.txt"
    )


def open_recording(path: Path, utterance: str) -> Recording:
    """Reads the header of an audio file.  Raises UserError where it does not say how much sound there is."""
    try:
        check_header(path)
        recording = Recording.from_file(path, recording_id=utterance)
    except UserError as error:
        fix = f"{error.fix}, or take {utterance} out of the .trans.txt"
        raise UserError(error.problem, fix=fix) from error
    except Exception as error:  # each audio backend of Lhotse raises its own kinds
        raise UserError(
            f"{path}: not readable as audio", fix=f"restore the file or take {utterance} out of the .trans.txt"
        ) from error
    if not recording.num_samples:
        raise UserError(f"{path}: holds no samples", fix=f"restore the file or take {utterance} out of the .trans.txt")
    return recording


def prepare_part(corpus_dir: Path, part: str, output_dir: Path) -> None:
    """Writes both manifests of one part."""
    part_dir = corpus_dir / part
    if not part_dir.is_dir():
        raise UserError(f"{part_dir}: no such directory", fix="see --corpus-dir and the names of the parts")
    recordings: list[Recording] = []
    supervisions: list[SupervisionSegment] = []
    for folder, utterance, text in tqdm(read_transcripts(part_dir), desc=part, unit=" utterances", disable=None):
        recording = open_recording(find_audio(folder, utterance), utterance)
        recordings.append(recording)
        supervisions.append(
            SupervisionSegment(
                id=utterance,
                recording_id=utterance,
                start=0.0,
                duration=recording.duration,
                language="English",
                speaker=folder.relative_to(part_dir).parts[0],
                text=text,
            )
        )
    if not recordings:
        raise UserError(f"{part_dir}: no *.trans.txt with utterances below it", fix="is this LibriSpeech's layout?")
    write_manifest(RecordingSet.from_recordings(recordings), output_dir / f"librispeech_recordings_{part}.jsonl.gz")
    write_manifest(SupervisionSet.from_segments(supervisions), output_dir / f"librispeech_supervisions_{part}.jsonl.gz")
    hours = sum(recording.duration for recording in recordings) / 3600
    speakers = len({supervision.speaker for supervision in supervisions})
    logging.info(f"{part}: {len(recordings)} utterances, {speakers} speakers, {hours:.2f} h")
