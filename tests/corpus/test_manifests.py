"""Manifests of LibriSpeech's layout, and what is wrong with a corpus."""

from __future__ import annotations

from pathlib import Path

import pytest
from lhotse import CutSet

from support.data import (
    error_of,
    make_part,
    store,
)
from support.sound import encoded, flac_without_length, tone, wav, with_sizes


@pytest.fixture
def small(tmp_path) -> Path:
    """A corpus to spoil: 6 training utterances."""
    make_part(tmp_path, "train", 1, 6, seed=0)
    return tmp_path


def test_speakers_behind_links_are_read_and_transcripts_may_begin_with_a_byte_order_mark(tmp_path):
    make_part(tmp_path, "train", 1, 3, seed=1)
    make_part(tmp_path / "elsewhere", "more", 2, 2, seed=2)
    (tmp_path / "LibriSpeech" / "train" / "2").symlink_to(tmp_path / "elsewhere" / "LibriSpeech" / "more" / "2")
    marked = tmp_path / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + marked.read_bytes())
    store(tmp_path, ("train",))
    cuts = CutSet.from_file(tmp_path / "fbank" / "librispeech_cuts_train.jsonl.gz")
    assert sorted(cut.id for cut in cuts) == ["1-1-0000", "1-1-0001", "1-1-0002", "2-1-0000", "2-1-0001"]


def test_transcripts_in_a_wrong_place_or_encoding_are_named(small):
    part = small / "LibriSpeech" / "train"
    stray = part / "1-1.trans.txt"
    stray.write_text("1-1-0000 ONE\n")
    assert f"{stray}: lies beside the speakers' directories" in error_of(lambda: store(small, ("train",)))
    stray.unlink()
    path = part / "1" / "1" / "1-1.trans.txt"
    path.write_bytes("1-1-0000 CAF\u00c9\n".encode("latin-1"))
    assert f"{path}: is not in UTF-8" in error_of(lambda: store(small, ("train",)))


@pytest.mark.parametrize("line", ["1-1-0002", "1-1-0002 ", "1-1-0002 \t "])
def test_empty_transcript_names_the_line(small, line):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n")
    assert f"{path}:3: 1-1-0002" in error_of(lambda: store(small, ("train",)))


def test_repeated_utterance_names_the_line(small):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    path.write_text(path.read_text() + "1-1-0001 ONE\n")
    assert f"{path}:7: 1-1-0001 appears twice" in error_of(lambda: store(small, ("train",)))


def test_missing_part_and_empty_part(small):
    assert "nowhere: no such directory" in error_of(lambda: store(small, ("nowhere",)))
    (small / "LibriSpeech" / "empty").mkdir()
    assert "empty: no *.trans.txt" in error_of(lambda: store(small, ("empty",)))


@pytest.mark.parametrize(
    "suffix, data, named",
    [
        (".wav", wav(tone())[:-3000], "cut short: 0.91 s of the 1.00 s that its header states"),
        (".wav", with_sizes(wav(tone()), 0, 0), "its header states another length than it has; convert it: ffmpeg -i"),
        (".wav", wav(tone()[:0]), "holds no samples"),
        (".wav", b"on another disk\n", "text, not audio"),
        (".flac", b"", "an empty file"),
        (
            ".flac",
            flac_without_length(encoded(tone(), format="FLAC")),
            "its header lacks the length; convert it: ffmpeg",
        ),
    ],
)
def test_audio_whose_header_does_not_say_how_much_there_is_is_named(small, suffix, data, named):
    audio = small / "LibriSpeech" / "train" / "1" / "1" / "1-1-0003.flac"
    audio.unlink()
    path = audio.with_suffix(suffix)
    path.write_bytes(data)
    error = error_of(lambda: store(small, ("train",)))
    assert f"{path}: {named}" in error and "take 1-1-0003 out of the .trans.txt" in error
