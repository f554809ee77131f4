"""Checks manifests of cuts as training and decoding will read them, and prints what they hold.

    kdstream validate-manifest data/fbank/librispeech_cuts_dev.jsonl.gz

Prints one line for the first thing that is wrong, and exits with status 1.  With --read 1 it reads every feature matrix
too, which finds NaN and damaged files.  It looks through the audio files that are there too, which finds those that are
cut short, and those of which Lhotse would hear a part.  A manifest may be a Shar directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdstream.config.flags import parser_of, str2bool


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("manifests", nargs="+", type=Path, metavar="MANIFEST", help="Manifests of cuts.")
    parser.add_argument("--read", type=str2bool, default=False, help="Read features and look through audio too.")
    args = parser.parse_args(argv)

    from kdstream.corpus.validate import check_manifest

    for path in args.manifests:
        print(check_manifest(path, args.read))
