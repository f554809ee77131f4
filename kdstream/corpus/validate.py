"""Checks manifests of cuts as training and decoding will read them, and prints what they hold.

    python local/validate_manifest.py data/fbank/librispeech_cuts_dev.jsonl.gz

One line for the first thing that is wrong, and exit status 1.  With --read 1 every feature matrix is
read too (NaN, damaged files).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lhotse.cut import Cut
from tqdm import tqdm

from kdstream.config.flags import parser_of, str2bool
from kdstream.data.cuts import read_manifest, text_of
from kdstream.data.features import FBANK
from kdstream.data.reading import read_utterance
from kdstream.errors import UserError


def check(cut: Cut) -> None:
    """Raises UserError unless the cut has one transcript, within it, and features of the right kind if any."""
    if len(cut.supervisions) != 1 or not text_of(cut):
        raise UserError(f"cut {cut.id}: {len(cut.supervisions)} supervisions or an empty transcript; one is wanted")
    supervision = cut.supervisions[0]
    if supervision.start < -0.01 or supervision.end > cut.duration + 0.01:
        raise UserError(f"cut {cut.id}: its supervision ends outside it; use cuts.trim_to_supervisions()")
    if cut.has_features and cut.num_features != FBANK.config.num_filters:
        bins = FBANK.config.num_filters
        raise UserError(f"cut {cut.id}: {cut.num_features} bins; {bins} wanted: use compute_fbank.py")
    if not cut.has_features and not cut.has_recording:
        raise UserError(f"cut {cut.id}: neither features nor a recording")


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("manifests", nargs="+", type=Path)
    parser.add_argument("--read", type=str2bool, default=False, help="Read all features too.")
    args = parser.parse_args(argv)
    for path in args.manifests:
        durations = []
        for cut in tqdm(read_manifest(path), desc=path.name, unit=" cuts", disable=None):
            check(cut)
            if args.read:
                read_utterance(cut, from_audio=False)
            durations.append(cut.duration)
        if not durations:
            raise UserError(f"{path}: holds no cuts")
        print(
            f"{path}: {len(durations)} cuts, {sum(durations) / 3600:.2f} h, "
            f"{min(durations):.1f} to {max(durations):.1f} s, mean {sum(durations) / len(durations):.1f} s"
        )
