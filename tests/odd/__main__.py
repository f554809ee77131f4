"""Tries odd inputs, and counts by kind how they were taken.

    PYTHONPATH=.:tests python -m odd --count 1000 --seed 0

Each fault is printed with the directory that holds its input; the exit status is 1 where there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from odd.trial import count_by_kind, try_odd_input
from odd.world import World, make_world, warm_up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="Odd inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="Of the generator (default: %(default)s)")
    parser.add_argument("--kinds", default="", help="Kinds to try, separated by commas (default: all)")
    parser.add_argument("--folder", type=Path, help="Where to work (default: a temporary directory)")
    args = parser.parse_args()
    warm_up()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="odd-"))
    world = World(folder / "world") if (folder / "world" / "made").is_file() else make_world(folder / "world")
    trials = []
    for trial in try_odd_input(world, folder, args.count, args.seed, args.kinds.split(",") if args.kinds else ()):
        trials.append(trial)
        if trial.fault:
            print(f"{trial.kind} {trial.number}: {trial.what}: {trial.fault}; see {trial.folder}", flush=True)
    print(count_by_kind(trials))
    return int(any(trial.fault for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
