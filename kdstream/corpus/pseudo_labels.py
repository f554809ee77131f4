"""Pseudo labels: cuts with the hypotheses of a labeller as their transcripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lhotse import SupervisionSegment
from lhotse.cut.data import DataCut
from lhotse.utils import fastcopy
from tqdm import tqdm

from kdstream.data.checks import check_readable, check_text
from kdstream.data.cuts import DistinctIds, iterate, read_manifest
from kdstream.data.module import AsrDataModule
from kdstream.data.reading import check_filter_bank
from kdstream.data.tokenizer import UnknownLetters
from kdstream.decoding.search import Search
from kdstream.decoding.stream import decode_whole
from kdstream.errors import UserError
from kdstream.evaluation.scoring import Transcript
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer
from kdstream.words import split_words


class Hypothesis(NamedTuple):
    """What a labeller recognises in a cut.

    transcript: its words, and those that are said in the cut, or in the longer one of this id that it is a piece of.
    text: normalised, as the words of the transcript are.
    confidence: geometric mean of the probabilities that the search gave its tokens; None where it is no text.
    unknown: the letters of the text that no token spells.
    compression_ratio, no_speech: as Whisper measures them.
    """

    cut: DataCut
    transcript: Transcript
    text: str
    confidence: float | None
    unknown: str = ""
    compression_ratio: float = 0.0
    no_speech: float = 0.0

    def reaches(self, min_confidence: float) -> bool:
        return self.confidence is not None and self.confidence >= min_confidence


def read_cuts(path: Path, from_audio: bool = False) -> list[DataCut]:
    """The cuts to transcribe, from audio or from stored features where there are any.

    Raises UserError if there are none, if one cannot be read, or if one cannot get a text of its own: it is a mix, has
    several texts, or shares its id.
    """
    cuts, ids = [], DistinctIds(str(path))
    for cut in iterate(read_manifest(path)):
        ids.add(cut.id)
        if not isinstance(cut, DataCut):
            raise UserError(f"{path}: cut {cut.id} is a mix", fix="store its audio first, with cut.save_audio()")
        if from_audio and not cut.has_recording:
            raise UserError(f"{path}: cut {cut.id} has no recording", fix="give cuts with audio, which Whisper hears")
        check_readable(cut, from_audio, path)
        check_text(cut, path, instead="take the text away with cuts.drop_supervisions()")
        cuts.append(cut)
    if not from_audio:
        check_filter_bank(cuts, path)
    return cuts


def transcribe_cuts(
    model: Transducer, data: AsrDataModule, chunk: ChunkConfig | None, search: Search, cuts: Sequence[DataCut]
) -> list[Hypothesis]:
    """The hypotheses of a teacher, from stored features where there are any; longest cuts first."""
    by_id = {cut.id: cut for cut in cuts}
    tokenizer = data.tokenizer
    model.unk_id = None  # where <unk> is not said, a label would have a hole; so it is, and the cut is left out
    unknown = UnknownLetters(tokenizer)
    hypotheses = []
    copies = [fastcopy(cut, custom=dict(cut.custom or {})) for cut in cuts]  # Lhotse's samplers write into custom
    batches = data.in_order(copies, from_audio=False, chunk=chunk)
    for batch in tqdm(batches, total=batches.num_batches, desc="pseudo labels", disable=None):
        results = decode_whole(model, batch.features, batch.feature_lens, chunk, search)
        for cut_id, text, result in zip(batch.cut_ids, batch.texts, results, strict=True):
            said = tokenizer.normalise(tokenizer.decode(result.tokens))
            transcript = Transcript(cut_id, split_words(tokenizer.normalise(text)), split_words(said))
            is_text = transcript.hyp and tokenizer.unk_id not in result.tokens
            hypotheses.append(Hypothesis(by_id[cut_id], transcript, said, result.confidence if is_text else None))
            unknown.add(text)
    unknown.warn("transcripts that the cuts have")
    return hypotheses


def whole_transcripts(some: Sequence[Hypothesis], hypotheses: Sequence[Hypothesis]) -> list[Transcript]:
    """Of each given cut of which `some` of the hypotheses have all pieces: what is said in them."""
    pieces = Counter(hypothesis.transcript.cut_id for hypothesis in hypotheses)
    found: dict[str, list[Transcript]] = {}
    for hypothesis in some:
        found.setdefault(hypothesis.transcript.cut_id, []).append(hypothesis.transcript)
    return [
        its[0]._replace(hyp=[word for transcript in its for word in transcript.hyp])
        for cut_id, its in found.items()
        if len(its) == pieces[cut_id]
    ]


def labelled(hypothesis: Hypothesis) -> DataCut:
    """The cut with the hypothesis in place of any text; its speaker and all else that is known of it stay."""
    cut = hypothesis.cut
    known = cut.supervisions or [SupervisionSegment(cut.id, cut.recording_id, 0.0, cut.duration, cut.channel)]
    supervision = fastcopy(
        known[0],
        start=0.0,
        duration=cut.duration,
        text=hypothesis.text,
        alignment=None,  # it was of the text before
        custom={**(known[0].custom or {}), "confidence": hypothesis.confidence},
    )
    return fastcopy(cut, supervisions=[supervision])
