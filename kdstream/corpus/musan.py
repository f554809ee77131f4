"""Manifests of MUSAN, or of any noise in its layout."""

from __future__ import annotations

import logging
from pathlib import Path

from lhotse import RecordingSet
from tqdm import tqdm

from kdstream.corpus.manifests import open_recording
from kdstream.data.cuts import write_manifest
from kdstream.errors import UserError

KINDS = ("music", "speech", "noise")


def prepare_musan(musan_dir: Path, output_dir: Path) -> None:
    """Writes musan_recordings_<kind>.jsonl.gz for each of KINDS that has .wav files below MUSAN_DIR/<kind>.

    Manifests of other kinds, of an earlier run, are removed.  Raises UserError for a file that cannot be heard to its
    end, and where no kind has any.
    """
    found = {kind: sorted((musan_dir / kind).rglob("*.wav")) for kind in KINDS}
    lacking = [kind for kind, paths in found.items() if not paths]
    if len(lacking) == len(KINDS):
        raise UserError(f"{musan_dir}: has no .wav file below {', '.join(KINDS)}", fix="unpack MUSAN there")
    if lacking:
        logging.warning(f"{musan_dir}: has no .wav file below {', '.join(lacking)}; the others are taken alone")
    recordings = {
        kind: [
            open_recording(path, _id_of(path, musan_dir), "take the file out of MUSAN")
            for path in tqdm(paths, desc=kind, unit=" files", disable=None)
        ]
        for kind, paths in found.items()
    }
    for kind, its in recordings.items():
        path = output_dir / f"musan_recordings_{kind}.jsonl.gz"
        write_manifest(RecordingSet.from_recordings(its), path) if its else path.unlink(missing_ok=True)


def _id_of(path: Path, musan_dir: Path) -> str:
    """Its own, whatever files in other folders are called."""
    return "-".join(path.relative_to(musan_dir).with_suffix("").parts)
