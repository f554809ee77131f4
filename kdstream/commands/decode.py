"""Decodes whole utterances: in full context, or with a streaming model in simulated streaming.

    python decode.py --exp-dir exp/distilled --epoch 30 --avg 9 --decoding-method greedy_search

Everything about the model comes from EXP_DIR/config.json.  Writes recogs-*, errs-* and wer-summary-*.txt
into EXP_DIR/<decoding method>/, and adds a record of each test set to --results-json; with --alignments also delays-*,
how late each word came.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdstream.config.command_line import read_flags


def main(argv: Sequence[str] | None = None) -> None:
    config, decode = read_flags(__doc__, argv)

    from tqdm import tqdm

    from kdstream.checkpoints.trained import load_trained
    from kdstream.decoding.stream import decode_whole
    from kdstream.evaluation.run import DecodingRun

    run = DecodingRun(config, decode, load_trained(config, decode), chunkwise=False)
    run.check_test_sets()
    for test_set, batches in run.data.test_dataloaders(run.chunk).items():
        transcripts = []
        for batch in tqdm(batches, total=batches.num_batches, desc=f"{run.mode} {test_set}", disable=None):
            results = decode_whole(run.model, batch.features, batch.feature_lens, run.chunk, run.search)
            transcripts += map(run.transcript, batch.cut_ids, batch.texts, results)
        run.save(test_set, transcripts)
