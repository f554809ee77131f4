"""Transcribes unlabelled cuts with a teacher and keeps what it is sure of, for train.py --pseudo-cuts.

    python local/pseudo_label.py --exp-dir exp/teacher --avg 3 --cuts data/unlabelled.jsonl.gz \
        --output data/pseudo_cuts.jsonl.gz --min-confidence 0.8

The confidence of a hypothesis is the geometric mean of the probabilities that the search gave its tokens.  Cuts that
reach --min-confidence are written, in a random, repeatable order, with the hypothesis as their text and
supervision.custom["confidence"]; what they had of features stays.  Left out as well is where nothing is said, or <unk>.
A histogram of all confidences comes beside the output, as a PNG.  Where the cuts have transcripts, the word error
rates of the kept and of all hypotheses are printed, to choose --min-confidence by.

Cuts are utterances (no longer than the teacher can hear at once), one supervision at most in each.  A teacher that
is not causal hears them in full context, a causal one in its chunks.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from lhotse import SupervisionSegment
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.utils import fastcopy
from tqdm import tqdm

from kdstream.checkpoints.trained import load_trained
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import add_arguments, add_overrides, from_args, override, parser_of
from kdstream.config.sections import DataConfig, DecodeConfig
from kdstream.corpus.fbank import write_cuts
from kdstream.data.cuts import read_manifest
from kdstream.decoding.stream import decode_whole
from kdstream.errors import UserError
from kdstream.evaluation import scoring
from kdstream.evaluation.run import DecodingRun
from kdstream.evaluation.scoring import Transcript
from kdstream.reporting.style import COLOURS, WIDTH, phone_style, save

SUFFIXES = (".jsonl.gz", ".jsonl")
BINS = 50


class Hypothesis(NamedTuple):
    """What the teacher hears in a cut; `confidence` is None where that is no text."""

    cut: Cut
    transcript: Transcript
    confidence: float | None

    def reaches(self, min_confidence: float) -> bool:
        return self.confidence is not None and self.confidence >= min_confidence


def read_cuts(path: Path) -> list[Cut]:
    """The cuts to transcribe.  Raises UserError if there are none, or some that cannot be given a text of their own."""
    cuts = list(read_manifest(path))
    if not cuts:
        raise UserError(f"{path}: holds no cuts; see --cuts")
    if len({cut.id for cut in cuts}) < len(cuts):
        raise UserError(f"{path}: several cuts have the same id; name them anew, e.g. with cut.with_id()")
    for cut in cuts:
        if not isinstance(cut, DataCut):
            raise UserError(f"{path}: cut {cut.id} is a mix; store its audio first, with cut.save_audio()")
    return cuts


def transcribe(run: DecodingRun, cuts: Sequence[Cut]) -> list[Hypothesis]:
    """What the teacher of `run` hears, from stored features where there are any."""
    by_id = {cut.id: cut for cut in cuts}
    tokenizer = run.data.tokenizer
    hypotheses = []
    copies = [fastcopy(cut, custom=dict(cut.custom or {})) for cut in cuts]  # Lhotse's samplers write into custom
    batches = run.data.in_order(copies, from_audio=False)
    for batch in tqdm(batches, total=batches.num_batches, desc="pseudo labels", disable=None):
        results = decode_whole(run.model, batch.features, batch.feature_lens, run.chunk, run.search)
        for cut_id, text, result in zip(batch.cut_ids, batch.texts, results, strict=True):
            transcript = run.transcript(cut_id, text, result)
            is_text = transcript.hyp and tokenizer.unk_id not in result.tokens
            hypotheses.append(Hypothesis(by_id[cut_id], transcript, result.confidence if is_text else None))
    return hypotheses


def labelled(hypothesis: Hypothesis) -> Cut:
    """The cut with the hypothesis in place of any text; what else is known of it, as its speaker, stays."""
    cut = hypothesis.cut
    known = cut.supervisions or [SupervisionSegment(cut.id, cut.recording_id, 0.0, cut.duration, cut.channel)]
    supervision = fastcopy(
        known[0],
        start=0.0,
        duration=cut.duration,
        text=" ".join(hypothesis.transcript.hyp),
        alignment=None,  # of a text that is gone
        custom={**(known[0].custom or {}), "confidence": hypothesis.confidence},
    )
    return fastcopy(cut, supervisions=[supervision])


def log_wer(name: str, hypotheses: Sequence[Hypothesis]) -> None:
    """One line with the word error rate of those that have a transcript, if any has."""
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
    add_arguments(parser, DecodeConfig, leave_out=("num_decode_streams", "alignments", "system", "results_json"))
    add_overrides(parser, DataConfig, "bpe_model", "max_duration", "num_workers")
    args = parser.parse_args(argv)
    if not 0 <= args.min_confidence <= 1:
        raise UserError(f"--min-confidence {args.min_confidence:g}: must lie between 0 and 1; try 0.8")
    if not args.output.name.endswith(SUFFIXES):
        raise UserError(f"--output {args.output}: must be named .jsonl.gz or .jsonl; rename it")
    if args.output.resolve() == args.cuts.resolve():
        raise UserError(f"--output {args.output}: is what --cuts names; give it another name")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = read_flags(argv)
    decode = from_args(DecodeConfig, args)
    config = ExperimentConfig.load(decode.exp_dir)
    config = replace(config, data=override(config.data, args))
    cuts = read_cuts(args.cuts)
    args.output.parent.mkdir(parents=True, exist_ok=True)

    hypotheses = transcribe(DecodingRun(config, decode, load_trained(config, decode), chunkwise=False), cuts)
    kept = [hypothesis for hypothesis in hypotheses if hypothesis.reaches(args.min_confidence)]
    log_kept(kept, hypotheses, args.min_confidence)
    confidences = [hypothesis.confidence for hypothesis in hypotheses if hypothesis.confidence is not None]
    histogram = args.output.with_name(args.output.name.split(".jsonl")[0] + ".png")
    plot_confidences(confidences, args.min_confidence, histogram)
    if not kept:
        best = max(confidences, default=0.0)
        raise UserError(
            f"--min-confidence {args.min_confidence:g}: no cut reaches it, the best has {best:.2f}; see {histogram}, "
            "and lower it or take a better teacher"
        )
    # They come longest first, and training reads manifests through a window: it should hold all lengths.
    random.Random(0).shuffle(kept)
    write_cuts([labelled(hypothesis) for hypothesis in kept], args.output)
