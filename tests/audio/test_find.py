"""Folders give all audio in them, and name what they pass by."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdstream.audio.find import find_audio
from kdstream.errors import UserError


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_audio_in_a_directory_is_found_in_order(tmp_path):
    names = (
        "mono.wav",
        "stereo.FLAC",
        "below/telephone.au",
        "below/deeper/music.mp3",
        "c.ogg",
        "d.opus",
        "e.aiff",
        "f.w64",
    )
    audio = fill(tmp_path / "audio", *names, "notes.txt", "._mono.wav")
    found = [path.relative_to(audio).as_posix() for path in find_audio([str(audio), str(audio / "notes.txt")])]
    assert found == sorted(names) + ["notes.txt"]


def test_sound_that_cannot_be_read_is_named(tmp_path, caplog):
    audio = fill(tmp_path, "a.wav", "b.m4a", "below/c.WEBM", "notes.txt", "cover.jpg", "line\nbreak.wma")
    assert find_audio([str(audio)]) == [audio / "a.wav"]
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{audio}: 3 files are passed by, which libsndfile does not read: ")
    assert all(name in message for name in ("b.m4a", "c.WEBM", "line\\nbreak.wma")) and "\n" not in message


def test_many_such_files_are_counted(tmp_path, caplog):
    find_audio([str(fill(tmp_path, "a.wav", *(f"{n:02}.m4a" for n in range(30))))])
    assert "30 files" in caplog.text and "09.m4a, ..." in caplog.text and "10.m4a" not in caplog.text


def test_a_directory_without_audio_is_refused(tmp_path):
    empty, other = fill(tmp_path / "empty", "notes.txt"), fill(tmp_path / "other", "a.m4a")
    with pytest.raises(UserError, match=f"{empty}: holds no audio file .*; name audio files"):
        find_audio([str(empty)])
    with pytest.raises(UserError, match=f"{other}: holds no audio file .* 1 files .*a.m4a; convert them"):
        find_audio([str(other)])


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / "elsewhere", "linked.wav")
    audio = fill(tmp_path / "audio", "a.wav")
    (audio / "link").symlink_to(tmp_path / "elsewhere")
    (audio / "circle").symlink_to(audio)
    (audio / "lost.wav").symlink_to(tmp_path / "none.wav")
    assert [path.name for path in find_audio([str(audio)])] == ["a.wav", "linked.wav", "lost.wav"]


def test_a_directory_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path, "a.wav", "locked/b.wav")
    scan = os.scandir

    def refuse(place):
        if Path(place).name == "locked":
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every directory
    with pytest.raises(UserError, match="locked: Permission denied"):
        find_audio([str(tmp_path)])
