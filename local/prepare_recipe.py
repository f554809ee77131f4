#!/usr/bin/env python3
"""`kdstream prepare-recipe`, from a checkout; --help shows its usage."""

from pathlib import Path
from runpy import run_path

if __name__ == "__main__":
    run_path(str(Path(__file__).resolve().parents[1] / "kdstream" / "__main__.py"))["run_command"]("prepare-recipe")
