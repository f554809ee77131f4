"""Audio that ends before its manifest says is refused, whatever reads the cut; Lhotse alone would play it backwards."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording
from lhotse.cut import Cut

from kdstream.data.reading import read_audio, read_utterance
from kdstream.data.sources import TOLERANCE, last_line
from kdstream.errors import UserError
from support.sound import encoded, flac_without_length, tone

RATE = 16000
SAMPLES = 2 * RATE


def recording(path: Path, rate: int = RATE) -> Recording:
    soundfile.write(path, tone(SAMPLES / RATE, rate), rate)
    return Recording.from_file(path, recording_id="said")


def shorten(path: Path, samples: int) -> None:
    whole, rate = soundfile.read(path)
    soundfile.write(path, whole[: len(whole) - samples], rate)


def refusal(cut: Cut) -> str:
    with pytest.raises(UserError) as refused:
        read_audio(cut)
    assert "\n" not in str(refused.value)
    return str(refused.value)


VIEWS = {
    "whole": lambda cut: cut,
    "end": lambda cut: cut.truncate(offset=1.5),
    "faster": lambda cut: cut.perturb_speed(1.1),
    "slower": lambda cut: cut.perturb_speed(0.9),
    "end of slower": lambda cut: cut.perturb_speed(0.9).truncate(offset=1.5),
    "louder": lambda cut: cut.perturb_volume(1.2),
    "resampled": lambda cut: cut.resample(8000),
    "resampled and faster": lambda cut: cut.resample(22050).perturb_speed(1.1),
    "padded": lambda cut: cut.pad(duration=3.0),
    "appended": lambda cut: cut.append(cut),
    "mixed": lambda cut: cut.mix(cut, offset_other_by=0.5, snr=10),
}


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("view", VIEWS)
def test_missing_samples_are_refused_beyond_the_tolerance(tmp_path, view, rate):
    cut = VIEWS[view](recording(tmp_path / "a.wav", rate).to_cut())
    whole = read_audio(cut)
    shorten(tmp_path / "a.wav", 1)
    assert read_audio(cut).shape == whole.shape  # so much may rounding cost
    for lost in (TOLERANCE + 2, rate // 5, rate - 1):  # Lhotse itself refuses more than half a second
        shorten(tmp_path / "a.wav", lost)
        assert f"{tmp_path / 'a.wav'}: ends " in refusal(cut) and f"before cut {cut.id} does" in refusal(cut)
        soundfile.write(tmp_path / "a.wav", tone(SAMPLES / RATE, rate), rate)
    shorten(tmp_path / "a.wav", SAMPLES * rate // RATE - 10)
    assert f"{tmp_path / 'a.wav'}: " in refusal(cut) and cut.id in refusal(cut)


def test_the_beginning_of_audio_that_ends_early_is_read(tmp_path):
    cut = recording(tmp_path / "a.wav").to_cut()
    whole = read_audio(cut)
    shorten(tmp_path / "a.wav", RATE)
    np.testing.assert_array_equal(read_audio(cut.truncate(duration=0.9)), whole[: RATE * 9 // 10])


def test_a_cut_that_ends_within_a_millisecond_of_its_recording_is_read(tmp_path):
    cut = recording(tmp_path / "a.wav").to_cut()
    nearly = cut.truncate(duration=cut.duration - 0.0007)
    np.testing.assert_array_equal(read_audio(nearly), read_audio(cut)[: nearly.num_samples])


def test_a_cut_beyond_its_recording_is_refused(tmp_path):
    whole = recording(tmp_path / "a.wav")
    cut = MonoCut("beyond", 1.0, 1.3, 0, recording=whole)
    assert "ends 0.300 s (4800 samples) before cut beyond does; restore the file, or make its manifest" in refusal(cut)


def test_the_words_of_training_and_decoding_are_read_through_the_same_check(tmp_path):
    cut = recording(tmp_path / "a.wav").to_cut()
    shorten(tmp_path / "a.wav", 100)
    with pytest.raises(UserError, match=r"a.wav: ends 0.006 s \(100 samples\) before cut said"):
        read_utterance(cut, from_audio=True)


@pytest.mark.parametrize("rates", [(16000, 44100), (44100, 16000)])
@pytest.mark.parametrize("offset, duration", [(0.0, 0.2), (0.1, 0.2), (0.0, 2.0)])
def test_a_file_of_another_rate_than_its_manifest_is_refused(tmp_path, rates, offset, duration):
    cut = recording(tmp_path / "a.wav", rates[0]).to_cut().truncate(offset=offset, duration=duration)
    soundfile.write(tmp_path / "a.wav", tone(2.0, rates[1]), rates[1])
    said = f"a.wav: {rates[1]} Hz, but the manifest of cut {cut.id} says {rates[0]} Hz; make its manifest again"
    assert said in refusal(cut)


def test_each_fault_of_a_file_is_named_as_what_it_is(tmp_path, monkeypatch):
    path = tmp_path / "a.flac"
    cut = recording(path).to_cut()
    whole = path.read_bytes()
    for content, named in (
        (None, "no such file; restore the file, or take cut said out"),
        (b"", "an empty file"),
        (b"moved to another disk\n", "text, not audio"),
        (whole[: len(whole) // 2], "cut short or damaged"),
        (b"\0\0\0\x20ftypM4A " + b"\0" * 99, "MPEG-4"),
        (flac_without_length(whole)[:-200], "its header lacks the length"),
        (encoded(np.nan * tone(), format="WAV", subtype="FLOAT"), "ends 1.000 s"),
        (encoded(np.nan * tone(2.0), format="WAV", subtype="FLOAT"), "samples are NaN or infinite"),
        (encoded(30000 * tone(2.0), format="WAV", subtype="FLOAT"), "divide them by 32768"),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        assert f"{path}: " in refusal(cut) and named in refusal(cut) and "said" in refusal(cut), named
    path.unlink()
    assert cut.recording is not None
    monkeypatch.chdir(tmp_path)
    cut.recording.sources[0].source = "a.flac"
    assert (
        f"a.flac: no such file; restore the file, or take cut said out; its path counts from {Path.cwd()}"
        in refusal(cut)
    )
    path.mkdir()
    assert "a.flac: a directory, not an audio file" in refusal(cut)


def test_what_is_no_file_is_named_by_its_cut(tmp_path):
    whole = recording(tmp_path / "a.wav")
    assert "cut none: no recording" in refusal(MonoCut("none", 0.0, 1.0, 0))
    assert "audio in memory: ends 0.500 s" in refusal(MonoCut("m", 0.0, 2.5, 0, recording=whole.move_to_memory()))
    soundfile.write(tmp_path / "b.wav", np.stack([tone(), tone() / 2], axis=1), RATE)
    stereo = Recording.from_file(tmp_path / "b.wav").to_cut()
    message = refusal(stereo)
    assert "b.wav: cut b: 2 channels" in message and "cut.to_mono()[0]" in message
    channels = stereo.to_mono()
    assert isinstance(channels, list)
    CutSet.from_cuts(channels[:1]).to_file(tmp_path / "mono.jsonl.gz")  # as the message advises
    (mono,) = CutSet.from_file(tmp_path / "mono.jsonl.gz")
    left, _ = soundfile.read(tmp_path / "b.wav", dtype="float32")
    assert np.array_equal(read_audio(mono).numpy(), left[:, 0])
    soundfile.write(tmp_path / "c.wav", tone(0.2, 44101), 44101)
    assert "c.wav: cut c: 44101 Hz, too uncommon" in refusal(Recording.from_file(tmp_path / "c.wav").to_cut())


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_name_that_is_not_utf8_is_named_in_utf8(tmp_path):
    cut = recording(tmp_path / "a.wav").to_cut()
    path = tmp_path / os.fsdecode(b"\xe9.wav")
    (tmp_path / "a.wav").rename(path)
    assert cut.recording is not None
    cut.recording.sources[0].source = str(path)
    assert read_audio(cut).shape == (SAMPLES,)
    path.unlink()
    assert "\\udce9.wav: no such file" in refusal(cut) and refusal(cut).encode()  # in strict UTF-8


def test_a_package_that_lhotse_lacks_is_named(tmp_path, monkeypatch):
    def lack(self, *args, **kwargs):
        raise ModuleNotFoundError("No module named 'scipy'")

    cut = recording(tmp_path / "a.wav").to_cut()
    monkeypatch.setattr(Recording, "load_audio", lack)
    assert (
        refusal(cut)
        == f"{tmp_path / 'a.wav'}: cut said: No module named 'scipy'; install this package, which Lhotse needs here"
    )


def test_audio_that_is_whole_is_not_blamed_for_what_lhotse_cannot_do_with_it(tmp_path, monkeypatch):
    def lack(self, *args, **kwargs):  # as where torchaudio has no sox_effects
        raise AttributeError("module 'torchaudio' has no attribute 'sox_effects'")

    monkeypatch.setattr("lhotse.augmentation.Tempo.__call__", lack)
    cut = recording(tmp_path / "a.wav").to_cut().perturb_tempo(0.9)
    message = refusal(cut)
    assert "a.wav: cut said_tp0.9: module 'torchaudio' has no attribute 'sox_effects'; its audio can be read" in message
    assert "restore" not in message
    (tmp_path / "a.wav").write_bytes(b"hello")
    assert "a.wav: text, not audio; restore the file" in refusal(cut)
    assert cut.recording is not None
    without = replace(cut, recording=replace(cut.recording, sources=[]))
    assert "can be read" not in refusal(without) and "restore the audio" in refusal(without)


def test_last_line_leaves_out_what_lhotse_adds():
    tried = (
        "Reading failed. Details:\nException #0 (<class 'a.B'>): <class 'c.D'>: lost sync.\nSet LHOTSE_X=1 environment"
    )
    error = RuntimeError(f"{tried} variable\n[extra info] When calling: f(args=...)")
    assert last_line(error) == "lost sync."
    assert last_line(AssertionError()) == "AssertionError"
