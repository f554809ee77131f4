"""Latency as a user notices it: the time from the end of a spoken word until its text can be read.

It has three parts.  The chunk, its right context and the front end's look-ahead impose an algorithmic latency.  The
model may emit a word late: this delay is measured on correct words against a reference alignment (references.py), from
the end of the word to its last token.  Computing a chunk takes time too, which depends on the machine.

All times are in milliseconds from the start of an utterance.  A word is shown when the audio has run far enough for its
chunk; after the end of an utterance, silence follows.  The time of computing is not added.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdstream.errors import UserError
from kdstream.evaluation.scoring import NOTHING, Alignment, Interval, bootstrap_ratio
from kdstream.files import write_text
from kdstream.models.streaming import LOOKAHEAD, ChunkConfig
from kdstream.units import ENCODER_FRAME_MS, FEATURE_FRAME_MS, OUTPUT_FRAME_MS, SUBSAMPLING_LOSS

# The front end's convolutions read SUBSAMPLING_LOSS more feature frames than they cover, half of them ahead.  Its
# ConvNeXt then reads LOOKAHEAD of its own frames further ahead.  A feature frame counts as the 10 ms in its middle.
# Two things count nowhere: the 7.5 ms by which its window is longer, and the frame more for which sherpa-onnx waits.
CONVOLUTIONS_MS = SUBSAMPLING_LOSS * FEATURE_FRAME_MS // 2
LOOKAHEAD_MS = CONVOLUTIONS_MS + LOOKAHEAD * ENCODER_FRAME_MS


def algorithmic_latency_ms(chunk: ChunkConfig) -> int:
    """How far the audio must have run, from a chunk's first sample on, before the chunk can be decoded."""
    return chunk.chunk_ms + chunk.right_ms + LOOKAHEAD_MS


def frame_start_ms(frame: int) -> int:
    """Where the audio that an output frame (40 ms) covers begins; it ends where that of the next one begins."""
    return OUTPUT_FRAME_MS * frame + CONVOLUTIONS_MS


def shown_ms(frame: int, chunk: ChunkConfig) -> int:
    """How far the audio must have run before the chunk that an output frame is in can be decoded."""
    chunks_before = OUTPUT_FRAME_MS * frame // chunk.chunk_ms
    return FEATURE_FRAME_MS * (chunks_before * chunk.shift + chunk.input_frames)


@dataclass(frozen=True)
class Spread:
    """Mean and percentiles of `count` values in milliseconds; percentiles are interpolated linearly."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one value."""
        p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
        return Spread(len(values), float(np.mean(values)), p50, p90, p99)

    def shown(self, digits: int = 0) -> str:
        """`262 (240 / 410 / 655)`"""
        mean, p50, p90, p99 = (f"{value:.{digits}f}" for value in (self.mean, self.p50, self.p90, self.p99))
        return f"{mean} ({p50} / {p90} / {p99})"


class Delays(NamedTuple):
    """The delays of one utterance in milliseconds.

    frame: for each word of the reference, from the end of the word to the end of the output frame that emitted its last
      token; None where the word is not correct.
    shown: for each word, from its end until the chunk of that token can be decoded; all None without chunks.
    final: from the end of speech until the last word of the hypothesis is shown, correct or not; None where the last
      word of the reference was missed, and without chunks.
    """

    cut_id: str
    frame: list[float | None]
    shown: list[float | None]
    final: float | None


Latency = dict[str, Spread]  # by the names of MEASURES
SHOWN, FINAL, FRAME, COMPUTE = "shown", "final", "frame", "compute"


class Measure(NamedTuple):
    """label, definition: for readers.  values: those of an utterance; None for what is not measured on words."""

    label: str
    definition: str
    values: Callable[[Delays], list[float | None]] | None


MEASURES: dict[str, Measure] = {
    SHOWN: Measure(
        "word shown",
        "from the end of a word until it can be read: until the audio has run so far that the chunk in which the "
        "word's last token was emitted can be decoded. Words that were got right. With a beam search too short "
        "for words whose path overtakes the others only after that chunk",
        lambda delays: delays.shown,
    ),
    "shown_first": Measure("first word", "the same, first words of utterances", lambda delays: delays.shown[:1]),
    "shown_last": Measure("last word", "the same, last words of utterances", lambda delays: delays.shown[-1:]),
    FINAL: Measure(
        "final text",
        "from the end of speech until the last word heard can be read, be it right or wrong; utterances whose last "
        "word was not missed",
        lambda delays: [delays.final],
    ),
    FRAME: Measure(
        "token's frame",
        "from the end of a word to the end of the 40 ms frame on which its last token was emitted: how long the "
        "model itself hesitates, chunks and look-ahead left aside",
        lambda delays: delays.frame,
    ),
    "frame_first": Measure("token's frame, first word", "the same, first words", lambda delays: delays.frame[:1]),
    "frame_last": Measure("token's frame, last word", "the same, last words", lambda delays: delays.frame[-1:]),
    COMPUTE: Measure(
        "compute per chunk",
        "wall time of one step, in which every stream of the batch gets a chunk decoded; it comes on top, and depends "
        "on the machine and on --num-decode-streams",
        None,
    ),
}


