"""Fills the tables of RESULTS.md from the JSON files of published runs.

    python local/render_results.py --results egs/librispeech/RESULTS.md --json-dir egs/librispeech/results

Between `<!-- table: NAME -->` and `<!-- end -->` it puts what DIR/NAME.json says; what stands outside the markers is
left alone.  With --check 1 nothing is written, and the exit status tells whether the file is up to date.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from kdstream.config.flags import str2bool
from kdstream.errors import UserError
from kdstream.evaluation.tables import render

RECIPE = Path(__file__).resolve().parents[2] / "egs" / "librispeech"
TABLE = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
MARKER = re.compile(r"<!-- (?:table: [\w.-]+|end) -->")


def fill(text: str, json_dir: Path) -> str:
    """`text` with every table rendered anew.  Raises UserError on a marker without its partner, or a missing file."""
    if 2 * len(TABLE.findall(text)) != len(MARKER.findall(text)):
        raise UserError("RESULTS.md: every `<!-- table: NAME -->` needs one `<!-- end -->` after it, and the reverse")
    return TABLE.sub(lambda found: f"{found[1]}{render(json_dir / (found['name'] + '.json'))}{found[3]}", text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=RECIPE / "RESULTS.md", help="Markdown file (default: %(default)s)"
    )
    parser.add_argument("--json-dir", type=Path, default=RECIPE / "results", help="JSON files (default: %(default)s)")
    parser.add_argument("--check", type=str2bool, default=False, help="Write nothing, only compare (default: 0)")
    args = parser.parse_args(argv)
    if not args.results.is_file():
        raise UserError(f"{args.results}: no such file; give --results")
    text = args.results.read_text(encoding="utf8")
    filled = fill(text, args.json_dir)
    if args.check and filled != text:
        raise UserError(f"{args.results}: its tables are not those of {args.json_dir}; run local/render_results.py")
    if filled != text:
        args.results.write_text(filled, encoding="utf8")
