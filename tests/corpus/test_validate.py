"""What a manifest holds, in a line and in a table that can be put together."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet, Recording, SupervisionSegment

from kdstream.corpus.validate import Found, check_manifest, table
from kdstream.data.cuts import iterate, read_manifest
from kdstream.data.features import compute_fbank
from kdstream.data.reading import read_audio
from kdstream.errors import UserError
from support.data import error_of, feature_cut
from support.sound import encoded, tone, wav


@pytest.fixture
def manifest(tmp_path) -> Path:
    cuts = []
    for number, (text, speaker, seconds) in enumerate([("AB A", "s", 1), ("BC", "t", 3), ("一", "s", 2)]):
        cut = Recording(f"r{number}", [], 16000, 16000 * seconds, float(seconds)).to_cut().with_id(f"c{number}")
        cut.supervisions = [SupervisionSegment(f"s{number}", f"r{number}", 0.0, seconds, text=text, speaker=speaker)]
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(tmp_path / "a.jsonl.gz")
    return tmp_path / "a.jsonl.gz"


def test_a_manifest_is_counted_in_cuts_hours_speakers_and_characters(manifest):
    found = Found(manifest)
    for cut in iterate(read_manifest(manifest)):
        found.add(cut)
    line = "3 cuts, 0.00 h, 1.0 to 3.0 s, mean 2.0 s, 2 speakers, 6 characters (4 different)"
    assert str(found) == f"{manifest}: {line}"
    header, row, same = table([found, found]).splitlines()
    assert header.split() == [*"cuts hours seconds each speakers characters different manifest".split()]
    assert row.split() == ["3", "0.00", "1.0", "2.0", "3.0", "2", "6", "4", "a.jsonl.gz"] and row == same
    assert row.index("a.jsonl") == header.index("manifest")


def test_two_cuts_with_one_id_are_refused_as_in_training(tmp_path):
    cuts = [feature_cut(tmp_path, name, np.zeros((100, 80), dtype=np.float32), "ONE") for name in "ab"]
    for kept in ([cuts[0], cuts[1]], [cuts[0], cuts[1], cuts[0]]):
        CutSet.from_cuts(kept).to_file(tmp_path / f"{len(kept)}.jsonl.gz")
    assert len(check_manifest(tmp_path / "2.jsonl.gz").durations) == 2
    with pytest.raises(UserError, match=r"3\.jsonl\.gz: two cuts have the id a; rename one with cut\.with_id"):
        check_manifest(tmp_path / "3.jsonl.gz")


@pytest.mark.parametrize("kind", ["OGG", "MP3"])
def test_reading_finds_files_that_were_joined_into_one(tmp_path, kind):
    audio, manifest = tmp_path / "a", tmp_path / "a.jsonl.gz"
    audio.write_bytes(2 * encoded(tone(2.0), format=kind))
    cut = Recording.from_file(audio, recording_id="a").to_cut()
    assert cut.duration == pytest.approx(2.0, abs=0.01)  # Lhotse takes the first for all of it
    cut.supervisions = [SupervisionSegment("a", "a", 0.0, cut.duration, text="ONE")]
    CutSet.from_cuts([cut]).to_file(manifest)
    check_manifest(manifest)
    message = error_of(lambda: check_manifest(manifest, read=True))
    assert re.search(f"{audio}: (several files joined|.*: 2.00 s of 4.[0-9]+ s would be heard)", message)
    assert message.endswith(f", or take cut {cut.id} out")


def test_reading_finds_a_wav_that_was_cut_short_before_its_manifest_was_made(tmp_path):
    audio, manifest = tmp_path / "a.wav", tmp_path / "a.jsonl.gz"
    audio.write_bytes(wav(tone(2.0))[: 44 + 2 * 16000])
    recording = Recording.from_file(audio, recording_id="a")
    assert recording.duration == 1.0  # Lhotse takes what is there for all of it
    features = compute_fbank(read_audio(recording.to_cut())).numpy()
    cut = feature_cut(tmp_path, "a", features, "ONE")
    cut.recording = recording
    CutSet.from_cuts([cut]).to_file(manifest)
    for heard in (cut, cut.drop_features()):
        CutSet.from_cuts([heard]).to_file(manifest)
        check_manifest(manifest)
        message = error_of(lambda: check_manifest(manifest, read=True))
        assert f"{audio}: cut short: 1.00 s of the 2.00 s that its header states; " in message
        assert message.endswith(", or take cut a out")
    CutSet.from_cuts([cut]).to_file(manifest)
    audio.unlink()  # stored features need it no more
    assert len(check_manifest(manifest, read=True).durations) == 1
