"""transcribe.py: its formats, the files that it writes, standard input, and Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import BinaryIO

import pytest
import soundfile

import kdstream
from kdstream.commands.transcribe import GrowingLine, fitted
from kdstream.decoding.greedy import GreedySearch
from kdstream.formats import FORMATS
from support.decoding import make_experiment, run_script, write_noise

SCRIPT = "egs/librispeech/transcribe.py"
WIDE = "今天天气很好他有手机"


@pytest.fixture(scope="module")
def exp_dir(tmp_path_factory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("streaming"), causal=True)


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("audio")
    return [write_noise(folder / f"{name}.wav", 3.0, seed=seed) for seed, name in enumerate(("one", "two"))]


def test_every_format_is_written_to_a_file_of_its_name(exp_dir, audio, tmp_path, monkeypatch, capsys):
    for form in FORMATS:
        args = ("--format", form, "--output-dir", tmp_path / "new", "--rule3-min-utterance-length", 1)
        assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *args, *audio) == ""
        written = [tmp_path / "new" / f"{path.stem}.{form}" for path in audio]
        assert capsys.readouterr().out == "".join(f"{path}\n" for path in written)
        assert all(path.stat().st_size > 20 for path in written)
    heard = json.loads((tmp_path / "new" / "one.json").read_text())
    assert len(heard["segments"]) >= 3
    assert " ".join(segment["text"] for segment in heard["segments"]) == heard["text"]
    assert len((tmp_path / "new" / "one.stm").read_text().splitlines()) == len(heard["segments"])
    assert len((tmp_path / "new" / "one.ctm").read_text().splitlines()) == len(heard["words"])


def test_endpoints_change_no_word_of_greedy_search(exp_dir, audio, monkeypatch, capsys):
    printed = []
    for flags in (("--enable-endpoint", 0), (), ("--rule2-min-trailing-silence", 0.2)):
        assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *flags, *audio) == ""
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2] != ""


def test_flags_of_streaming_are_pointed_out_in_full_context(exp_dir, audio, monkeypatch, caplog):
    flags = {"--rule2-min-trailing-silence": 0.2, "--engine": "torch", "--num-decode-streams": 3}
    typed = [word for pair in flags.items() for word in pair]
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--chunk-size", -1, *typed, audio[0]) == ""
    assert {f"{name} {value}: has no effect in full context" for name, value in flags.items()} <= {*caplog.messages}
    caplog.clear()
    kdstream.load(exp_dir, chunk=-1, engine="torch")
    assert caplog.messages == ["--engine torch: has no effect in full context"]


@pytest.mark.parametrize(
    "text", ["A NEW DAY", "今天天气很好", "他有iPhone手机", "ABC", "", "tie\u0302\u0301ng vie\u0323\u0302t", "ﾊﾛｰ"]
)
def test_a_growing_text_fills_its_columns_with_its_end_and_no_more(text):
    for columns in range(1, 16):
        shown = fitted(text, columns)
        assert text.endswith(shown.rstrip(" ")) and width_of(shown) == columns
        before = text[: len(text) - len(shown.rstrip(" "))]
        assert not before or width_of(shown.rstrip(" ")) + width_of(before[-1]) > columns


def test_a_segment_whose_word_is_completed_replaces_itself_on_the_terminal(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((8, 24)))
    line = GrowingLine()
    segments = [(0, "A NEW"), (1, "DAY BEGINS"), (1, "DAY BEGINSX"), (2, "今天天气"), (2, "今天天气很"), (2, "今天")]
    for number, text in segments:
        line.show("GROWING")
        line.keep(number, text)
    assert screen_of(terminal.getvalue(), 8) == ["A NEW", "DAY BEGI", "NSX", "今天", ""]


def screen_of(written: str, columns: int) -> list[str]:
    """The rows of a terminal after what was written."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Z]|[\s\S]", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            rows += [""] * (row == len(rows))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[J":
            rows[row:] = [rows[row][:column]]
        else:
            if width_of(rows[row][:column] + part) > columns:
                row, column = row + 1, 0
                rows += [""] * (row == len(rows))
            rows[row] = rows[row][:column] + part + rows[row][column + width_of(part) :]
            column += 1
    return [row.rstrip() for row in rows]


def width_of(text: str) -> int:
    return sum(0 if unicodedata.combining(letter) else 1 + (letter in WIDE) for letter in text)


def test_two_formats_are_refused(exp_dir, audio, monkeypatch, capsys):
    flags = ("--json", 1, "--format", "srt")
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *flags, audio[0])
    assert error == "error: --format srt --json 1: name two formats; give one of them"
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--json", 1, "--format", "json", audio[0]) == ""
    assert json.loads(capsys.readouterr().out)["audio"] == str(audio[0])


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_of_two_files_are_not_printed_as_one(exp_dir, audio, monkeypatch, form):
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--format", form, *audio)
    assert (
        error
        == f"error: --format {form}: 2 files: {form} is of one; give --output-dir DIR, which takes a file for each"
    )


