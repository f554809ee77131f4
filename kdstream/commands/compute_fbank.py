"""Computes and stores features, and writes the cuts that training and decoding read.

    kdstream compute-fbank --manifest-dir data/manifests --output-dir data/fbank \
        --train-parts train-clean-5 --perturb-speed true --parts dev-clean-2 --jobs 2

reads librispeech_{recordings,supervisions}_<part>.jsonl.gz and writes librispeech_cuts_<part>.jsonl.gz and
librispeech_feats_<part>/, with another name in place of librispeech by --prefix.  There is a cut for each supervision,
resampled to 16 kHz.  The cuts of training parts are in a random order, which is the same each time.  With --musan
true it reads the MUSAN manifests instead and writes musan_cuts.jsonl.gz: noise in pieces of 10 s.

A file that cannot be read in full stops its part with one line that names it; no cuts are written then.  The cuts of
a part are read again and checked as validate-manifest does.  A line, and with --table a table, says what they hold.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

from kdstream.config.command_line import log_to_stderr
from kdstream.config.flags import add_jobs, names_in, parser_of, str2bool
from kdstream.config.sections import LIBRISPEECH
from kdstream.errors import UserError
from kdstream.files import write_text


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--manifest-dir", type=Path, default=Path("data/manifests"), help="Where manifests are.")
    parser.add_argument("--output-dir", type=Path, default=Path("data/fbank"), help="Where features and cuts go.")
    parser.add_argument("--train-parts", default="", help="Parts to train on, separated by commas.")
    parser.add_argument("--parts", default="", help="Other parts, separated by commas.")
    parser.add_argument("--musan", type=str2bool, default=False, help="MUSAN instead of parts.")
    parser.add_argument("--perturb-speed", type=str2bool, default=False, help="Train at speeds 0.9 and 1.1 as well.")
    parser.add_argument("--prefix", default=LIBRISPEECH, help="What names of manifests begin with.")
    parser.add_argument("--table", type=Path, help="Where to write what the cuts of all parts hold, as a table.")
    add_jobs(parser)
    args = parser.parse_args(argv)
    wanted = [
        (part, is_train)
        for parts, is_train in ((args.train_parts, True), (args.parts, False))
        for part in names_in(parts)
    ]
    if not wanted and not args.musan:
        raise UserError("name nothing", flag="--train-parts and --parts", fix="name parts, or give --musan true")

    import torch

    from kdstream.corpus.fbank import compute_musan, compute_part
    from kdstream.corpus.validate import check_manifest, table

    log_to_stderr()
    output_dir = args.output_dir.resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # in the processes too, which are forked: importing torch anew takes seconds
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        if args.musan:
            compute_musan(args.manifest_dir, output_dir, pool)
        rows = []
        for part, is_train in wanted:
            cuts = compute_part(args.manifest_dir, output_dir, part, pool, is_train, args.perturb_speed, args.prefix)
            rows.append(check_manifest(cuts))
            print(rows[-1])
    if args.table:
        write_text(args.table, table(rows))
