"""What run.sh runs: all checks one after the other, and one JSON file that `kdstream render-results` can show."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path

from stand_ins import stand_in

TIME = 330.0  # seconds after which no further check begins


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true", help="Run on a CPU, with tiny sizes.")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="The results (default: %(default)s).")
    parser.add_argument("--icefall", default="", help="Folder of icefall's zipformer recipe, to compare with.")
    return parser


def main() -> int:
    args = get_parser().parse_args()
    missing = stand_in()
    import torch

    if not args.dry_run and not torch.cuda.is_available():
        print("error: no GPU is here; --dry-run runs the checks on a CPU, with tiny sizes", file=sys.stderr)
        return 2
    from checks import CHECKS, World, row
    from steps import DRY, Sizes

    device = torch.device("cpu" if args.dry_run else "cuda")
    world = World(device, DRY if args.dry_run else Sizes(), frozenset(missing), args.icefall)
    name = "CPU, dry run" if args.dry_run else torch.cuda.get_device_name()
    rows = [row("machine", name, f"torch {torch.__version__}")]
    started = time.monotonic()
    for check in CHECKS:
        begin = time.monotonic()
        if begin - started > TIME:
            rows.append(row(check.__name__, "not run: no time was left", ""))
            continue
        try:
            for found in check(world):
                rows.append(found)
                print(" | ".join(str(value) for value in found.values()), flush=True)
        except Exception as error:
            traceback.print_exc()
            rows.append(row(check.__name__, f"{type(error).__name__}: {error}"[:200], "", "", passed=False))
        print(f"{check.__name__}: {time.monotonic() - begin:.0f} s", flush=True)
    args.json.write_text(json.dumps(rows, indent=1) + "\n")
    failed = [found for found in rows if found["passed"] == "NO"]
    print(f"{args.json}: {len(rows)} rows, {len(failed)} failed, {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
