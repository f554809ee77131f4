"""Fills the tables of the results pages from the JSON files of published runs.

    kdstream render-results
    kdstream render-results --results egs/librispeech/results/methods.md --check 1

Between `<!-- table: NAME -->` and `<!-- end -->` it puts the table of DIR/NAME.json.  It leaves all other text alone.
Without --results it fills RESULTS.md and every page in results/.  With --check 1 it writes nothing, and the exit
status tells whether all pages are up to date.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kdstream.config.flags import parser_of, str2bool
from kdstream.errors import UserError
from kdstream.files import write_text

RECIPE = Path(__file__).resolve().parents[2] / "egs" / "librispeech"
TABLE = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
MARKER = re.compile(r"<!-- (?:table: [\w.-]+|end) -->")


def fill(page: Path, json_dir: Path) -> str:
    """The text of `page` with every table rendered anew.

    Raises UserError for a page that is missing, a marker without its partner, or a missing JSON file.
    """
    from kdstream.evaluation.tables import render

    if not page.is_file():
        raise UserError(f"{page}: no such file; give --results")
    text = page.read_text(encoding="utf8")
    if 2 * len(TABLE.findall(text)) != len(MARKER.findall(text)):
        raise UserError(f"{page}: every `<!-- table: NAME -->` needs one `<!-- end -->` after it, and the reverse")
    return TABLE.sub(lambda found: f"{found[1]}{render(json_dir / (found['name'] + '.json'))}{found[3]}", text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--results", type=Path, nargs="+", help="Markdown files (default: the recipe's RESULTS.md and results/*.md)"
    )
    parser.add_argument("--json-dir", type=Path, default=RECIPE / "results", help="JSON files (default: %(default)s)")
    parser.add_argument("--check", type=str2bool, default=False, help="Write nothing, only compare (default: 0)")
    args = parser.parse_args(argv)
    pages = args.results or [RECIPE / "RESULTS.md", *sorted((RECIPE / "results").glob("*.md"))]
    filled = {page: fill(page, args.json_dir) for page in pages}
    stale = [page for page, text in filled.items() if text != page.read_text(encoding="utf8")]
    if stale and args.check:
        names = ", ".join(map(str, stale))
        raise UserError(f"{names}: not the tables of {args.json_dir}; run kdstream render-results")
    for page in stale:
        write_text(page, filled[page])
