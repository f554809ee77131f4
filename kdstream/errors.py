"""Errors that the user can mend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(Exception):
    """Input that the user can mend.  Commands print its one line and exit with status 1.

    The line reads `FLAG: PROBLEM; FIX`.

    Args:
      problem: what is wrong, with the file or cut at fault where there is one.
      flag: the flags at fault, as they are typed; see `option`.
      fix: what the user can do about it.
    """

    def __init__(self, problem: str, *, flag: str = "", fix: str = "") -> None:
        self.problem, self.flag, self.fix = problem, flag, fix
        begin = f"{flag}: " if flag else ""
        end = f"; {fix}" if fix else ""
        super().__init__(printable(f"{begin}{problem}{end}"))


def printable(text: str) -> str:
    r"""The text on one line and in any encoding of Unicode: control characters, the ends of lines among them, and bytes
    of file names that are not UTF-8 are written as Python escapes them, e.g. \n and \udce9."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def option(name: str, value: object = None) -> str:
    """A setting as its flag is typed: option("beam_size", 4) is "--beam-size 4"."""
    flag = "--" + name.replace("_", "-")
    return flag if value is None else f"{flag} {value}"


@contextmanager
def packages_of(extra: str, what: str) -> Iterator[None]:
    """Around imports and what they are for: a package that is not installed becomes a UserError that names `extra`.

    Args:
      extra: of kdstream, as in pyproject.toml.
      what: what needs it, e.g. "kdstream export".
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "kdstream"):
            raise
        fix = f"run: pip install 'kdstream[{extra}]'"
        raise UserError(f"{what}: needs {package}, which is not installed", fix=fix) from error
