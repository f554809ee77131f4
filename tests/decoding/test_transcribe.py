"""transcribe.py and what it stands on: files of all kinds, broken ones among them, and sound as it comes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from kdstream.audio.files import LongSound
from kdstream.audio.find import find_audio
from kdstream.checkpoints.trained import load_trained
from kdstream.config.decoding import DecodeConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.data.features import compute_fbank
from kdstream.data.tokenizer import Tokenizer
from kdstream.decoding.audio import find_long_audio, microphone, read_audio_file
from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.stream import decode_whole
from kdstream.decoding.transcribe import LOOKING, Transcriber
from kdstream.endpoints import EndpointConfig
from kdstream.errors import UserError
from kdstream.models.streaming import ChunkConfig
from kdstream.transcription import Segment
from support.decoding import make_experiment, run_script, write_noise
from support.paths import ROOT

SCRIPT = "egs/librispeech/transcribe.py"
CHUNK = ChunkConfig(8, 32)


@pytest.fixture(scope="module")
def exp_dir(tmp_path_factory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("streaming"), causal=True)


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """A folder of good files of many kinds."""
    folder = tmp_path_factory.mktemp("audio")
    write_noise(folder / "mono.wav", 2.0)
    write_noise(folder / "stereo.FLAC", 2.0, channels=2)
    write_noise(folder / "below" / "telephone.wav", 1.5, rate=8000)
    write_noise(folder / "below" / "cd.wav", 2.5, rate=44100, channels=2)
    write_noise(folder / "below" / "deeper" / "music.mp3", 1.0, rate=44100)
    (folder / "notes.txt").write_text("no sound")
    return folder


def transcribe(monkeypatch, capsys, exp_dir: Path, *args: Any) -> dict[str, dict[str, Any]]:
    """What the script prints as JSON, by file name; it must succeed."""
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--json", 1, *args) == ""
    return by_name(capsys.readouterr().out)


def by_name(printed: str) -> dict[str, dict[str, Any]]:
    answers = [json.loads(line) for line in printed.splitlines()]
    return {Path(answer["audio"]).name: answer for answer in answers}


def make_transcriber(exp_dir: Path, **changed: Any) -> Transcriber:
    config = ExperimentConfig.load(exp_dir)
    model = load_trained(config, DecodeConfig(exp_dir=str(exp_dir))).model
    settings = dict(search=GreedySearch(), chunk=CHUNK, num_streams=4, max_seconds=10.0)
    return Transcriber(model, Tokenizer(config.data.bpe_model), **{**settings, **changed})


def refuse(path: Path, error: UserError) -> None:
    raise error


@pytest.fixture
def texts_take_no_time(monkeypatch):
    """So all partial texts are shown, however busy the machine is."""
    monkeypatch.setattr("kdstream.decoding.transcribe.perf_counter", lambda: 0.0)


@pytest.mark.slow
def test_a_directory_of_all_kinds_of_files_is_transcribed(exp_dir, audio, monkeypatch, capsys):
    answers = transcribe(monkeypatch, capsys, exp_dir, audio)
    assert {name: answer["seconds"] for name, answer in answers.items()} == {
        "mono.wav": 2.0,
        "stereo.FLAC": 2.0,
        "telephone.wav": 1.5,
        "cd.wav": 2.5,
        "music.mp3": 1.0,
    }
    assert all(answer["text"] for answer in answers.values())


def test_json_says_each_word_in_its_time(exp_dir, audio, monkeypatch, capsys):
    answer = transcribe(monkeypatch, capsys, exp_dir, audio / "mono.wav")["mono.wav"]
    words = answer["words"]
    assert " ".join(word["word"] for word in words) == answer["text"] and len(words) > 2
    times = [time for word in words for time in (word["start"], word["end"])]
    assert times == sorted(times) and 0 <= times[0] and times[-1] <= 2.0 + CHUNK.tail / 100
    assert all(word["end"] - word["start"] >= 0.04 - 1e-9 for word in words)
    assert 0 < answer["confidence"] <= 1


@pytest.mark.slow
def test_plain_output_has_text_and_times(exp_dir, audio, monkeypatch, capsys):
    answer = transcribe(monkeypatch, capsys, exp_dir, audio / "mono.wav")["mono.wav"]
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, audio / "mono.wav") == ""
    text, times = capsys.readouterr().out.splitlines()
    assert text == f"{audio / 'mono.wav'}: {answer['text']}"
    assert times.split("  ")[1:] == [""] + [f"{word['start']:.2f} {word['word']}" for word in answer["words"]]


def test_words_are_those_of_the_whole_text(exp_dir, audio):
    transcriber = make_transcriber(exp_dir)
    (heard,) = transcriber.files([audio / "mono.wav"], refuse)
    features = compute_fbank(read_audio_file(audio / "mono.wav"))
    (whole,) = decode_whole(transcriber.model, features[None], torch.tensor([len(features)]), CHUNK, GreedySearch())
    assert heard.text == transcriber.tokenizer.decode(whole.tokens)
    assert heard.words[0].start == pytest.approx(whole.timestamps[0] * 0.04)


def test_broken_files_are_named_and_the_rest_transcribed(exp_dir, audio, tmp_path, monkeypatch, capsys):
    shutil.copy(audio / "mono.wav", tmp_path / "good.wav")
    whole = (audio / "stereo.FLAC").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "junk.mp3").write_bytes(b"no sound" * 100)
    (tmp_path / "nothing.wav").write_bytes(b"")
    soundfile.write(tmp_path / "short.wav", np.zeros(20), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    args = ("--exp-dir", exp_dir, "--json", 1, tmp_path, tmp_path / "absent.wav")
    error = run_script(monkeypatch, SCRIPT, *args)
    printed = capsys.readouterr()
    assert list(by_name(printed.out)) == ["good.wav"]
    broken = ["absent.wav", "cut.flac", "junk.mp3", "nan.wav", "nothing.wav", "short.wav"]
    assert error.startswith("error: 6 of 7 files") and all(name in error for name in broken)
    reports = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert sorted(Path(line.split(":")[1].strip()).name for line in reports) == broken


NAMES = (b"latin1-\xe9t\xe9.wav", b"line\nbreak.wav", b"blank and 'quote' \".wav", "\u65e5\u672c.wav".encode())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("as_json", [0, 1])
def test_output_survives_any_file_name(exp_dir, tmp_path, monkeypatch, encoding, as_json):
    folder = tmp_path / "names"
    folder.mkdir()
    write_noise(tmp_path / "short.wav", 0.3)
    for name in NAMES:
        shutil.copy(tmp_path / "short.wav", folder / os.fsdecode(name))
    (folder / os.fsdecode(b"broken\n\xff.wav")).write_bytes(b"text")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--json", as_json, folder)
    assert "1 of 5 files" in error and "broken\\n\\udcff.wav" in error and error.encode()
    out.flush()
    err.flush()
    assert err.buffer.getvalue().count(b"\n") == 1
    lines = out.buffer.getvalue().decode(encoding).splitlines()
    if as_json:
        heard = {os.fsencode(Path(json.loads(line)["audio"]).name) for line in lines}
        assert heard == set(NAMES)
    else:
        assert len(lines) == 2 * len(NAMES)
        assert all(line.startswith((f"{folder}/", "    ")) for line in lines)


@pytest.mark.parametrize(
    "args, named",
    [
        ((), "name audio files"),
        (("a.wav", "--microphone", 1), "name audio files"),
        (("a.wav", "--bpe-model", "none.model"), "none.model"),
        (("a.wav", "--lodr-scale", -0.1), "--lodr-scale"),
    ],
)
def test_bad_input_gets_one_line(exp_dir, monkeypatch, args, named):
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *args)
    assert error.startswith("error: ") and named in error and "\n" not in error


@pytest.mark.slow
def test_many_files_at_once_give_what_each_gives_alone(exp_dir, audio):
    paths = find_audio([str(audio)])
    together = {heard.audio: heard for heard in make_transcriber(exp_dir).files(paths, refuse)}
    one_by_one = {heard.audio: heard for heard in make_transcriber(exp_dir, num_streams=1).files(paths, refuse)}
    assert {name: heard.words for name, heard in together.items()} == {n: h.words for n, h in one_by_one.items()}
    assert list(one_by_one) == list(map(str, paths))


def test_partial_text_grows_into_the_final_one(exp_dir, audio, texts_take_no_time):
    path, partial = audio / "mono.wav", []
    (heard,) = make_transcriber(exp_dir, on_partial=partial.append).files([path], refuse)
    assert len(set(partial)) > 3
    assert all(f"{path}: {heard.text}".startswith(text) for text in partial)


@pytest.mark.slow
def test_long_files_give_the_words_of_whole_ones_and_are_read_as_they_are_decoded(
    exp_dir, audio, monkeypatch, texts_take_no_time
):
    paths = find_audio([str(audio)])
    whole = {heard.audio: heard for heard in make_transcriber(exp_dir).files(paths, refuse)}
    read: list[int] = []
    blocks = LongSound.blocks

    def counted(self):
        for block in blocks(self):
            read.append(len(block))
            yield block

    monkeypatch.setattr("kdstream.decoding.audio.HELD_SECONDS", 1.2)
    monkeypatch.setattr("kdstream.audio.files.SHORT_BLOCK", 4000)
    monkeypatch.setattr(LongSound, "blocks", counted)
    parts = {heard.audio: heard for heard in make_transcriber(exp_dir).files(paths, refuse)}
    assert {name: (heard.words, heard.seconds) for name, heard in parts.items()} == {
        name: (heard.words, heard.seconds) for name, heard in whole.items()
    }
    assert len(read) > 40 and max(read) == 4000  # four of the five files are longer
    read.clear()
    partial: list[int] = []
    transcriber = make_transcriber(exp_dir, on_partial=lambda text: partial.append(sum(read)))
    list(transcriber.files([audio / "mono.wav"], refuse))
    assert partial[0] <= 8000 and partial[-1] == 32000


@pytest.mark.parametrize("begun", [False, True])
def test_a_file_that_breaks_while_it_is_decoded_is_reported_and_ends_no_other(exp_dir, audio, monkeypatch, begun):
    paths = [audio / "mono.wav", audio / "below" / "telephone.wav", audio / "below" / "cd.wav"]
    expected = {heard.audio: heard.words for heard in make_transcriber(exp_dir).files(paths[1:], refuse)}
    error = UserError("mono.wav: cut short or damaged")

    def breaking(self):
        if begun:
            yield np.zeros(16000, np.float32)
        raise error

    monkeypatch.setattr(LongSound, "blocks", breaking)
    find = find_long_audio
    monkeypatch.setattr("kdstream.decoding.audio.HELD_SECONDS", 0.0)
    monkeypatch.setattr(
        "kdstream.decoding.transcribe.find_long_audio", lambda path: find(path) if path == paths[0] else None
    )
    told: list[tuple[Path, UserError]] = []
    transcriber = make_transcriber(exp_dir)
    heard = {heard.audio: heard.words for heard in transcriber.files(paths, lambda *report: told.append(report))}
    assert heard == expected and told == [(paths[0], error)]
    with pytest.raises(UserError, match="mono.wav: cut short"):
        list(transcriber.files(paths[:1], refuse))


def test_partial_texts_take_a_bounded_part_of_the_time(exp_dir, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("kdstream.decoding.transcribe.perf_counter", lambda: now[0])

    def text() -> str:
        now[0] += 1.0  # as of a long history
        return "all that was said"

    partial: list[str] = []
    look = make_transcriber(exp_dir, on_partial=partial.append)._when_cheap(text)
    for _ in range(1000):
        now[0] += 0.1  # a step
        look()
    assert len(partial) == pytest.approx(LOOKING * 100, abs=1)


def test_live_sound_gives_the_words_of_a_file(exp_dir, audio, texts_take_no_time):
    samples = read_audio_file(audio / "mono.wav").numpy()
    partial: list[str] = []
    transcriber = make_transcriber(exp_dir, on_partial=partial.append)
    (expected,) = transcriber.files([audio / "mono.wav"], refuse)
    partial.clear()
    heard = transcriber.live(np.split(samples, [1, 700, 701, 5000, 20000]))
    assert heard.words == expected.words and heard.seconds == 2.0
    assert len(partial) > 5 and all(heard.text.startswith(text) for text in partial)


def test_segments_of_live_sound_are_shown_as_they_end_up(exp_dir, audio):
    """One is shown again where its last word is completed."""
    shown: list[tuple[int, Segment]] = []
    rules = EndpointConfig(rule3_min_utterance_length=0.3)  # which ends within words
    transcriber = make_transcriber(exp_dir, endpoints=rules, on_segment=lambda *told: shown.append(told))
    samples = read_audio_file(audio / "mono.wav").numpy()
    heard = transcriber.live(np.split(samples, range(1600, len(samples), 1600)))
    last = dict(shown)
    told = [last[number] for number in range(len(last))]
    assert told[:-1] == heard.segments[: len(last) - 1]  # the end of the sound completes the last of them
    assert len(last) > 2 and len(shown) > len(last)


def test_ctrl_c_ends_live_sound_after_the_block_in_which_it_comes(exp_dir, audio):
    samples = read_audio_file(audio / "mono.wav").numpy()

    def interrupted():
        yield samples[:20000]
        signal.raise_signal(signal.SIGINT)
        yield samples[20000:]
        raise AssertionError("it listens on")

    before = signal.getsignal(signal.SIGINT)
    transcriber = make_transcriber(exp_dir)
    assert transcriber.live(interrupted()) == transcriber.live([samples])
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("step", [0, 3])
def test_ctrl_c_does_not_tear_a_chunk(exp_dir, audio, monkeypatch, step):
    samples = read_audio_file(audio / "mono.wav").numpy()
    transcriber = make_transcriber(exp_dir)
    whole = transcriber.live([samples])
    advance, steps = GreedySearch.advance, []

    def interrupt(self, *args):
        steps.append(1)
        if len(steps) == step + 1:
            signal.raise_signal(signal.SIGINT)
        return advance(self, *args)

    monkeypatch.setattr(GreedySearch, "advance", interrupt)
    assert transcriber.live([samples]) == whole
    assert len(steps) > 5


def test_a_second_ctrl_c_ends_the_program(exp_dir, audio):
    samples = read_audio_file(audio / "mono.wav").numpy()

    def interrupted_twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield samples

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs deaf to it
    try:
        with pytest.raises(KeyboardInterrupt):
            make_transcriber(exp_dir).live(interrupted_twice())
    finally:
        signal.signal(signal.SIGINT, before)


def test_live_sound_is_heard_in_another_thread(exp_dir, audio):
    samples = read_audio_file(audio / "mono.wav").numpy()
    transcriber = make_transcriber(exp_dir)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(transcriber.live, [samples]).result() == transcriber.live([samples])


class FakeStream:
    """sounddevice's InputStream, which loses sound in every third block."""

    def __init__(self, **settings: Any) -> None:
        self.blocks = 0

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self, samples: int) -> tuple[np.ndarray, bool]:
        self.blocks += 1
        return np.zeros((samples, 1), np.float32), self.blocks % 3 == 0


