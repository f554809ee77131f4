"""Transcribes speech without transcripts and keeps the trustworthy texts, for train.py --pseudo-cuts.

    kdstream pseudo-label --exp-dir exp/teacher --cuts data/unlabelled.jsonl.gz \
        --output data/pseudo_cuts.jsonl.gz --min-confidence 0.8
    kdstream pseudo-label --labeller faster-whisper --model whisper-base --bpe-model data/lang_bpe_500/bpe.model \
        --cuts data/unlabelled.jsonl.gz --output data/pseudo_cuts.jsonl.gz

The labeller is a model that train.py has trained, or (faster-whisper) a Whisper model in CTranslate2's format.  Cuts
that no rule drops are written, in a random order that is the same each time, with the hypothesis as their text and with
supervision.custom["confidence"].  They keep the features that they had.  A table says how many cuts and hours each rule
drops.  Beside the output stand OUTPUT.dropped.json, which names those cuts, and a histogram of all confidences, as a
PNG.  Where the cuts have transcripts, the word error rates of the kept and of all hypotheses are printed.

The confidence of a hypothesis is the geometric mean of the probabilities that the search gave its tokens.  Cuts whose
hypothesis is empty or holds <unk> are always dropped.  (Here alone <unk> is not taken for blank: a transcript with a
hole would train the student.)

Our own model takes utterances that it can hear whole, with one supervision at most.  One that is not causal hears them
in full context, a causal one in its chunks.

Whisper takes cuts of any length, with audio.  Longer ones than --max-segment-seconds are cut in their silences.  Texts
are spelt with the letters of --bpe-model.  More rules are for what Whisper makes up: see the flags.  OUTPUT.heard.jsonl
keeps what it hears.  The same command continues from there after a kill, and other rules take the texts that are there.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdstream.config.command_line import log_to_stderr
from kdstream.config.decoding import ContextConfig, DecodeConfig, DeviceConfig, SearchConfig, WeightsConfig
from kdstream.config.flags import add_arguments, add_overrides, from_args, override, parser_of
from kdstream.config.labels import LABELLERS, LabelConfig
from kdstream.config.sections import DataConfig
from kdstream.errors import UserError
from kdstream.files import check_output_of_cuts

if TYPE_CHECKING:
    from lhotse.cut.data import DataCut

    from kdstream.corpus.label_rules import Account
    from kdstream.corpus.pseudo_labels import Hypothesis

BINS = 50


def log_wer(name: str, some: Sequence[Hypothesis], hypotheses: Sequence[Hypothesis]) -> None:
    """One line with the word error rate of the cuts with a transcript of which `some` have all pieces, if any has."""
    from kdstream.corpus.pseudo_labels import whole_transcripts
    from kdstream.evaluation import scoring

    transcripts = [transcript for transcript in whole_transcripts(some, hypotheses) if transcript.ref]
    if transcripts:
        logging.info(scoring.score(scoring.align(transcripts)).log_line(name))


def log_kept(account: Account) -> None:
    kept, hypotheses = account.kept, account.hypotheses
    hours, all_hours = (sum(h.cut.duration for h in some) / 3600 for some in (kept, hypotheses))
    textless = sum(hypothesis.confidence is None for hypothesis in hypotheses)
    logging.info(
        f"{len(kept)} of {len(hypotheses)} cuts kept ({hours:.2f} of {all_hours:.2f} h), of confidence "
        f"{account.config.min_confidence:g} or more; {textless} without a text\n{account.table()}"
    )
    log_wer("kept", kept, hypotheses)
    log_wer("all", hypotheses, hypotheses)


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
    for section in (LabelConfig, WeightsConfig, ContextConfig, SearchConfig, DeviceConfig):
        add_arguments(parser, section)
    add_overrides(parser, DataConfig, "bpe_model", "max_duration", "num_workers")
    args = parser.parse_args(argv)
    check_output_of_cuts(args.output, [args.cuts])
    from_args(LabelConfig, args).check_used()
    return args


def check_kept(account: Account, least: float, histogram: Path, dropped: Path) -> None:
    """Raises UserError if no cut is kept.  least: confidence of those that are."""
    if account.kept:
        return
    best = max((hypothesis.confidence or 0.0 for hypothesis in account.hypotheses), default=0.0)
    if any(hypothesis.reaches(least) for hypothesis in account.hypotheses):
        raise UserError("the rules drop every cut", fix=f"see {dropped}, and change the flags that it names")
    raise UserError(
        f"no cut reaches it, the best has {best:.2f}",
        flag=f"--min-confidence {least:g}",
        fix=f"see {histogram}, and lower it or take a better teacher",
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = read_flags(argv)

    from kdstream.corpus.label_rules import Account
    from kdstream.corpus.pseudo_labels import labelled, read_cuts
    from kdstream.data.cuts import write_cuts

    log_to_stderr()
    config = from_args(LabelConfig, args)
    labeller = LABELLERS[config.labeller](config, from_args(DecodeConfig, args), lambda data: override(data, args))
    least = labeller.min_confidence if config.min_confidence is None else config.min_confidence
    config = replace(config, min_confidence=least)
    cuts: list[DataCut] = read_cuts(args.cuts, labeller.hears_audio)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    stem = args.output.name.split(".jsonl")[0]
    histogram, dropped, heard = (args.output.with_name(stem + end) for end in (".png", ".dropped.json", ".heard.jsonl"))

    account = Account(labeller.label(cuts, heard), config, sum(cut.duration for cut in cuts) / 3600)
    log_kept(account)
    account.write(dropped)
    confidences = [hypothesis.confidence for hypothesis in account.hypotheses if hypothesis.confidence is not None]
    plot_confidences(confidences, least, histogram)
    check_kept(account, least, histogram, dropped)
    # They come in an order, longest first of our teacher, but training reads manifests through a window, which should
    # hold all lengths.
    random.Random(0).shuffle(account.kept)
    write_cuts([labelled(hypothesis) for hypothesis in account.kept], args.output)