@pytest.mark.parametrize("name, named", [("one.wav", "one.wav"), ("one.flac", "one.flac"), ("in/one.wav", "in")])
def test_two_files_of_one_name_do_not_overwrite_each_other(exp_dir, audio, tmp_path, monkeypatch, name, named):
    """Be it by another ending, or in a directory that is named."""
    other, out = write_noise(tmp_path / name, 1.0), tmp_path / "out"
    args = ("--exp-dir", exp_dir, "--format", "srt", "--output-dir", out, audio[0], tmp_path / named)
    error = run_script(monkeypatch, SCRIPT, *args)
    problem = f"{audio[0]} and {other} would both be one.srt; give each its own --output-dir"
    assert error == f"error: --output-dir {out}: {problem}" and not out.exists()


def test_a_file_that_is_transcribed_again_replaces_its_result(exp_dir, audio, tmp_path, monkeypatch):
    args = ("--exp-dir", exp_dir, "--output-dir", tmp_path)
    assert run_script(monkeypatch, SCRIPT, *args, audio[0]) == ""
    first = (tmp_path / "one.txt").read_text()
    (tmp_path / "one.txt").write_text("another")
    assert run_script(monkeypatch, SCRIPT, *args, audio[0], audio[0]) == ""  # and named twice it is one file
    assert (tmp_path / "one.txt").read_text() == first


@pytest.mark.parametrize("form", ["ctm", "stm"])
@pytest.mark.parametrize("other, flags", [("tue/one.wav", ()), ("o n/a b.wav", ("--output-dir", "out"))])
def test_lines_of_two_recordings_can_be_told_apart(exp_dir, tmp_path, monkeypatch, form, other, flags):
    monkeypatch.chdir(tmp_path)
    paths = [Path("mon/one.wav"), Path("mon/a_b.wav"), Path(other)]
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--format", form, *flags, *paths)
    name = Path(other).stem.replace(" ", "_")
    problem = f"mon/{name}.wav and {other} would both be {name}; give each its own --output-dir"
    assert error == f"error: --format {form}: {problem}" and not Path("out").exists()


@pytest.fixture
def pipe(monkeypatch) -> Iterator[BinaryIO]:
    """What is written here comes from standard input."""
    reads, writes = os.pipe()
    with open(reads) as stdin, open(writes, "wb", buffering=0) as end:
        monkeypatch.setattr("sys.stdin", stdin)
        yield end


def fill(pipe: BinaryIO, data: bytes, step: int) -> Thread:
    """Writes into the pipe beside the test, so many bytes at once, and closes it."""

    def write() -> None:
        with pipe:
            for begin in range(0, len(data), step):
                pipe.write(data[begin : begin + step])

    thread = Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("more", [b"", b"x"], ids=["whole samples", "half a sample more"])