@pytest.mark.parametrize("blocks, losses", [(2, 0), (10, 3)])
def test_sound_that_the_microphone_lost_is_counted_in_one_warning(monkeypatch, caplog, blocks, losses):
    fake = SimpleNamespace(InputStream=FakeStream, PortAudioError=OSError)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    with closing(microphone()) as sound:
        assert [next(sound).shape for _ in range(blocks)] == [(1600,)] * blocks
        assert caplog.records == []
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        f"--microphone 1: sound was lost {losses} times"
    ] * bool(losses)


def test_a_full_context_model_hears_whole_files_in_batches(tmp_path, audio, monkeypatch, capsys):
    exp_dir = make_experiment(tmp_path, causal=False)
    answers = transcribe(monkeypatch, capsys, exp_dir, audio, "--max-duration", 2)
    assert len(answers) == 5 and all(answer["text"] for answer in answers.values())
    alone = transcribe(monkeypatch, capsys, exp_dir, audio / "mono.wav")
    assert alone["mono.wav"]["words"] == answers["mono.wav"]["words"]
    soundfile.write(tmp_path / "long.wav", np.zeros(61 * 16000), 16000)  # more than a minute, and than the flag
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--max-duration", 2, tmp_path / "long.wav")
    assert "1 of 1 files" in error and "61 s are more than a minute" in capsys.readouterr().err
    with pytest.raises(UserError, match="whole utterances only"):
        make_transcriber(exp_dir, chunk=None).live([])


def test_without_its_library_the_microphone_is_refused_in_one_line(exp_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UserError, match="--microphone 1: .*pip install sounddevice"):
        next(microphone())
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--microphone", 1)
    assert "pip install sounddevice" in error and "\n" not in error


@pytest.mark.slow
def test_transcribing_needs_no_scoring_and_no_locks():
    """kaldialign and fcntl are not everywhere."""
    code = (
        "import contextlib, sys\nfrom kdstream.commands.transcribe import main\n"
        "with contextlib.suppress(Exception): main(['nowhere.wav'])\nprint(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "kdstream.decoding.transcribe" in loaded
    assert not [name for name in loaded if name == "kaldialign" or name.startswith("kdstream.evaluation")]
