"""Decodes chunk by chunk, many streams at once, as a streaming model hears speech when it is deployed.

    python streaming_decode.py --exp-dir exp/distilled --epoch 30 --avg 9 --num-decode-streams 64

Everything about the model comes from EXP_DIR/config.json; features are computed from audio.  Every output frame and
every hypothesis is that of decode.py on the same chunk.  Leaves recogs-*, errs-* and wer-summary*.txt in
EXP_DIR/streaming/<decoding method>/, and a record of each test set in --results-json; with --alignments also delays-*,
how late each word came.
"""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from kdstream.checkpoints.trained import load_trained
from kdstream.config.command_line import read_flags
from kdstream.decoding.stream import StreamingDecoder, decode_streams
from kdstream.evaluation.run import DecodingRun


def main(argv: Sequence[str] | None = None) -> None:
    config, decode = read_flags(__doc__, argv)
    run = DecodingRun(config, decode, load_trained(config, decode), chunkwise=True)
    decoder = StreamingDecoder(run.model, run.chunk, run.search, decode.num_decode_streams, traced=True)
    for test_set, utterances in run.data.test_sets().items():
        step_ms: list[float] = []
        streams = decode_streams(decoder, (((u.cut_id, u.text), u.features) for u in utterances), step_ms)
        progress = tqdm(streams, total=len(utterances), desc=f"{run.mode} {test_set}", unit=" cuts", disable=None)
        transcripts = [run.transcript(cut_id, text, result) for (cut_id, text), result in progress]
        run.save(test_set, transcripts, step_ms)