@pytest.mark.parametrize("step", [7, 3200, 1 << 20])
def test_a_stream_says_what_a_file_of_its_samples_says(exp_dir, audio, pipe, tmp_path, monkeypatch, capsys, step, more):
    samples, _ = soundfile.read(audio[0], dtype="int16")
    soundfile.write(tmp_path / "same.wav", samples, 16000)
    writer = fill(pipe, samples.astype("<i2").tobytes() + more, step)
    args = ("--exp-dir", exp_dir, "--format", "json")
    assert run_script(monkeypatch, SCRIPT, *args, "--output-dir", tmp_path, "-") == ""
    writer.join()
    assert capsys.readouterr().out == f"{tmp_path / 'stdin.json'}\n"
    assert run_script(monkeypatch, SCRIPT, *args, tmp_path / "same.wav") == ""
    stream, file = (json.loads(text) for text in ((tmp_path / "stdin.json").read_text(), capsys.readouterr().out))
    assert stream["audio"] == "stdin" and len(stream["words"]) > 3
    assert {**stream, "audio": "", "confidence": 0} == {**file, "audio": "", "confidence": 0}
    assert stream["confidence"] == pytest.approx(file["confidence"], abs=1e-5)


@pytest.mark.parametrize("sent", [0, 1, 48000])
def test_ctrl_c_ends_a_stream_that_has_paused(exp_dir, audio, pipe, monkeypatch, capsys, sent):
    samples, _ = soundfile.read(audio[0], dtype="int16")
    pipe.write(samples.astype("<i2").tobytes()[:sent])
    ready, asked = select.select, []

    def interrupt(*args):
        asked.append(args)
        if len(asked) == 5:
            signal.raise_signal(signal.SIGINT)
        return ready(*args)

    monkeypatch.setattr(select, "select", interrupt)
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--json", 1, "-") == ""
    heard = json.loads(capsys.readouterr().out)
    assert len(asked) == 5 and heard["seconds"] == sent // 2 / 16000 and (heard["text"] or not sent)


@pytest.mark.parametrize(
    "data, named",
    [
        (b"", "-: less than 10 ms of sound; pipe raw samples into it: ffmpeg "),
        (b"\0" * 319, "-: less than 10 ms of sound"),
        (b"RIFF\xff\xff\xff\xffWAVEfmt " + b"\0" * 400, "-: a file with a header, not raw samples; pipe raw samples"),
    ],
)
def test_what_is_no_raw_sound_on_standard_input_gets_one_line(exp_dir, pipe, monkeypatch, data, named):
    writer = fill(pipe, data, 5)
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "-")
    writer.join()
    assert error.startswith("error: ") and named in error and "\n" not in error


def test_standard_input_goes_alone_and_is_no_terminal(exp_dir, audio, monkeypatch):
    for others in ((audio[0], "-"), ("-", "-")):
        error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *others)
        fix = "transcribe it alone; a file of this name is ./-"
        assert error == f"error: -: standard input and files at once; {fix}"
    for stdin in (None, SimpleNamespace(isatty=lambda: True)):
        monkeypatch.setattr("sys.stdin", stdin)
        error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "-")
        assert error.startswith("error: -: standard input is no pipe and no file; pipe raw samples into it: ffmpeg ")


def test_a_full_context_model_hears_no_stream(exp_dir, pipe, monkeypatch):
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--chunk-size", -1, "-")
    assert error == "error: -: the model hears whole utterances only; use a streaming one, or files"


def test_ctrl_c_within_a_step_prints_what_was_heard_until_then(exp_dir, audio, monkeypatch, capsys):
    run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *audio)
    whole = capsys.readouterr().out.splitlines()[::2]
    advance, steps = GreedySearch.advance, []

    def interrupt(self, *args):
        steps.append(1)
        if len(steps) == 6:
            signal.raise_signal(signal.SIGINT)
        return advance(self, *args)

    monkeypatch.setattr(GreedySearch, "advance", interrupt)
    before = signal.getsignal(signal.SIGINT)
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *audio) == "130"
    heard, told = capsys.readouterr()
    parts = heard.splitlines()[::2]
    assert len(steps) == 6 and "stopped by Ctrl-C" in told and signal.getsignal(signal.SIGINT) is before
    assert [len(line.split()) > 1 for line in parts] == [True, True]
    assert all(line.startswith(part) and line != part for line, part in zip(whole, parts, strict=True))
