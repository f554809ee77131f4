"""Two commits' training steps, one after the other on one batch: what a change gains."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

import kdstream
from kdstream.benchmarks.memory import told_by
from kdstream.errors import UserError, option

ROOT = Path(kdstream.__file__).parents[1]
STEP = Path(__file__).with_name("step_of_checkout.py")


@contextlib.contextmanager
def checkout_of(commit: str) -> Iterator[Path]:
    """A folder with the files of `commit`.  Raises UserError where git does not know it, or where there is no git."""
    command = ["git", "-C", str(ROOT), "archive", commit]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        raise UserError("needs git", flag=option("against", commit), fix="install git") from None
    if done.returncode:
        problem = done.stderr.decode().strip().splitlines()[-1]
        raise UserError(problem, flag=option("against", commit), fix="give a commit, and run from a git checkout")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder)
        yield Path(folder)


class StepsOfCheckout:
    """A process that runs the steps of one checkout when asked to."""

    def __init__(self, checkout: Path, flags: Sequence[str]) -> None:
        self.command = [sys.executable, str(STEP), str(checkout), *flags]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, row: str, repetition: int) -> dict[str, float]:
        """{"seconds": of processor time, "loss": total}.  Raises UserError where the process has failed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"row": row, "repetition": repetition}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            fix = "give flags that both commits take"
            raise UserError(f"{shlex.join(self.command)}: failed as shown above", flag=option("against"), fix=fix)
        return json.loads(answer)

    def close(self) -> None:
        self.process.communicate()


def compare_with(
    commit: str, rows: Sequence[str], flags: Sequence[str], repetitions: int, memory: bool
) -> list[dict[str, Any]]:
    """The table: one row for each of `rows`, this checkout's figures over those of `commit`.

    Args:
      flags: of bench-train-step, known to both.
      repetitions: pairs of steps that count; one more goes before.
      memory: whether to measure peak memory too.
    """
    with checkout_of(commit) as theirs:
        sides = [StepsOfCheckout(checkout, flags) for checkout in (theirs, ROOT)]
        pairs: dict[str, list[list[dict[str, float]]]] = {row: [] for row in rows}
        try:
            for repetition in tqdm(range(repetitions + 1), desc="pairs", disable=None):
                for row in rows:
                    pairs[row].append([side.run(row, repetition) for side in sides])
        finally:
            for side in sides:
                side.close()
        scripts = [[sys.executable, str(checkout / "local" / "bench_train_step.py")] for checkout in (theirs, ROOT)]
        peaks = {row: [told_by([*script, *flags, "--memory-of", row]) for script in scripts] for row in rows if memory}
    return [figures(row, commit, pairs[row][1:], peaks.get(row)) for row in rows]


def figures(
    row: str, commit: str, pairs: Sequence[Sequence[dict[str, float]]], peaks: Sequence[float] | None
) -> dict[str, Any]:
    """One row of the table; `pairs` of (theirs, ours).  Times are medians, and the ratio is the median over pairs."""
    before, now = ([1000 * pair[side]["seconds"] for pair in pairs] for side in (0, 1))
    differences = [abs(ours["loss"] - theirs["loss"]) / abs(theirs["loss"]) for theirs, ours in pairs]
    table = {
        "step": row,
        f"ms at {commit}": round(median(before)),
        "ms now": round(median(now)),
        "ratio": median(ours / theirs for theirs, ours in zip(before, now, strict=True)),
        "losses differ by": f"{max(differences):.0e}",
    }
    if peaks is not None:
        table.update({f"peak MB at {commit}": round(peaks[0]), "peak MB now": round(peaks[1])})
        table["ratio of peaks"] = peaks[1] / peaks[0]
    return table
