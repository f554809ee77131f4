"""A command builds its parser without what only its work needs, so that --help comes at once."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from kdstream.commands import COMMANDS
from support.paths import ROOT

HEAVY = (
    "numpy",
    "torch",
    "torchaudio",
    "lhotse",
    "matplotlib",
    "sentencepiece",
    "onnxruntime",
    "sherpa_onnx",
    "aiohttp",
)

# Runs --help of the commands one after the other in one process, and prints what each has imported.
LOOK = f"""
import contextlib, io, json, sys
from kdstream.commands import main
found = {{}}
for name in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main([name, "--help"])
    assert shown.getvalue().startswith("usage: "), name
    found[name] = [module for module in {HEAVY!r} if module in sys.modules]
print(json.dumps(found))
"""


def test_no_parser_needs_torch_or_another_large_package() -> None:
    command = [sys.executable, "-c", LOOK, json.dumps(list(COMMANDS))]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert json.loads(done.stdout) == {name: [] for name in COMMANDS}


@pytest.fixture(scope="module")
def seconds_of_numpy() -> float:
    return least_seconds("-c", "import numpy")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_takes_no_longer_than_importing_numpy_twice(name: str, seconds_of_numpy: float) -> None:
    assert least_seconds("-m", "kdstream", name, "--help") < 2 * seconds_of_numpy


def least_seconds(*arguments: str) -> float:
    """Processor time of the interpreter with `arguments`, the least of three runs."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)
