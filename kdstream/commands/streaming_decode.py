"""Decodes chunk by chunk, many streams at once, as a deployed streaming model does.

    python streaming_decode.py --exp-dir exp/distilled --epoch 30 --avg 9 --num-decode-streams 64

Everything about the model comes from EXP_DIR/config.json; features are computed from audio.  Every output frame and
every hypothesis is that of decode.py on the same chunk.  Writes recogs-*, errs-* and wer-summary*.txt into
EXP_DIR/streaming/<decoding method>/, and adds a record of each test set to --results-json; with --alignments also
delays-*, how late each word came.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdstream.config.command_line import read_flags


def main(argv: Sequence[str] | None = None) -> None:
    config, decode = read_flags(__doc__, argv)

    from tqdm import tqdm

    from kdstream.checkpoints.trained import load_trained
    from kdstream.decoding.chunk_step import choose_engine, chunk_step
    from kdstream.decoding.stream import StreamingDecoder, decode_streams
    from kdstream.evaluation.run import DecodingRun

    run = DecodingRun(config, decode, load_trained(config, decode), chunkwise=True)
    run.check_test_sets()
    assert run.chunk is not None  # DecodingRun has seen to it
    streams = decode.num_decode_streams
    encode = chunk_step(run.model, run.chunk, choose_engine(decode.engine, run.model, streams))
    decoder = StreamingDecoder(run.model, run.chunk, run.search, streams, encode)
    for test_set, utterances in run.data.test_sets().items():
        step_ms: list[float] = []
        results = decode_streams(decoder, (((u.cut_id, u.text), u.features) for u in utterances), step_ms)
        progress = tqdm(results, total=len(utterances), desc=f"{run.mode} {test_set}", unit=" cuts", disable=None)
        transcripts = [run.transcript(cut_id, text, result) for (cut_id, text), result in progress]
        run.save(test_set, transcripts, step_ms)
