"""Makes Lhotse manifests of a corpus in LibriSpeech's layout.

    python local/prepare_manifests.py --corpus-dir download/LibriSpeech --parts train-clean-5,dev-clean-2 \
        --output-dir data/manifests

reads CORPUS_DIR/<part>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt with the audio (.flac or
.wav) beside it and writes librispeech_{recordings,supervisions}_<part>.jsonl.gz.  Any names of parts do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from tqdm import tqdm

from kdstream.config.flags import parser_of
from kdstream.errors import UserError


def read_transcripts(part_dir: Path) -> Iterator[tuple[Path, str, str]]:
    """Yields (folder, utterance id, text) of a part.  Raises UserError on what cannot be read."""
    seen = set()
    # not rglob, which passes by directories that are links
    found = [Path(folder) / name for folder, _, names in os.walk(part_dir, followlinks=True) for name in names]
    for transcripts in sorted(path for path in found if path.name.endswith(".trans.txt")):
        if transcripts.parent == part_dir:
            raise UserError(f"{transcripts}: lies beside the speakers' directories; move it into one, SPEAKER/CHAPTER")
        try:
            lines = transcripts.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{transcripts}: is not in UTF-8 ({error}); convert it, say with iconv") from error
        for number, line in enumerate(lines, start=1):
            utterance, _, text = line.strip().partition(" ")
            if not utterance:
                continue
            if not text.strip():
                raise UserError(f"{transcripts}:{number}: {utterance} has an empty transcript; mend it or take it out")
            if utterance in seen:
                raise UserError(f"{transcripts}:{number}: {utterance} appears twice; ids must be unique in a part")
            seen.add(utterance)
            yield transcripts.parent, utterance, text.strip()


def find_audio(folder: Path, utterance: str) -> Path:
    """The utterance's FLAC or WAV file."""
    for suffix in (".flac", ".wav"):
        if (folder / f"{utterance}{suffix}").is_file():
            return folder / f"{utterance}{suffix}"
    raise UserError(f"{folder / utterance}.flac: no such file; restore it or take {utterance} out of the .trans.txt")


def open_recording(path: Path, utterance: str) -> Recording:
    """Reads the header of an audio file."""
    try:
        recording = Recording.from_file(path, recording_id=utterance)
    except Exception as error:  # each audio backend of Lhotse raises its own kinds
        raise UserError(f"{path}: not readable as audio; restore the file or take {utterance} out") from error
    if not recording.num_samples:
        raise UserError(f"{path}: holds no samples; restore the file or take {utterance} out of the .trans.txt")
    return recording


def prepare_part(corpus_dir: Path, part: str, output_dir: Path) -> None:
    """Writes both manifests of one part."""
    part_dir = corpus_dir / part
    if not part_dir.is_dir():
        raise UserError(f"{part_dir}: no such directory; see --corpus-dir and the names of the parts")
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
        raise UserError(f"{part_dir}: no *.trans.txt with utterances below it; is this LibriSpeech's layout?")
    RecordingSet.from_recordings(recordings).to_file(output_dir / f"librispeech_recordings_{part}.jsonl.gz")
    SupervisionSet.from_segments(supervisions).to_file(output_dir / f"librispeech_supervisions_{part}.jsonl.gz")
    hours = sum(recording.duration for recording in recordings) / 3600
    speakers = len({supervision.speaker for supervision in supervisions})
    logging.info(f"{part}: {len(recordings)} utterances, {speakers} speakers, {hours:.2f} h")


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--corpus-dir", type=Path, required=True, help="The directory that holds the parts.")
    parser.add_argument("--parts", required=True, help="Names of parts, separated by commas.")
    parser.add_argument("--output-dir", type=Path, default=Path("data/manifests"))
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s [%(filename)s:%(lineno)d] %(message)s", level=logging.INFO)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for part in args.parts.split(","):
        prepare_part(args.corpus_dir.resolve(), part, args.output_dir)
