"""When the words of a transcript end, by the best path of a model's CTC head.

Shapes: N batch, T frames (40 ms), V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from lhotse import SupervisionSegment
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem
from torch import Tensor
from torchaudio.functional import forced_align, merge_tokens
from tqdm import tqdm

from kdstream.data.cuts import text_of
from kdstream.data.module import AsrDataModule
from kdstream.data.tokenizer import BLANK, BLANK_ID
from kdstream.decoding.stream import encode_whole
from kdstream.evaluation.latency import frame_start_ms
from kdstream.evaluation.references import WORD
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer
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
def aligned_cuts(
    model: Transducer, data: AsrDataModule, chunk: ChunkConfig | None, test_set: str, cuts: Sequence[Cut]
) -> Iterator[SupervisionSegment]:
    """The cuts of a test set with their alignments; the log counts those that cannot be aligned."""
    by_id = {cut.id: cut for cut in cuts}
    tokenizer, failed = data.tokenizer, []
    batches = data.in_order(cuts, from_audio=True, chunk=chunk)
    for batch in tqdm(batches, total=batches.num_batches, desc=f"alignments of {test_set}", disable=None):
        encoder_out, lens = encode_whole(model, batch.features, batch.feature_lens, chunk)
        log_probs = model.ctc_output(encoder_out).float().cpu()  # (N, T, V)
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
