"""Lhotse manifests of a corpus in LibriSpeech's layout."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from tqdm import tqdm

from kdstream.audio import kinds
from kdstream.audio.files import check_whole
from kdstream.config.sections import LIBRISPEECH
from kdstream.corpus.text_remove import REMOVE_THEM, check_no_special, removed
from kdstream.data.checks import check_frames
from kdstream.data.cuts import write_manifest
from kdstream.errors import UserError, option
from kdstream.files import read_utf8
from kdstream.units import FRAMES_PER_SECOND

SUFFIXES = (".flac", ".wav")
OTHER_SUFFIXES = {*kinds.SUFFIXES, *kinds.OTHER_SUFFIXES}.difference(SUFFIXES)
ANY_BLANK = re.compile(r"\s")  # tabs and U+2028 among them: a transcript is one line of words


def manifests_of(manifest_dir: Path, part: str, corpus: str = LIBRISPEECH) -> tuple[Path, Path]:
    """The manifests of recordings and of supervisions.  Raises UserError if they are not there."""
    paths = [manifest_dir / f"{corpus}_{kind}_{part}.jsonl.gz" for kind in ("recordings", "supervisions")]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such manifest", fix=f"run prepare.sh stage 1 for part {part}")
    return paths[0], paths[1]


def read_transcripts(part_dir: Path) -> Iterator[tuple[Path, str, str]]:
    """Yields (folder, utterance id, text) of a part.  Raises UserError on what cannot be read."""
    seen = set()
    for transcripts in sorted(path for path in _files_below(part_dir) if path.name.lower().endswith(".trans.txt")):
        if transcripts.parent == part_dir:
            raise UserError(f"{transcripts}: lies beside the speakers' directories", fix="move it into SPEAKER/CHAPTER")
        lines = read_utf8(transcripts).split("\n")  # splitlines would split at U+2028 too
        for number, line in enumerate(lines, start=1):
            utterance, *texts = line.split(maxsplit=1) or [""]
            if not utterance:
                continue
            if not texts:
                raise UserError(
                    f"{transcripts}:{number}: {utterance} has an empty transcript", fix="fill it or take it out"
                )
            if utterance in seen:
                raise UserError(f"{transcripts}:{number}: {utterance} appears twice", fix="give each its own id")
            seen.add(utterance)
            yield transcripts.parent, utterance, ANY_BLANK.sub(" ", texts[0].strip())


def _files_below(part_dir: Path) -> list[Path]:
    # not rglob, which does not follow links to directories; macOS leaves notes on a file as ._NAME
    walked = os.walk(part_dir, followlinks=True)
    return [Path(folder) / name for folder, _, names in walked for name in names if not name.startswith(".")]


def find_audio(folder: Path, utterance: str) -> Path:
    """The utterance's FLAC or WAV file.  Raises UserError, which names what lies there instead."""
    for suffix in SUFFIXES:
        if (folder / f"{utterance}{suffix}").is_file():
            return folder / f"{utterance}{suffix}"
    fix = f"restore it or take {utterance} out of the .trans.txt"
    for path in sorted(folder.iterdir()):
        if path.stem == utterance and path.suffix.lower() in SUFFIXES:
            return path
        if path.stem == utterance and path.suffix.lower() in OTHER_SUFFIXES:
            raise UserError(f"{path}: not FLAC or WAV", fix=f"convert it: ffmpeg -i {path.name} {utterance}.flac")
        if path.name == utterance:
            raise UserError(f"{path}: is named with its ending in the .trans.txt", fix=f"write {path.stem} there")
        if path.stem.lower() == utterance.lower():
            fix = f"{path.name} lies there: use the same letters, upper and lower, in the .trans.txt"
    raise UserError(f"{folder / utterance}.flac: no such file", fix=fix)


def open_recording(path: Path, recording_id: str, way_out: str) -> Recording:
    """The recording of an audio file.  Raises UserError where its header does not say how much sound there is.

    way_out: beside mending the file.
    """
    check_whole(path, way_out, needs_libsndfile=True)
    try:
        recording = Recording.from_file(path, recording_id=recording_id)
    except Exception as error:  # each audio backend of Lhotse raises its own kinds
        raise UserError(f"{path}: not readable as audio", fix=f"restore the file or {way_out}") from error
    if not recording.num_samples:
        raise UserError(f"{path}: holds no samples", fix=f"restore the file or {way_out}")
    check_frames(str(path), round(recording.duration * FRAMES_PER_SECOND), way_out)
    if recording.num_channels != 1:
        fix = f"make it mono: ffmpeg -i {path.name} -ac 1 mono{path.suffix}"
        raise UserError(f"{path}: {recording.num_channels} channels", fix=fix)
    return recording


def prepare_part(corpus_dir: Path, part: str, output_dir: Path, text_remove: str = "") -> None:
    """Writes both manifests of one part.

    text_remove: a regular expression of what is taken out of texts; utterances that it leaves no text are left out.
    """
    part_dir = corpus_dir / part
    if not part_dir.is_dir():
        there = ", ".join(sorted(path.name for path in corpus_dir.glob("*/"))) or "nothing"
        raise UserError(f"{part_dir}: no such directory", fix=f"see --corpus-dir and the names of the parts ({there})")
    recordings: list[Recording] = []
    supervisions: list[SupervisionSegment] = []
    audio: list[Path] = []  # of all utterances
    without_text: list[Path] = []
    for folder, utterance, written in tqdm(read_transcripts(part_dir), desc=part, unit=" utterances", disable=None):
        path = find_audio(folder, utterance)
        audio.append(path)
        text = removed(written, text_remove) if text_remove else written
        if not text:
            without_text.append(path)
            continue
        recording = open_recording(path, utterance, f"take {utterance} out of the .trans.txt")
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
    if without_text:
        _warn_of_files(part_dir, without_text, f"{option('text_remove', text_remove)} leaves them no text")
    if without_text and not recordings:
        fix = "give an expression that leaves words"
        raise UserError(f"{part_dir}: no text is left", flag=option("text_remove", text_remove), fix=fix)
    if not recordings:
        fix = "LibriSpeech's layout has SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, with an id and a text in each line"
        raise UserError(f"{part_dir}: no *.trans.txt with utterances below it", fix=fix)
    check_no_special((each.text or "" for each in supervisions), str(part_dir), REMOVE_THEM)
    _warn_of_audio_without_text(part_dir, audio)
    write_manifest(RecordingSet.from_recordings(recordings), output_dir / f"{LIBRISPEECH}_recordings_{part}.jsonl.gz")
    write_manifest(
        SupervisionSet.from_segments(supervisions), output_dir / f"{LIBRISPEECH}_supervisions_{part}.jsonl.gz"
    )
    hours = sum(recording.duration for recording in recordings) / 3600
    speakers = len({supervision.speaker for supervision in supervisions})
    logging.info(f"{part}: {len(recordings)} utterances, {speakers} speakers, {hours:.2f} h")


def _warn_of_audio_without_text(part_dir: Path, transcribed: Sequence[Path]) -> None:
    audio = {path for path in _files_below(part_dir) if path.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES)}
    untranscribed = sorted(audio.difference(transcribed), key=str)
    if untranscribed:
        _warn_of_files(part_dir, untranscribed, "no .trans.txt names them")


def _warn_of_files(part_dir: Path, files: Sequence[Path], why: str) -> None:
    first, more = ", ".join(map(str, files[:3])), ", ..." if len(files) > 3 else ""
    logging.warning(f"{part_dir}: {len(files)} audio files are left out, for {why}: {first}{more}")
