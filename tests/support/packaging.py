"""What pyproject.toml says of the package, and Python processes in which packages are missing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there, and brings it

REQUIREMENT = re.compile(r"([a-zA-Z0-9_-]+)(?:\[([a-z,]+)\])?(.*)")


def read_pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def extras_of_pyproject() -> dict[str, dict[str, str]]:
    """By extra, all packages that it brings, as name -> bounds; "" is what every installation has."""
    project = read_pyproject()["project"]
    own: dict[str, list[str]] = {"": project["dependencies"], **project["optional-dependencies"]}

    def packages(extra: str) -> dict[str, str]:
        found: dict[str, str] = {} if extra == "" else packages("")
        for requirement in own[extra]:
            name, extras, bounds = split_requirement(requirement)
            items = (
                [item for included in extras.split(",") for item in packages(included).items()]
                if name == project["name"]
                else [(name, bounds)]
            )
            for key, value in items:
                assert found.setdefault(key, value) == value, f"{key}: {value} and {found[key]} in {extra}"
        return found

    return {extra: packages(extra) for extra in own}


def split_requirement(line: str) -> tuple[str, str, str]:
    """name[extras]bounds as its three parts."""
    match = REQUIREMENT.fullmatch(line.strip())
    assert match is not None, line
    return match[1], match[2] or "", match[3]


def read_requirements(path: Path) -> dict[str, str]:
    """By package, what a file of requirements or of constraints says of its version."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    split = [split_requirement(line) for line in lines if line]
    return {package.lower().replace("_", "-"): bounds for package, _, bounds in split}


HIDE = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: None if name.split(".")[0] in HIDDEN else find(name, *where)
"""


def run_without(packages: Sequence[str], code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Runs Python code, with `args` in sys.argv, in a process that cannot import `packages`."""
    program = f"HIDDEN = {set(packages)!r}\n{HIDE}\n{code}"
    command = [sys.executable, "-c", program, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
