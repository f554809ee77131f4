"""Checks manifests of cuts as training and decoding will read them, and prints what they hold.

    kdstream validate-manifest data/fbank/librispeech_cuts_dev.jsonl.gz

Prints one line for the first thing that is wrong, and exits with status 1.  With --read 1 it reads every feature matrix
too, which finds NaN and damaged files.  A manifest may be a Shar directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdstream.config.flags import parser_of, str2bool
from kdstream.files import write_text


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("manifests", nargs="+", type=Path, metavar="MANIFEST", help="Manifests of cuts.")
    parser.add_argument("--read", type=str2bool, default=False, help="Read all features too.")
    parser.add_argument("--table", type=Path, help="Write what the manifests hold here too, as a table.")
    args = parser.parse_args(argv)

    from tqdm import tqdm

    from kdstream.corpus.validate import Found, check_cut, table
    from kdstream.data.cuts import iterate, read_manifest
    from kdstream.data.reading import check_filter_bank, read_utterance

    rows = []
    for path in args.manifests:
        check_filter_bank(iterate(read_manifest(path)), path)
        found = Found(path)
        for cut in tqdm(iterate(read_manifest(path)), desc=path.name, unit=" cuts", disable=None):
            check_cut(cut, path)
            if args.read:
                read_utterance(cut, from_audio=False)
            found.add(cut)
        print(found)
        rows.append(found)
    if args.table:
        write_text(args.table, table(rows))
