"""Transcribes unlabelled cuts with a teacher and keeps the confident transcripts, for train.py --pseudo-cuts.

    kdstream pseudo-label --exp-dir exp/teacher --avg 3 --cuts data/unlabelled.jsonl.gz \
        --output data/pseudo_cuts.jsonl.gz --min-confidence 0.8

The confidence of a hypothesis is the geometric mean of the probabilities that the search gave its tokens.  Cuts that
reach --min-confidence are written, in a random order that is the same each time, with the hypothesis as their text and
with supervision.custom["confidence"].  They keep the features that they had.  Cuts whose hypothesis is empty or holds
<unk> are left out too.  (Here alone <unk> is not taken for blank: a transcript with a hole would train the student.)  A
histogram of all confidences is written beside the output, as a PNG.  Where the cuts have transcripts, the word error
rates of the kept and of all hypotheses are printed, which helps to choose --min-confidence.

Cuts are utterances that the teacher can take in whole, with one supervision at most.  A teacher that is not causal
hears them in full context, a causal one in its chunks.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdstream.config.command_line import RECORD_FLAGS
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import add_arguments, add_overrides, from_args, override, parser_of
from kdstream.config.sections import DataConfig, DecodeConfig
from kdstream.errors import UserError, option

if TYPE_CHECKING:
    from kdstream.corpus.pseudo_labels import Hypothesis

SUFFIXES = (".jsonl.gz", ".jsonl")
BINS = 50


def log_wer(name: str, hypotheses: Sequence[Hypothesis]) -> None:
    """One line with the word error rate of those that have a transcript, if any has."""
    from kdstream.evaluation import scoring

    transcripts = [hypothesis.transcript for hypothesis in hypotheses if hypothesis.transcript.ref]
    if transcripts:
        logging.info(scoring.score(scoring.align(transcripts)).log_line(name))


def log_kept(kept: Sequence[Hypothesis], hypotheses: Sequence[Hypothesis], min_confidence: float) -> None:
    hours, all_hours = (sum(h.cut.duration for h in some) / 3600 for some in (kept, hypotheses))
    textless = sum(hypothesis.confidence is None for hypothesis in hypotheses)
    logging.info(
        f"{len(kept)} of {len(hypotheses)} cuts kept ({hours:.2f} of {all_hours:.2f} h), of confidence "
        f"{min_confidence:g} or more; {textless} without a text"
    )
    log_wer("kept", kept)
    log_wer("all", hypotheses)


def plot_confidences(confidences: Sequence[float], min_confidence: float, path: Path) -> None:
    """A histogram, with the threshold in it."""
    import matplotlib.pyplot as plt

    from kdstream.reporting.style import COLOURS, WIDTH, phone_style, save

    with phone_style():
        figure, axes = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
        axes.hist(confidences, bins=BINS, range=(0.0, 1.0), color=COLOURS[0])
        axes.axvline(min_confidence, color=COLOURS[1], linewidth=2, label=f"--min-confidence {min_confidence:g}")
        axes.set(xlabel="confidence", ylabel="cuts", xlim=(0.0, 1.0))
        axes.legend()
        save(figure, path)


def read_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises UserError for flags that could only fail after the cuts have been transcribed."""
    parser = parser_of(__doc__)
    parser.add_argument("--cuts", type=Path, required=True, help="Lhotse cut manifest to transcribe.")
    parser.add_argument("--output", type=Path, required=True, help="Cut manifest to write, .jsonl.gz or .jsonl.")
    parser.add_argument("--min-confidence", type=float, default=0.8, help="Keep from here on (default: %(default)s)")
    add_arguments(parser, DecodeConfig, leave_out=("num_decode_streams", "engine", *RECORD_FLAGS))
    add_overrides(parser, DataConfig, "bpe_model", "max_duration", "num_workers")
    args = parser.parse_args(argv)
    if not 0 <= args.min_confidence <= 1:
        raise UserError("must lie between 0 and 1", flag=f"--min-confidence {args.min_confidence:g}", fix="try 0.8")
    if not args.output.name.endswith(SUFFIXES):
        raise UserError("must be named .jsonl.gz or .jsonl", flag=option("output", args.output), fix="rename it")
    if args.output.resolve() == args.cuts.resolve():
        raise UserError("is what --cuts names", flag=option("output", args.output), fix="give it another name")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = read_flags(argv)

    from kdstream.checkpoints.trained import load_trained
    from kdstream.corpus.pseudo_labels import labelled, read_cuts, transcribe_cuts
    from kdstream.data.cuts import write_cuts
    from kdstream.evaluation.run import DecodingRun

    decode = from_args(DecodeConfig, args)
    config = ExperimentConfig.load(decode.exp_dir)
    config = replace(config, data=override(config.data, args))
    cuts = read_cuts(args.cuts)
    args.output.parent.mkdir(parents=True, exist_ok=True)

    hypotheses = transcribe_cuts(DecodingRun(config, decode, load_trained(config, decode), chunkwise=False), cuts)
    kept = [hypothesis for hypothesis in hypotheses if hypothesis.reaches(args.min_confidence)]
    log_kept(kept, hypotheses, args.min_confidence)
    confidences = [hypothesis.confidence for hypothesis in hypotheses if hypothesis.confidence is not None]
    histogram = args.output.with_name(args.output.name.split(".jsonl")[0] + ".png")
    plot_confidences(confidences, args.min_confidence, histogram)
    if not kept:
        best = max(confidences, default=0.0)
        raise UserError(
            f"no cut reaches it, the best has {best:.2f}",
            flag=f"--min-confidence {args.min_confidence:g}",
            fix=f"see {histogram}, and lower it or take a better teacher",
        )
    # They come longest first, but training reads manifests through a window, which should hold all lengths.
    random.Random(0).shuffle(kept)
    write_cuts([labelled(hypothesis) for hypothesis in kept], args.output)