def measure_delays(
    cut_id: str, alignment: Alignment, frames: Sequence[int], ends: Sequence[float], chunk: ChunkConfig | None
) -> Delays:
    """Delays of one utterance.

    Args:
      alignment: of reference and hypothesis, by scoring.align.
      frames: output frame on which each word of the hypothesis was complete.
      ends: of the reference's words.
      chunk: None in full context.
    """
    right: list[int | None] = []  # the frame of each word of the reference
    heard, last_missed = 0, True
    for said, word in alignment:
        if said != NOTHING:
            right.append(frames[heard] if word == said else None)
            last_missed = word == NOTHING
        heard += word != NOTHING
    frame = [None if at is None else frame_start_ms(at + 1) - end for at, end in zip(right, ends, strict=True)]
    if chunk is None:
        return Delays(cut_id, frame, [None] * len(right), None)
    shown = [None if at is None else shown_ms(at, chunk) - end for at, end in zip(right, ends, strict=True)]
    return Delays(cut_id, frame, shown, None if last_missed else shown_ms(frames[-1], chunk) - ends[-1])


def summarise(utterances: Sequence[Delays]) -> Latency:
    """All measures on words that have a value."""
    latency = {}
    for name, measure in MEASURES.items():
        if measure.values is not None:
            values = [value for delays in utterances for value in measure.values(delays) if value is not None]
            latency.update({name: Spread.of(values)} if values else {})
    return latency


def in_common(one: Sequence[Delays], other: Sequence[Delays]) -> tuple[list[Delays], list[Delays]]:
    """The utterances of both, with only the values that both have: those of words that are correct in both.

    Raises ValueError where the references of an utterance differ in length.
    """
    theirs = {delays.cut_id: delays for delays in other}
    pairs = [(mine, theirs[mine.cut_id]) for mine in one if mine.cut_id in theirs]
    if any(len(a.frame) != len(b.frame) for a, b in pairs):
        raise ValueError("a comparison of delays needs the same references")
    return [_where_both(a, b) for a, b in pairs], [_where_both(b, a) for a, b in pairs]


def _where_both(one: Delays, other: Delays) -> Delays:
    def masked(mine: Sequence[float | None], theirs: Sequence[float | None]) -> list[float | None]:
        return [None if theirs_too is None else value for value, theirs_too in zip(mine, theirs, strict=True)]

    (final,) = masked([one.final], [other.final])
    return Delays(one.cut_id, masked(one.frame, other.frame), masked(one.shown, other.shown), final)


def later_by(before: Sequence[Delays], after: Sequence[Delays], name: str) -> tuple[float, Interval]:
    """How much later a measure is in `after`, on average over its values, and the 95 % interval of this mean.

    The interval resamples the utterances that have a value.

    Args:
      before, after: from `in_common`, with at least one value.
      name: of a measure on words.
    """
    values = MEASURES[name].values
    if values is None:
        raise ValueError(f"{name} is not measured by words")
    differences = [
        [
            late - early
            for early, late in zip(values(one), values(other), strict=True)
            if early is not None and late is not None
        ]
        for one, other in zip(before, after, strict=True)
    ]
    sums, counts = np.array([(sum(row), len(row)) for row in differences if row]).T
    return float(sums.sum() / counts.sum()), bootstrap_ratio(sums, counts)


def latency_from_json(values: Mapping[str, Mapping[str, Any]]) -> Latency:
    """From the JSON of a record.  Raises TypeError for anything else, and for unknown measures."""
    if unknown := set(values) - set(MEASURES):
        raise TypeError(f"unknown measures of latency: {', '.join(sorted(unknown))}")
    return {name: Spread(**spread) for name, spread in values.items()}


def delays_file(recogs: str | Path) -> Path:
    """The file with the delays of a recogs-*.txt, beside it."""
    recogs = Path(recogs)
    return recogs.with_name(recogs.name.replace("recogs", "delays", 1)).with_suffix(".jsonl")


def write_delays(path: Path, utterances: Sequence[Delays]) -> None:
    """One JSON object a line, with the names of `Delays`."""
    lines = (json.dumps(delays._asdict()) for delays in utterances)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_delays(path: Path) -> list[Delays]:
    """The inverse of `write_delays`.  Raises UserError if the file is not one of these."""
    try:
        return [Delays(**json.loads(line)) for line in path.read_text(encoding="utf8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a file of delays ({error})", fix="decode again with --alignments") from error
