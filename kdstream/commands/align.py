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
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lhotse import SupervisionSegment, SupervisionSet
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem
from torch import Tensor
from torchaudio.functional import forced_align, merge_tokens
from tqdm import tqdm

from kdstream.checkpoints.trained import load_trained
from kdstream.config.command_line import RECORD_FLAGS, make_parser, read_experiment, search_flags
from kdstream.data.cuts import text_of, write_manifest
from kdstream.data.tokenizer import BLANK, BLANK_ID
from kdstream.decoding.stream import encode_whole
from kdstream.errors import UserError, option
from kdstream.evaluation.latency import frame_start_ms
from kdstream.evaluation.references import WORD
from kdstream.evaluation.run import DecodingRun
from kdstream.words import Located


def token_spans(log_probs: Tensor, ids: Sequence[int], blank: int) -> list[tuple[int, int]] | None:
    """The first frame of each token, and the frame after its last one, in the best CTC path.

    Args:
      log_probs: (T, V).
      ids: of the tokens, at least one.
    Returns:
      None where there are too few frames for the tokens.
    """
    tokens = torch.tensor(ids)
    repeats = int((tokens[1:] == tokens[:-1]).sum())  # which a blank must part
    if len(log_probs) < len(tokens) + repeats:
        return None
    path, scores = forced_align(log_probs.unsqueeze(0), tokens.unsqueeze(0), blank=blank)
    return [(span.start, span.end) for span in merge_tokens(path[0], scores[0], blank=blank)]


def supervision_of(cut: Cut, words: Sequence[Located], spans: Sequence[tuple[int, int]]) -> SupervisionSegment:
    """A supervision with the cut's id, its words and their times in seconds from the cut's start.

    Args:
      words: with the places of their tokens.
      spans: of the tokens, from `token_spans`.
    """
    items, supervision = [], cut.supervisions[0]
    for word, first, last in words:
        start, end = (min(frame_start_ms(frame) / 1000, cut.duration) for frame in (spans[first][0], spans[last][1]))
        items.append(AlignmentItem(word, start, round(end - start, 6)))
    return SupervisionSegment(
        cut.id,
        supervision.recording_id,
        supervision.start,
        supervision.duration,
        text=text_of(cut),
        alignment={WORD: items},
    )


@torch.no_grad()
def aligned_cuts(run: DecodingRun, test_set: str, cuts: Sequence[Cut]) -> Iterator[SupervisionSegment]:
    """The cuts of a test set with their alignments; the log counts those that cannot be aligned."""
    by_id = {cut.id: cut for cut in cuts}
    tokenizer, failed = run.data.tokenizer, []
    batches = run.data.in_order(cuts, from_audio=True, chunk=run.chunk)
    for batch in tqdm(batches, total=batches.num_batches, desc=f"alignments of {test_set}", disable=None):
        encoder_out, lens = encode_whole(run.model, batch.features, batch.feature_lens, run.chunk)
        log_probs = run.model.ctc_output(encoder_out).float().cpu()  # (N, T, V)
        for cut_id, text, of_cut, length in zip(batch.cut_ids, batch.texts, log_probs, lens.tolist(), strict=True):
            ids, words = tokenizer.words_of(text)
            can_be_said = ids and BLANK_ID not in ids
            spans = token_spans(of_cut[:length], ids, BLANK_ID) if can_be_said else None
            if spans is None:
                failed.append(cut_id)
            else:
                yield supervision_of(by_id[cut_id], words, spans)
    if failed:
        logging.warning(
            f"{test_set}: {len(failed)} of {len(cuts)} cuts are too short for their text, or have {BLANK} in it: "
            f"{failed[0]}, ..."
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, leave_out=(*search_flags(), *RECORD_FLAGS, "num_decode_streams"))
    parser.add_argument("--output", type=Path, help="What to write (default: EXP_DIR/alignments.jsonl.gz)")
    args = parser.parse_args(argv)
    config, decode = read_experiment(args)
    if not config.model.use_ctc:
        raise UserError(f"{decode.exp_dir}: has no CTC head to align with", fix="train a model with --use-ctc 1")
    output = args.output or Path(decode.exp_dir) / "alignments.jsonl.gz"
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError("is a manifest of Lhotse", flag=option("output", output), fix="end it with .jsonl.gz")
    output.parent.mkdir(parents=True, exist_ok=True)
    run = DecodingRun(config, decode, load_trained(config, decode), chunkwise=False)
    aligned = [
        supervision
        for test_set, utterances in run.data.test_sets().items()
        for supervision in aligned_cuts(run, test_set, utterances.cuts)
    ]
    if not aligned:
        raise UserError(f"{decode.exp_dir}: no cut could be aligned; is it the --bpe-model of these transcripts?")
    write_manifest(SupervisionSet.from_segments(aligned), output)
    words = sum(len((supervision.alignment or {})[WORD]) for supervision in aligned)
    logging.info(f"{output}: {len(aligned)} utterances, {words} words")
