"""What all commands' flags have in common."""

from __future__ import annotations

import argparse
import importlib
import re

import pytest

from kdstream.commands import COMMANDS

WITHOUT_FLAGS = {"doctor"}


class ParserCalled(Exception):
    """Carries a command's parser out of its `main`."""


def parser_of_command(name: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def parse_args(self, args=None, namespace=None):
        raise ParserCalled(self)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(ParserCalled) as called:
            importlib.import_module(f"kdstream.{COMMANDS[name].module}").main([])
    return called.value.args[0]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITHOUT_FLAGS])
def test_an_abbreviated_flag_is_refused(name: str, monkeypatch, capsys) -> None:
    parser = parser_of_command(name, monkeypatch)
    flag = re.findall(r"^  (--[\w-]+)", parser.format_help(), re.MULTILINE)[0]
    for item in (*parser._actions, *parser._mutually_exclusive_groups):
        item.required = False  # else what is missing is named first
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args([flag[:-1] + "=1"])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"error: unrecognized arguments: {flag[:-1]}=1; did you mean --\S+\?; .* --help lists", line)


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_jobs_below_one_are_refused_by_every_command_that_has_them(jobs, monkeypatch, capsys) -> None:
    parsers = [parser_of_command(name, monkeypatch) for name in COMMANDS if name not in WITHOUT_FLAGS]
    with_jobs = [parser for parser in parsers if "--jobs" in parser._option_string_actions]
    assert len(with_jobs) == 6
    for parser in with_jobs:
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--jobs", jobs])
        assert f"error: argument --jobs: {jobs}: must be at least 1; " in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITHOUT_FLAGS])
def test_nbest_is_a_flag_of_the_commands_that_write_such_lists_alone(name: str, monkeypatch) -> None:
    flags = parser_of_command(name, monkeypatch)._option_string_actions
    assert ("--nbest" in flags) == (name in ("decode", "streaming-decode"))
