"""Audio files are heard to their end, or refused by name."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kdstream.audio.files import check_whole, find_long, read_sound, why_unreadable
from kdstream.audio.samples import mono
from kdstream.errors import UserError
from support.corpora import write_sphere
from support.sound import (
    RATE,
    encoded,
    flac_without_length,
    mp3,
    tone,
    wav,
    with_chunk,
    with_sizes,
)

SOUND = tone()
WAV = wav(SOUND)
FLAC = encoded(SOUND, format="FLAC")
OGG = encoded(SOUND, format="OGG", subtype="VORBIS")
MP3 = mp3()
UNTOLD_MP3 = MP3[MP3.index(b"\xff\xf3", 2) :]  # without its tag, from which libsndfile guesses its length
OPUS = encoded(tone(rate=48000), 48000, format="OGG", subtype="OPUS")
MP4 = b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom" + b"\0" * 2000

AIFF, AU, RF64, W64 = (encoded(SOUND, format=kind) for kind in ("AIFF", "AU", "RF64", "W64"))


def with_zeros(data: bytes, *places: tuple[int, int]) -> bytes:
    """With zeros from each place on, so many, as a recorder leaves the sizes of the header that it would fill in."""
    for place, length in places:
        data = data[:place] + bytes(length) + data[place + length :]
    return data


RF64_RIFF, RF64_SOUND = ((RF64.index(b"ds64") + 8 + place, 8) for place in (0, 8))
AIFF_FORM, AIFF_SOUND = (4, 4), (AIFF.index(b"SSND") + 4, 4)

HEARD = {
    "plain.wav": WAV,
    "ffmpeg-pipe.wav": with_sizes(WAV, 0xFFFFFFFF, 0xFFFFFFFF),
    "sox-pipe.wav": with_sizes(WAV, 0x7FFFF024, 0x7FFFF000),
    "killed-recorder.wav": with_sizes(WAV, 0, 0),
    "killed-recorder-riff-size.wav": with_sizes(WAV, 36, 0),
    "killed-while-silent.wav": with_sizes(wav(np.concatenate([0 * SOUND[:8000], SOUND[8000:]])), 0, 0),
    "chunk-behind.wav": with_chunk(WAV),
    "zeros-behind.wav": WAV + b"\0" * 20000,
    "rubbish-behind.wav": WAV + b"\1" * 1000,
    "tag-behind.wav": WAV + b"ID3\3\0\0" + b"\1" * 20000,
    "two-chunks-behind.wav": with_chunk(with_chunk(WAV)),
    "wrong-riff-size.wav": with_sizes(WAV, len(WAV), len(WAV) - 44),
    "size-of-all.wav": with_sizes(WAV, len(WAV), len(WAV)),
    "24-bit.wav": encoded(SOUND, format="WAV", subtype="PCM_24"),
    "8-bit.wav": encoded(SOUND, format="WAV", subtype="PCM_U8"),
    "float.wav": encoded(SOUND, format="WAV", subtype="FLOAT"),
    "float-above-1.wav": encoded(4 * SOUND, format="WAV", subtype="FLOAT"),
    "a-law.wav": encoded(SOUND, format="WAV", subtype="ALAW"),
    "extensible.wav": encoded(SOUND, format="WAVEX"),
    "rf64.wav": RF64,
    "rf64-without-a-size.wav": with_zeros(RF64, RF64_RIFF),
    "w64.w64": W64,
    "w64-without-sizes.w64": with_zeros(W64, (16, 8), (W64.index(b"data") + 16, 8)),
    "aiff.aiff": AIFF,
    "aiff-without-a-size.aiff": with_zeros(AIFF, AIFF_SOUND),
    "aiff-without-sizes.aiff": with_zeros(AIFF, AIFF_FORM, AIFF_SOUND),
    "au.au": AU,
    "caf.caf": encoded(SOUND, format="CAF"),
    "nist.sph": encoded(SOUND, format="NIST"),
    "plain.flac": FLAC,
    "vorbis.ogg": OGG,
    "flac-named.wav": FLAC,
    "wav-named.m4a": WAV,
}


def without_bytes(value: object) -> str | None:
    """Part of a test's name: a file's bytes do not belong there, and an encoder may draw some of them."""
    return "data" if isinstance(value, bytes) else None


@pytest.mark.parametrize("name", HEARD)
def test_a_sound_file_is_heard_to_its_end(tmp_path, caplog, name):
    (tmp_path / name).write_bytes(HEARD[name])
    sound = read_sound(tmp_path / name)
    loudness = 4 if "above" in name else 1
    quiet = slice(8000 if "silent" in name else 0, None)
    assert sound.samples.shape == (1, len(SOUND)) and sound.sample_rate == RATE
    tolerance = 0.05 if name in ("vorbis.ogg", "8-bit.wav", "a-law.wav") else 1e-4
    assert np.abs(sound.samples[0, quiet] - loudness * SOUND[quiet]).max() < tolerance
    assert caplog.records == []


def test_opus_is_heard_at_its_rate(tmp_path):
    (tmp_path / "a.opus").write_bytes(OPUS)
    assert read_sound(tmp_path / "a.opus").samples.shape == (1, 48000)


def test_a_whole_mp3_is_heard_as_libsndfile_hears_it(tmp_path):
    (tmp_path / "a.wav").write_bytes(MP3)
    np.testing.assert_array_equal(
        read_sound(tmp_path / "a.wav").samples[0], soundfile.SoundFile(tmp_path / "a.wav").read(dtype="float32")
    )


def test_mp3_files_without_length_or_joined_are_heard_to_their_end(tmp_path):
    untold, slow_untold, joined = (tmp_path / f"{name}.mp3" for name in ("untold", "slow-untold", "joined"))
    slow = mp3(2.0, quiet=slice(0, RATE))
    untold.write_bytes(UNTOLD_MP3)
    slow_untold.write_bytes(slow[slow.index(b"\xff\xf3", 2) :])
    joined.write_bytes(MP3 + MP3)
    stated = [soundfile.info(path).duration for path in (untold, slow_untold, joined)]
    assert stated[0] < 1.5 and stated[1] > 3.0 and stated[2] == 2.0
    for path, seconds in ((untold, 2.0), (slow_untold, 2.0), (joined, 4.0)):
        samples = read_sound(path).samples[0]
        assert seconds <= len(samples) / RATE < seconds + 0.2
        assert np.square(samples[-4000:]).mean() > 0.01


@pytest.mark.parametrize(
    "name, data, named",
    [
        ("cut-behind-the-header.au", AU[:24], "cut short: none of the sound|no samples"),
        ("cut-a-little.wav", WAV[:-400], "cut short: 0.99 s of the 1.00 s"),
        ("cut.wav", WAV[:-3000], "cut short: 0.91 s of the 1.00 s that its header states; restore it, or keep what is"),
        ("cut.w64", W64[:-3000], "cut short: 0.9"),
        ("cut-rf64.wav", RF64[:-3000], "cut short: 0.9"),
        ("cut.aiff", AIFF[:-3000], "cut short: 0.91 s of the 1.00 s"),
        ("cut.au", AU[:-3000], "cut short: 0.91 s of the 1.00 s"),
        ("cut.flac", FLAC[: len(FLAC) // 2], "cut short or damaged"),
        ("cut.mp3", MP3[: len(MP3) * 2 // 3], "cut short: 1.[0-9]+ s of the 2.[0-9]+ s"),
        ("unknown.flac", flac_without_length(FLAC), "its header lacks the length; convert it: ffmpeg -i"),
        ("loud.wav", encoded(32767 * SOUND, format="WAV", subtype="FLOAT"), "float samples up to 16.*; divide them"),
        ("nan.wav", encoded(np.nan * SOUND, format="WAV", subtype="FLOAT"), "samples are NaN or infinite"),
        ("infinite.wav", encoded(np.inf * (1 + SOUND), format="WAV", subtype="FLOAT"), "samples are NaN or infinite"),
        ("empty.wav", b"", "an empty file"),
        ("text.wav", b"no audio\n", "text, not audio"),
        ("text.mp3", "Füße und Wörter\n".encode() * 200, "text, not audio"),
        ("page.wav", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "text, not audio"),
        ("noise.wav", bytes(range(256)) * 9, "not audio, or of a kind that .*; convert it: ffmpeg"),
        ("zip.wav", b"PK\x03\x04" + b"\0" * 99, "a zip archive, not audio; unpack it"),
        ("song.m4a", MP4, "MPEG-4 .*which libsndfile does not read; convert it: ffmpeg -i .*song.m4a .*.wav"),
        ("film.webm", b"\x1a\x45\xdf\xa3" + b"\0" * 99, "Matroska .*; convert it: ffmpeg"),
        ("radio.aac", b"\xff\xf1\x50\x80" + b"\0" * 99, "AAC, .*; convert it: ffmpeg"),
        ("damaged.wav", WAV[:30], "damaged, or in a coding that libsndfile does not read"),
        ("raw.raw", WAV[44:], "raw samples, without a header; convert it: ffmpeg -f s16le -ar 16000 -ac 1, or what"),
        ("cut-behind-the-header.wav", WAV[:44], "cut short: none of the sound that its header states"),
        ("cut-behind-the-tag.mp3", MP3[: MP3.index(b"\xff\xf3", 2)], "cut short: 0.00 s"),
        ("5ms.wav", wav(SOUND[:80]), "less than 10 ms of sound"),
        ("nothing.wav", wav(SOUND[:0]), "no samples"),
        ("nothing-and-a-chunk.wav", with_chunk(wav(SOUND[:0])), "no samples"),
        ("killed.au", with_zeros(AU, (8, 4)), "its header states no sound, but the file has 32024 bytes; .* -i "),
        ("killed-rf64.wav", with_zeros(RF64, RF64_RIFF, RF64_SOUND), "its header states no .* ffmpeg -ignore_length 1"),
        ("killed-later.wav", with_sizes(WAV, 16036, 16000), "its header states 0.50 s of sound, but 16000"),
        ("joined.wav", WAV + WAV, "several files joined into one"),
        ("joined.flac", FLAC + FLAC, "several files joined into one"),
        ("joined.ogg", OGG + OGG, "several files joined into one"),
        ("joined.opus", OPUS + OPUS, "several files joined into one"),
        ("joined.aiff", AIFF * 2, "several files joined into one"),
        ("joined.au", AU * 2, "several files joined into one"),
        ("joined.w64", W64 * 2, "several files joined into one"),
        ("joined.mp3", mp3(1.0, 16000) + mp3(1.0, 44100), "joined from MP3 files of different rates"),
    ],
    ids=without_bytes,
)  # fmt: skip
def test_what_cannot_be_heard_rightly_is_refused_in_one_line(tmp_path, name, data, named):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {named}") as refused:
        read_sound(path)
    assert "\n" not in str(refused.value)
    assert why_unreadable(path) and str(path) not in why_unreadable(path)


def test_what_is_no_file_is_named_as_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, named in (("none.wav", "no such file"), (".", "a directory"), ("pipe", "a pipe or a device")):
        with pytest.raises(UserError, match=f": {named}"):
            read_sound(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_sound(Path("zero\0byte.wav"))


def test_a_disk_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.mp3").write_bytes(MP3)

    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(UserError, match=r"a.mp3: cannot be read \(Input/output error\)"):
        read_sound(tmp_path / "a.mp3")


@pytest.mark.parametrize(
    "name", [b"latin1-\xe9t\xe9.wav", b"line\nbreak.wav", b"blank and 'quote' \".wav", "日本.wav".encode()]
)
def test_any_name_is_read_and_refused_in_one_line(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(WAV)
    assert read_sound(path).samples.shape == (1, RATE)
    path.write_bytes(b"text")
    with pytest.raises(UserError) as refused:
        read_sound(path)
    assert "\n" not in str(refused.value) and str(refused.value).encode()  # in strict UTF-8


def test_ogg_without_its_end_is_heard_with_a_warning(tmp_path, caplog):
    whole = encoded(tone(20), format="OGG", subtype="VORBIS")
    (tmp_path / "stream.ogg").write_bytes(whole[: len(whole) * 2 // 3])
    with caplog.at_level(logging.WARNING):
        assert 5 < read_sound(tmp_path / "stream.ogg").samples.shape[1] / RATE < 20
    assert "stream.ogg: lacks Ogg's mark of the end" in caplog.text


@pytest.mark.parametrize(
    "cut, stated, warned", [(24000, 1, "has 0.25 s of the 1.00 s"), (100, 1, ""), (0, 1, ""), (0, 2, "")]
)
def test_sphere_without_its_end_is_heard_with_a_warning(tmp_path, caplog, cut, stated, warned):
    path = tmp_path / "a.sph"
    write_sphere(path, np.stack([SOUND, SOUND], axis=1), RATE)
    data = path.read_bytes().replace(b"sample_count -i 16000", b"sample_count -i %d" % (stated * 16000))
    path.write_bytes(data[: len(data) - 2 * cut])
    assert read_sound(path).samples.shape == (2, RATE - cut // 2)
    if warned:
        assert f"{path}: {warned} that its header states, so it may be cut short" in caplog.text
    else:  # less than 10 ms, or the samples of both channels counted together
        assert not caplog.messages


def test_nothing_is_lost_at_the_border_of_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr("kdstream.audio.files.BLOCK", 1000)
    for samples in (SOUND, SOUND[:1000], SOUND[:1001], SOUND[:999]):
        (tmp_path / "a.wav").write_bytes(wav(samples))
        assert read_sound(tmp_path / "a.wav").samples.shape == (1, len(samples))


@pytest.mark.parametrize("name", HEARD)
def test_a_file_is_whole_unless_libsndfile_alone_would_hear_less(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(HEARD[name])
    if name.startswith("killed"):
        problem = f"{path}: its header states another length than it has: 0.00 s of 1.00 s would be heard"
        with pytest.raises(UserError, match=f"{problem}; convert it: ffmpeg -i .*, or leave it out"):
            check_whole(path, "leave it out")
    else:
        check_whole(path, "leave it out")


@pytest.mark.parametrize(
    "data, named",
    [
        (WAV[:-3000], "cut short: 0.91 s of the 1.00 s that its header states; .*, or leave it out$"),
        (flac_without_length(FLAC), "its header lacks the length"),
        (MP3[: len(MP3) // 2], "cut short"),
        (UNTOLD_MP3, "its header states another length than it has: [01].[0-9]+ s of 2.[0-9]+ s would be heard"),
        (MP3 + MP3, "its header states another length than it has: 2.00 s of 4.[0-9]+ s would be heard"),
        (WAV + WAV, "several files joined into one"),
        (FLAC + FLAC, "several files joined into one"),
        (OGG + OGG, "several files joined into one"),
    ],
    ids=without_bytes,
)
def test_a_file_of_which_lhotse_would_take_a_part_for_all_is_refused(tmp_path, data, named):
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(UserError, match=f"{tmp_path / 'a.wav'}: {named}"):
        check_whole(tmp_path / "a.wav", "leave it out")


@pytest.mark.parametrize("data", [b"text", MP4], ids=["text", "mp4"])
def test_what_libsndfile_does_not_open_is_refused_where_nothing_else_reads_it(tmp_path, data):
    (tmp_path / "a.wav").write_bytes(data)
    check_whole(tmp_path / "a.wav", "leave it out")  # Lhotse may read it by ffmpeg
    with pytest.raises(UserError, match=f"{tmp_path / 'a.wav'}: (text|MPEG-4).*, or leave it out$"):
        check_whole(tmp_path / "a.wav", "leave it out", needs_libsndfile=True)
    check_whole(tmp_path / "nowhere.wav", "leave it out", needs_libsndfile=True)


def test_a_long_file_is_found_and_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("kdstream.audio.files.SHORT_BLOCK", 1000)
    path = tmp_path / "a.flac"
    path.write_bytes(encoded(np.stack([SOUND, 0.5 * SOUND], axis=1), format="FLAC"))
    assert find_long(path, 1.0) is None
    sound = find_long(path, 0.99)
    assert sound is not None and sound.seconds == 1.0 and sound.channel is None
    blocks = list(sound.blocks())
    assert max(map(len, blocks)) == 1000
    np.testing.assert_allclose(np.concatenate(blocks), mono(read_sound(path).samples, path), atol=1e-7)


@pytest.mark.parametrize(
    "heard, changed",
    [(0, WAV[:20000]), (3, WAV[:20000]), (0, wav(np.append(SOUND, SOUND)))],
    ids=["cut before", "cut meanwhile", "grown before"],
)
def test_a_long_file_whose_length_has_changed_is_not_taken_for_a_whole_one(tmp_path, monkeypatch, heard, changed):
    monkeypatch.setattr("kdstream.audio.files.SHORT_BLOCK", 1000)
    path = tmp_path / "a.wav"
    path.write_bytes(WAV)
    sound = find_long(path, 0.99)
    assert sound is not None
    blocks = sound.blocks()
    for _ in range(heard):
        next(blocks)
    path.write_bytes(changed)
    with pytest.raises(UserError, match=f"{path}: has changed while it was read; wait until it is written"):
        list(blocks)


def test_channels_of_a_long_file_that_cancel_are_heard_by_the_loudest_one(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("kdstream.audio.files.SHORT_BLOCK", 1000)
    path = tmp_path / "a.flac"
    path.write_bytes(encoded(np.stack([-0.95 * SOUND, SOUND], axis=1), format="FLAC"))
    sound = find_long(path, 0.5)
    assert sound is not None and "only channel 1 is heard" in caplog.text
    np.testing.assert_array_equal(np.concatenate(list(sound.blocks())), read_sound(path).samples[1])


@pytest.mark.parametrize(
    "data, named",
    [
        (WAV[:-3000], "cut short: 0.91 s of the 1.00 s"),
        (FLAC[: len(FLAC) // 2], "cut short or damaged"),
        (WAV + WAV, "several files joined"),
        (encoded(np.append(SOUND, np.nan), format="WAV", subtype="FLOAT"), "samples are NaN or infinite"),
        (encoded(32767 * SOUND, format="WAV", subtype="FLOAT"), "float samples up to"),
    ],
    ids=without_bytes,
)
def test_a_long_file_is_refused_before_its_first_block(tmp_path, monkeypatch, data, named):
    monkeypatch.setattr("kdstream.audio.files.SHORT_BLOCK", 1000)
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(UserError, match=f"{tmp_path / 'a.wav'}: {named}"):
        find_long(tmp_path / "a.wav", 0.1)
