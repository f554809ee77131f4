"""Checks manifests of cuts as training and decoding will read them, and prints what they hold.

    kdstream validate-manifest data/fbank/librispeech_cuts_dev.jsonl.gz

Prints one line for the first thing that is wrong, and exits with status 1.  With --read 1 it reads every feature matrix
too, which finds NaN and damaged files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdstream.config.flags import parser_of, str2bool


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("manifests", nargs="+", type=Path, metavar="MANIFEST", help="Manifests of cuts.")
    parser.add_argument("--read", type=str2bool, default=False, help="Read all features too.")
    args = parser.parse_args(argv)

    from tqdm import tqdm

    from kdstream.corpus.validate import check_cut
    from kdstream.data.cuts import iterate, read_manifest
    from kdstream.data.reading import check_filter_bank, read_utterance

    for path in args.manifests:
        check_filter_bank(iterate(read_manifest(path)), path)
        durations = []
        for cut in tqdm(iterate(read_manifest(path)), desc=path.name, unit=" cuts", disable=None):
            check_cut(cut, path)
            if args.read:
                read_utterance(cut, from_audio=False)
            durations.append(cut.duration)
        print(
            f"{path}: {len(durations)} cuts, {sum(durations) / 3600:.2f} h, "
            f"{min(durations):.1f} to {max(durations):.1f} s, mean {sum(durations) / len(durations):.1f} s"
        )
