"""Flags of every command that runs cells."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from kdstream.config.flags import parser_of
from kdstream.errors import UserError
from kdstream.experiments import flags
from support.paths import ROOT


def parse(*words: str) -> argparse.Namespace:
    parser = parser_of(None)
    flags.add_runner_flags(parser, seeds="1")
    return parser.parse_args(["--exp-root", "exp", *words])


def test_commands_run_in_the_checkouts_recipe_and_without_a_checkout_where_the_user_is(tmp_path, monkeypatch):
    assert parse().recipe == ROOT / "egs" / "librispeech"
    monkeypatch.setattr(flags, "CHECKOUT_RECIPE", tmp_path / "site-packages" / "egs" / "librispeech")
    monkeypatch.chdir(tmp_path)
    assert parse().recipe == tmp_path
    (tmp_path / "mine").mkdir()
    assert parse("--recipe", "mine").recipe == tmp_path / "mine"


def test_a_recipe_that_is_no_directory_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for name in ("file", "nowhere"):
        with pytest.raises(UserError, match=f"^--recipe {name}: no such directory;"):
            parse("--recipe", name)


def test_seeds_are_numbers_that_count_once():
    assert parse("--seeds", "3,1,3").seeds == (3, 1)
    assert parse().seeds == (1,)
