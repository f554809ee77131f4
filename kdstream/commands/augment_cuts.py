"""Copies cuts as through a telephone line, a codec or a room, or with pauses, and writes a manifest of the copies.

    kdstream augment-cuts --cuts data/fbank/librispeech_cuts_train.jsonl.gz --augment narrowband,reverb --share 0.5 \
        --output data/fbank/librispeech_cuts_train_lines.jsonl.gz
    python train.py ... --train-parts train,train_lines

narrowband is a telephone line of 8 kHz and mu-law; mp3 and opus are codecs, from medium to bad quality; reverb is one
of 50 rooms; volume is from -26 dB to the cut's own; pauses puts 0 to 2 s of quiet before and after the speech.  Each of
them makes a copy of each cut, or of a share of the cuts, which their ids draw: the copies are the same each time.
Their ids end in _NAME.  Features, and audio where a copy needs it, are written beside the manifest.

A test set is copied likewise: --test-parts test,test_narrowband says what the line costs.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

from kdstream.config.command_line import log_to_stderr
from kdstream.config.flags import add_jobs, names_in, parser_of
from kdstream.corpus.line_table import LINES, names_of


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cuts", required=True, help="Manifests of cuts with audio, separated by commas.")
    parser.add_argument("--augment", required=True, help=f"Some of {','.join(LINES)}, separated by commas.")
    parser.add_argument("--share", type=float, default=1.0, help="Share of cuts for each of them (default: 1)")
    parser.add_argument("--output", type=Path, required=True, help="Manifest to write; features go beside it.")
    add_jobs(parser)
    args = parser.parse_args(argv)
    names = names_of(args.augment)

    import torch

    from kdstream.corpus.lines import augment_cuts

    log_to_stderr()
    output = args.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # in the processes too, which are forked
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        paths = [Path(path) for path in names_in(args.cuts, "cuts")]
        copies = augment_cuts(paths, names, args.share, output, pool)
    logging.info(f"{output}: {len(copies)} copies, {sum(copy.duration for copy in copies) / 3600:.2f} h")
