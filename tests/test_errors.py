"""UserError: one line that names flag, problem and fix."""

from __future__ import annotations

import pickle
import re

import pytest

from kdstream.errors import UserError, option, printable
from support.paths import ROOT


@pytest.mark.parametrize(
    "error, line",
    [
        (UserError("a.wav: no such file"), "a.wav: no such file"),
        (UserError("a.wav: no such file", fix="give another"), "a.wav: no such file; give another"),
        (UserError("must be positive", flag=option("beam_size", 0)), "--beam-size 0: must be positive"),
        (UserError("too many", flag=option("avg"), fix="lower it"), "--avg: too many; lower it"),
    ],
)
def test_an_error_is_one_line_of_flag_problem_and_fix(error, line):
    assert str(error) == line


@pytest.mark.parametrize(
    "name, shown",
    [
        ("line\nbreak\t.wav", "line\\nbreak\\t.wav"),
        ("not-utf8-\udce9.wav", "not-utf8-\\udce9.wav"),
        ("\x1b[31mred\x9b\u2028.wav", "\\x1b[31mred\\x9b\\u2028.wav"),
        ("\u65e5\u672c \u0646\u0645\u06cc\u200c\u062f\u0627\u0646\u0645 '\".wav",) * 2,
    ],
)
def test_an_error_is_one_line_in_utf8_whatever_a_file_is_called(name, shown):
    assert printable(name) == shown and printable(name).encode()
    assert str(UserError(f"{name}: no such file")) == f"{shown}: no such file"


def test_messages_and_help_name_no_script_that_an_installed_package_lacks():
    scripts = {path.name for path in (ROOT / "local").glob("*.py")}
    named = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in (ROOT / "kdstream").rglob("*.py")
        for name in re.findall(r"\blocal/(\w+\.py)", path.read_text(encoding="utf-8"))
    }
    assert scripts and named == {("kdstream/experiments/cells.py", "cache_teacher.py")}  # which runs in a checkout


def test_an_error_comes_whole_from_another_process():
    error = pickle.loads(pickle.dumps(UserError("too many", flag="--avg 3", fix="lower it")))
    assert (str(error), error.flag, error.fix) == ("--avg 3: too many; lower it", "--avg 3", "lower it")
