"""Manifests of MUSAN name the file that cannot be heard, and need none of its annotations."""

from __future__ import annotations

import logging
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, RecordingSet

from kdstream.corpus.fbank import compute_musan
from kdstream.corpus.musan import KINDS, prepare_musan
from support.data import error_of
from support.sound import encoded, tone, wav


def write(musan: Path, kind: str, seconds: float = 6.0) -> Path:
    path = musan / kind / "here" / "same-name.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, tone(seconds), 16000)
    return path


def ids_of(folder: Path) -> list[list[str]]:
    return [[each.id for each in RecordingSet.from_file(path)] for path in sorted(folder.glob("musan_*"))]


def test_the_kinds_that_are_there_are_taken_and_others_named(tmp_path, caplog):
    for kind in KINDS:
        write(tmp_path / "musan", kind)
    prepare_musan(tmp_path / "musan", tmp_path)
    assert ids_of(tmp_path) == [[f"{kind}-here-same-name"] for kind in ("music", "noise", "speech")]
    assert caplog.records == []
    (tmp_path / "musan" / "music" / "here" / "same-name.wav").unlink()
    with caplog.at_level(logging.WARNING):
        prepare_musan(tmp_path / "musan", tmp_path)
    assert f"{tmp_path}/musan: has no .wav file below music; the others" in caplog.text
    with ThreadPool(1) as pool:
        compute_musan(tmp_path, tmp_path / "fbank", pool)
    cuts = CutSet.from_file(tmp_path / "fbank" / "musan_cuts.jsonl.gz")
    assert {cut.recording_id for cut in cuts} == {"noise-here-same-name", "speech-here-same-name"}


@pytest.mark.parametrize(
    "data, named",
    [
        (b"", "an empty file"),
        (b"hello", "text, not audio"),
        (wav(tone(6.0))[:50000], "cut short: "),
        (encoded(np.zeros((96000, 2)), format="WAV"), "2 channels; make it mono"),
    ],
)
def test_a_file_that_cannot_be_heard_is_named(tmp_path, data, named):
    path = write(tmp_path / "musan", "noise")
    path.write_bytes(data)
    message = error_of(lambda: prepare_musan(tmp_path / "musan", tmp_path))
    assert message.startswith(f"{path}: {named}") and ids_of(tmp_path) == []


def test_no_noise_and_noise_that_is_too_short_are_refused(tmp_path):
    message = error_of(lambda: prepare_musan(tmp_path / "musan", tmp_path))
    assert message == f"{tmp_path}/musan: has no .wav file below music, speech, noise; unpack MUSAN there"
    write(tmp_path / "musan", "noise", seconds=4.0)
    prepare_musan(tmp_path / "musan", tmp_path)
    with ThreadPool(1) as pool:
        message = error_of(lambda: compute_musan(tmp_path, tmp_path / "fbank", pool))
    assert "musan_recordings_noise.jsonl.gz: nothing in it is longer than 5 s; join" in message
    assert not (tmp_path / "fbank" / "musan_cuts.jsonl.gz").exists()
