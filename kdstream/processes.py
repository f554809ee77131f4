"""What Linux does with a process when the one that started it has ended."""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # of Linux' prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded now: a process that was just forked must not


def end_with_parent() -> None:
    """Makes Linux kill this process when the one that started it has been killed, and could not end it itself."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
