"""The usage at the top of each command's --help: commands as a user types them, with flags that exist."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import kdstream
from kdstream import commands
from support.paths import ROOT

USAGE = re.compile(r"^    (?:kdstream|python) (?:.*\\\n)*.*$", re.MULTILINE)
RECIPE = ROOT / "egs" / "librispeech"


def usages_of(help_text: str) -> list[list[str]]:
    return [shlex.split(found.replace("\\\n", " ")) for found in USAGE.findall(help_text)]


def name_of(program: str, first: str) -> str:
    """The command that `kdstream COMMAND` or a script of the recipe runs."""
    return first if program == "kdstream" else re.findall(r'"([a-z-]+)"\)$', (RECIPE / first).read_text().strip())[0]


def help_of(name: str, capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit, match="0"):
        commands.main([name, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENAMETOOLONG])
def test_what_the_system_says_of_a_file_is_one_line(number):
    def command():
        raise OSError(number, os.strerror(number), "exp/config.json")

    with pytest.raises(SystemExit, match=f"^error: exp/config.json: {os.strerror(number)}; \\w+"):
        commands.run(command)


def test_an_error_of_the_system_that_nobody_can_mend_keeps_its_traceback():
    def command():
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    with pytest.raises(OSError, match="Bad file descriptor"):
        commands.run(command)


@pytest.mark.parametrize(
    "code, status",
    [
        ("[print('a line', flush=True) for _ in range(3)]", commands.UNREAD),
        ("print('a line')", commands.UNREAD),  # which is written at the end
        ("print('a long line' * 100_000)", commands.UNREAD),
        ("print('usage') or sys.exit(0)", 0),
        ("print('a line') or sys.exit('error: no such file')", 1),
    ],
)
def test_a_command_whose_output_nobody_reads_ends_quietly(code, status):
    """As behind `| head`, which has read what it wants."""
    read, write = os.pipe()
    os.close(read)
    script = f"import sys; from kdstream.commands import run; run(lambda: {code} and None)"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with open(write, "wb") as unread:
        command = [sys.executable, "-c", script]
        ended = subprocess.run(command, cwd=ROOT, env=buffered, stdout=unread, stderr=subprocess.PIPE, timeout=60)
    assert (ended.returncode, ended.stderr) == (status, b"error: no such file\n" if status == 1 else b"")


def test_another_pipe_that_breaks_keeps_its_traceback():
    def command():
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with pytest.raises(BrokenPipeError):
        commands.run(command)


def test_version_is_that_of_the_package(capsys):
    commands.main(["--version"])
    assert capsys.readouterr().out == f"kdstream {kdstream.__version__}\n"


@pytest.mark.parametrize("name", sorted(commands.COMMANDS))
def test_usage_shows_commands_that_can_be_typed(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kdstream"])
    text = help_of(name, capsys)
    usages = usages_of(text)
    assert any(name_of(program, first) == name for program, first, *_ in usages)
    for program, first, *words in usages:
        known = set(re.findall(r"--[\w-]+", help_of(name_of(program, first), capsys).partition("\n\n")[0]))
        flags = {word for word in words if re.match(r"--[\w-]+$", word)}
        assert flags <= known, f"{first} has no {', '.join(sorted(flags - known))}"


def test_help_says_what_an_empty_list_of_names_means(capsys):
    text = " ".join(help_of("train", capsys).split())
    assert "others begin at random. (default: all)" in text
    assert "continues in the others. (default: all cuts of all manifests)" in text


def test_pseudo_label_is_announced_with_all_its_labellers(capsys):
    commands.main(["--help"])
    assert "with a teacher or Whisper" in capsys.readouterr().out


@pytest.mark.parametrize("script", sorted(path.name for path in RECIPE.glob("*.py")))
def test_scripts_of_the_recipe_run_a_command(script):
    assert name_of("python", script) == Path(script).stem.replace("_", "-")
