"""transcribe.py: its formats, the files that it writes, and Ctrl-C."""

from __future__ import annotations

import json
import signal
import unicodedata
from pathlib import Path

import pytest

import kdstream
from kdstream.commands.transcribe import fitted
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


def test_two_files_of_one_name_do_not_overwrite_each_other(exp_dir, audio, tmp_path, monkeypatch):
    other = write_noise(tmp_path / "one.wav", 1.0)
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--output-dir", tmp_path / "out", audio[0], other)
    assert "would both be one.txt" in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["ctm", "stm"])
@pytest.mark.parametrize("other, flags", [("tue/one.wav", ()), ("o n/a b.wav", ("--output-dir", "out"))])
def test_lines_of_two_recordings_can_be_told_apart(exp_dir, tmp_path, monkeypatch, form, other, flags):
    monkeypatch.chdir(tmp_path)
    paths = [Path("mon/one.wav"), Path("mon/a_b.wav"), Path(other)]
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--format", form, *flags, *paths)
    name = Path(other).stem.replace(" ", "_")
    problem = f"mon/{name}.wav and {other} would both be {name}; transcribe them one after the other"
    assert error == f"error: --format {form}: {problem}" and not Path("out").exists()


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
