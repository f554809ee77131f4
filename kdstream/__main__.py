"""The console command, `kdstream COMMAND`; the scripts in egs/librispeech/ and local/ run it by its path."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by its path, from a checkout that need not be installed and goes before one that is
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kdstream.commands import main, run_command

__all__ = ["main", "run_command"]

if __name__ == "__main__":
    sys.exit(main())
