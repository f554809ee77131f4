"""Runs a command on one odd input in a process of its own, and judges how it ended.

A command may refuse its input: it then exits with a status other than 0 after one line, which begins with "error: ",
names the file, cut or flag at fault, and says what to do.  Or it handles the input: it then exits with status 0, and
what it has written accounts for everything that went in.  All else is a fault: a traceback, a hang, more lines than
one, a line that names nothing, or a piece of input of which nobody hears again.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdstream.commands import main

SECONDS = 60.0
MEMORY_BYTES = 12 << 30  # of address space: what asks for more is a fault
POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Outcome:
    """How a command ended.  status: of its exit; None where it had to be killed."""

    status: int | None
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout + self.stderr


@dataclass(frozen=True)
class Case:
    """One odd input.

    kind: of input, as docs/robustness.md lists them.
    what: a few words on what is odd.
    argv: of `kdstream`.
    names: any of these must stand in a refusal.
    check: what is wrong with how the input was handled; "" if nothing is.
    must: "refuse", "handle" or "" for either.
    lines: of a refusal at most; transcribe.py has one for each file, and one with their number.
    """

    kind: str
    what: str
    argv: Sequence[str]
    names: Sequence[str]
    check: Callable[[Outcome], str] = lambda outcome: ""
    must: str = ""
    lines: int = 1

    def verdict(self, outcome: Outcome) -> tuple[str, str]:
        """("refused" or "handled", the fault or "")."""
        if outcome.status is None:
            return "handled", f"did not end within {SECONDS:g} s"
        if outcome.status < 0:
            return "handled", f"was ended by signal {-outcome.status}"
        if "Traceback (most recent call last)" in outcome.text:
            return "handled", "a traceback"
        if outcome.status == 0:
            return "handled", "was not refused" if self.must == "refuse" else self.check(outcome)
        return "refused", self._fault_of_refusal(outcome.stderr)

    def _fault_of_refusal(self, stderr: str) -> str:
        lines = [line for line in stderr.splitlines() if re.match(r"(kdstream \S+: )?error: ", line)]
        if not 1 <= len(lines) <= self.lines or not stderr.rstrip("\n").endswith("\n".join(lines)):
            return f"{len(lines)} error lines, or text after them"
        if self.must == "handle":
            return "was refused"
        if re.match(r"kdstream \S+: error: (argument|unrecognized|the following|one of)", lines[0]):  # argparse's own
            return ""
        named = any(name in lines[0] for name in self.names)
        return (
            "" if named and re.search("; |: must ", lines[0]) else f"names none of {', '.join(self.names)}, or no fix"
        )


def run(argv: Sequence[str], folder: Path, seconds: float = SECONDS) -> Outcome:
    """`kdstream ARGV` in a forked process with `folder` as its working directory."""
    paths = [folder / name for name in ("stdout.txt", "stderr.txt")]
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_the_command(argv, folder, paths)
    status = _wait(child, time.monotonic() + seconds)
    stdout, stderr = (path.read_text(encoding="utf-8", errors="backslashreplace") for path in paths)
    return Outcome(status, stdout, stderr)


def _be_the_command(argv: Sequence[str], folder: Path, paths: Sequence[Path]) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        for descriptor, path in zip((1, 2), paths, strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.stdout, sys.stderr = (open(fd, "w", buffering=1, encoding="utf-8", closefd=False) for fd in (1, 2))
        logging.root.handlers.clear()
        main(argv)
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, deadline: float) -> int | None:
    """The exit status of `child`, or None where it was killed at the deadline.  Its own children end with it."""
    while True:
        pid, state = os.waitpid(child, os.WNOHANG)
        if pid or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if not pid:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(state)
