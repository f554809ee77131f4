"""Finds when each word of the test sets ends, with the CTC head of a trained model: references to measure delays by.

    kdstream align --exp-dir exp/teacher --epoch 30 --avg 9 --test-parts test-clean,test-other
    python streaming_decode.py --exp-dir exp/distilled --epoch 30 --avg 9 --alignments exp/teacher/alignments.jsonl.gz

The model needs --use-ctc 1.  Take the best one there is: a full-context teacher, or a streaming model with
--chunk-size -1.  Use the same alignments for all systems that you compare.  The output is a Lhotse manifest of
supervisions, each with alignment["word"] and the id of its cut.  A word lasts from the first to the last frame (40 ms)
of its tokens in the best CTC path; CTC's tokens are shorter than what was spoken, so ends may be some frames early.
Words are those that decode.py scores: of the normalised text, and single characters in scripts without blanks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from kdstream.config.command_line import log_to_stderr, make_parser, read_experiment
from kdstream.config.decoding import ContextConfig, DeviceConfig, WeightsConfig
from kdstream.errors import UserError, option


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, (WeightsConfig, ContextConfig, DeviceConfig))
    parser.add_argument("--output", type=Path, help="What to write (default: EXP_DIR/alignments.jsonl.gz)")
    args = parser.parse_args(argv)

    from lhotse import SupervisionSet

    from kdstream.checkpoints.trained import load_trained
    from kdstream.data.cuts import write_manifest
    from kdstream.data.module import AsrDataModule
    from kdstream.decoding.settings import choose_chunk
    from kdstream.devices import to_device
    from kdstream.evaluation.forced_alignment import aligned_cuts
    from kdstream.evaluation.references import WORD

    log_to_stderr()
    config, decode = read_experiment(args)
    if not config.model.use_ctc:
        raise UserError(f"{decode.exp_dir}: has no CTC head to align with", fix="train a model with --use-ctc 1")
    output = args.output or Path(decode.exp_dir) / "alignments.jsonl.gz"
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError("is a manifest of Lhotse", flag=option("output", output), fix="end it with .jsonl.gz")
    output.parent.mkdir(parents=True, exist_ok=True)
    chunk, data = choose_chunk(config.model, decode), AsrDataModule(config.data, config.train.seed)
    model = to_device(load_trained(config, decode).model, decode.device)
    aligned = [
        supervision
        for test_set, utterances in data.test_sets().items()
        for supervision in aligned_cuts(model, data, chunk, test_set, utterances.cuts)
    ]
    if not aligned:
        raise UserError(f"{decode.exp_dir}: no cut could be aligned; is it the --bpe-model of these transcripts?")
    write_manifest(SupervisionSet.from_segments(aligned), output)
    words = sum(len((supervision.alignment or {})[WORD]) for supervision in aligned)
    logging.info(f"{output}: {len(aligned)} utterances, {words} words")
