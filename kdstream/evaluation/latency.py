"""Latency as a listener feels it: how long after a word was said it can be read.

Chunks and the front end's look-ahead impose an algorithmic latency.  How long a model then hesitates is measured on
words that were got right, against a reference alignment (references.py): from the end of a word to when its last token
was emitted.  Computing a chunk takes time as well, which depends on the machine.

All times are in milliseconds from an utterance's start.  A word counts as shown as soon as the audio has run far enough
for its chunk, silence going on where the utterance ends; computing is not added.
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
from kdstream.models.streaming import LOOKAHEAD, ChunkConfig
from kdstream.units import ENCODER_FRAME_MS, SUBSAMPLING_LOSS

FEATURE_FRAME_MS = 10
OUTPUT_FRAME_MS = 2 * ENCODER_FRAME_MS
# The front end's convolutions read SUBSAMPLING_LOSS feature frames more than they cover, half of them ahead; its
# ConvNeXt then looks LOOKAHEAD of its own frames further.  A feature frame counts as the 10 ms in its middle: that its
# window reaches 7.5 ms further is left out everywhere, and so is the frame more for which sherpa-onnx waits.
CONVOLUTIONS_MS = SUBSAMPLING_LOSS * FEATURE_FRAME_MS // 2
LOOKAHEAD_MS = CONVOLUTIONS_MS + LOOKAHEAD * ENCODER_FRAME_MS


def algorithmic_latency_ms(chunk: ChunkConfig) -> int:
    """How far the audio must have run, from a chunk's first sample on, before the chunk can be decoded."""
    return chunk.chunk_ms + LOOKAHEAD_MS


def frame_start_ms(frame: int) -> int:
    """Where the audio that an output frame (40 ms) covers begins; it ends where that of the next one begins."""
    return OUTPUT_FRAME_MS * frame + CONVOLUTIONS_MS


def shown_ms(frame: int, chunk: ChunkConfig) -> int:
    """How far the audio must have run before the chunk that an output frame is in can be decoded."""
    chunks_before = OUTPUT_FRAME_MS * frame // chunk.chunk_ms
    return FEATURE_FRAME_MS * (chunks_before * chunk.shift + chunk.input_frames)


@dataclass(frozen=True)
class Spread:
    """How `count` values in milliseconds are spread; percentiles lie linearly between the two nearest values."""

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
    """Of one utterance, in milliseconds; for each word of its reference, None where the word was not got right.

    frame: from the word's end to that of the output frame on which its last token was emitted.
    shown: from the word's end until that token's chunk can be decoded; without chunks None throughout.
    final: from the end of speech until the last word heard is shown, be it right or wrong; None where the
      reference's last word was missed, or without chunks.
    """

    cut_id: str
    frame: list[float | None]
    shown: list[float | None]
    final: float | None


Latency = dict[str, Spread]  # what was measured, by the names below
SHOWN, FINAL, FRAME, COMPUTE = "shown", "final", "frame", "compute"


class Measure(NamedTuple):
    """label: with its definition, for readers.  values: an utterance's; None for what is not measured by words."""

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
    """Every measure of words of which there is a value."""
    latency = {}
    for name, measure in MEASURES.items():
        if measure.values is not None:
            values = [value for delays in utterances for value in measure.values(delays) if value is not None]
            latency.update({name: Spread.of(values)} if values else {})
    return latency


def in_common(one: Sequence[Delays], other: Sequence[Delays]) -> tuple[list[Delays], list[Delays]]:
    """The same utterances of both, with those values alone that both have: of words that both got right.

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
    """By how much a measure is later in `after`, on average over its values, and the 95 % interval of that.

    The interval resamples the utterances that have a value.  Both are as `in_common` gives them, with one at least.
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
    """Raises TypeError for something else, and for measures that are not known."""
    if unknown := set(values) - set(MEASURES):
        raise TypeError(f"unknown measures of latency: {', '.join(sorted(unknown))}")
    return {name: Spread(**spread) for name, spread in values.items()}


def delays_file(recogs: str | Path) -> Path:
    """Where the delays of a recogs-*.txt are kept: beside it."""
    recogs = Path(recogs)
    return recogs.with_name(recogs.name.replace("recogs", "delays", 1)).with_suffix(".jsonl")


def write_delays(path: Path, utterances: Sequence[Delays]) -> None:
    """One JSON object a line, with the names of `Delays`."""
    lines = (json.dumps(delays._asdict()) for delays in utterances)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf8")


def read_delays(path: Path) -> list[Delays]:
    """The inverse of `write_delays`.  Raises UserError if the file is not one of these."""
    try:
        return [Delays(**json.loads(line)) for line in path.read_text(encoding="utf8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a file of delays ({error})", fix="decode again with --alignments") from error
