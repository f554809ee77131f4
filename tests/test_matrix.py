"""tests/matrix.sh installs what each set says, and tells truly which of them pass."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.packaging import read_requirements
from support.paths import ROOT

# Stands for local/setup_env.sh: a Python whose tests pass, in the set lowest fail, and, for newest, none at all.
SETUP = r"""
[ "$1" = --into ] && [ "${2##*/}" != newest ] || exit 1
mkdir -p "$2/bin"
cp "$3" "$2/constraints"
cp "$4" "$2/requirements"
cat >"$2/bin/python" <<'END'
#!/bin/sh
case "$0 $*" in
  *lowest*pytest*) echo "1 failed, 6 passed in 2.00s"; exit 1 ;;
  *pytest*) echo "$*"; echo "7 passed, 1 skipped in 62.12s (0:01:02)" ;;
  *) echo 3.11.2 2.12.1+cu130 1.33.0 ;;
esac
END
chmod +x "$2/bin/python"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "setup_env.sh").write_text(SETUP)
    (tmp_path / "tests").mkdir()
    for name in ("tests/matrix.sh", "requirements.txt", "constraints.txt", "constraints-k2.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def run(checkout: Path, *arguments: str, keep: str = "1") -> subprocess.CompletedProcess[str]:
    command = ["bash", checkout / "tests" / "matrix.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KEEP": keep})


def test_each_set_has_a_row_and_one_that_fails_or_is_missing_fails_all(checkout):
    done = run(checkout)
    assert done.returncode == 1
    rows = [line.split() for line in done.stdout.partition("\n\n")[2].splitlines()]
    versions = ["3.11.2", "2.12.1+cu130", "1.33.0"]
    assert [row[:4] for row in rows if row[0] not in ("set", "newest")] == [
        [name, *versions] for name in ("pinned", "k2", "lhotse2", "lowest")
    ]
    results = {row[0]: " ".join(row[row[0] == "newest" or 5 :]) for row in rows[1:]}
    assert results.pop("newest").endswith("not installed")
    assert results.pop("lowest") == "1 failed, 6 passed"
    assert set(results.values()) == {"7 passed, 1 skipped"}
    passing = run(checkout, "k2", "--", "tests/models", "-x")
    assert passing.returncode == 0 and "-m not slow tests/models -x\n" in passing.stdout


def test_sets_hold_their_versions(checkout):
    run(checkout)

    def of(name: str) -> tuple[dict[str, str], dict[str, str]]:
        folder = checkout / ".venv-matrix" / name
        return read_requirements(folder / "requirements"), read_requirements(folder / "constraints")

    ours, pinned = read_requirements(ROOT / "requirements.txt"), read_requirements(ROOT / "constraints.txt")
    assert of("pinned") == (ours, pinned)
    assert of("k2") == (ours, read_requirements(ROOT / "constraints-k2.txt"))
    requirements, constraints = of("lhotse2")
    assert constraints == {name: bounds for name, bounds in pinned.items() if name != "lhotse"}
    assert requirements.pop("lhotse").startswith(">=2.0.0a")
    assert requirements == {name: bounds for name, bounds in ours.items() if name != "lhotse"}
    requirements, constraints = of("lowest")
    assert requirements == ours
    assert constraints == {name: bounds.partition(",")[0].replace(">=", "==") for name, bounds in ours.items()}
    assert (checkout / ".venv-matrix" / "lowest" / "constraints").read_text().startswith("# Python 3.10\n")


def test_environments_stay_unless_told_otherwise(checkout):
    run(checkout, "k2")
    assert (checkout / ".venv-matrix" / "k2").is_dir()
    run(checkout, "k2", keep="0")
    assert not (checkout / ".venv-matrix" / "k2").exists()


def test_an_unknown_set_is_named(checkout):
    done = run(checkout, "oldest")
    assert done.returncode == 2 and done.stderr.startswith("error: oldest: no such set; there are pinned k2 newest ")
