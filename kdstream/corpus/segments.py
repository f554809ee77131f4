"""Which segments of a corpus can be used: the others are left out by reason, counted, and named in a file."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from lhotse import Recording, SupervisionSegment
from lhotse.utils import fastcopy

from kdstream.corpus.recipes import Part
from kdstream.corpus.text_remove import removed
from kdstream.data.checks import TEXT_TOLERANCE
from kdstream.errors import UserError
from kdstream.files import write_text
from kdstream.models.streaming import SHORTEST
from kdstream.units import FRAMES_PER_SECOND

NAMED = 3  # segments in the log's line, by reason


class LeftOut:
    """Segments of a part that are left out, by reason, each with the place where it is said to be."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.places: dict[str, list[str]] = defaultdict(list)

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))

    def add(self, reason: str, segment: SupervisionSegment, recording: Recording | None) -> None:
        source = recording.sources[0].source if recording and recording.sources else segment.recording_id
        place = f"{segment.id} ({source}, channel {segment.channel}, {segment.start:.2f} to {segment.end:.2f} s)"
        self.places[reason].append(place)

    def log(self, kept: int, path: Path) -> None:
        """Logs what was left out, and writes every segment of it to `path`.

        Raises UserError if more than half is left out.
        """
        if not self.places:
            path.unlink(missing_ok=True)
            return
        write_text(path, "".join(f"{why}: {it}\n" for why, places in self.places.items() for it in places))
        counts = "; ".join(
            f"{len(places)} {reason}: {', '.join(places[:NAMED])}{', ...' if len(places) > NAMED else ''}"
            for reason, places in self.places.items()
        )
        logging.warning(f"part {self.part}: {len(self)} of {kept + len(self)} segments are left out: {counts}")
        if len(self) > kept:
            fix = f"mend the corpus, or see --recipe-args and --channel; {path} names all"
            raise UserError(
                f"part {self.part}: {len(self)} of {kept + len(self)} segments are left out: {counts}", fix=fix
            )


def usable_part(part: Part, left_out: LeftOut, channel: int | None = None, text_remove: str = "") -> Part:
    """The segments of `part` that can be trained on or decoded, and their recordings.

    A segment has one channel, lies in its recording, has a text, and shares its time with no other segment of its
    channel.  One that reaches beyond the end of its recording by no more than TEXT_TOLERANCE is cut there.

    Args:
      channel: the only one whose segments are taken; None for each segment's own, the first where it has several.
      text_remove: a regular expression of what is taken out of texts, for marks such as [noise] and punctuation.
    """
    kept: list[SupervisionSegment] = []
    is_there: dict[str, bool] = {}
    for segment in part.segments:
        recording = part.recordings.get(segment.recording_id)
        if recording is None:
            left_out.add("without a recording", segment, None)
            continue
        if recording.id not in is_there:
            is_there[recording.id] = all(
                source.type != "file" or os.path.exists(source.source) for source in recording.sources
            )
        segment = _on_one_channel(segment, channel)
        text = removed(segment.text or "", text_remove)
        reason = _fault(segment, recording, is_there[recording.id], channel, text)
        if reason:
            left_out.add(reason, segment, recording)
            continue
        begin, end = _within(segment, recording)
        kept.append(fastcopy(segment, text=text, start=begin, duration=end - begin))
    overlapping = set(_overlapping(kept))
    for segment in kept:
        if segment.id in overlapping:
            left_out.add("that overlap another of their channel", segment, part.recordings[segment.recording_id])
    kept = [segment for segment in kept if segment.id not in overlapping]
    used = {segment.recording_id for segment in kept}
    return Part({key: recording for key, recording in part.recordings.items() if key in used}, kept)


def _on_one_channel(segment: SupervisionSegment, channel: int | None) -> SupervisionSegment:
    channels = segment.channel if isinstance(segment.channel, list) else [segment.channel]
    chosen = channel if channel in channels else channels[0] if channels else 0
    return segment if segment.channel == chosen else fastcopy(segment, channel=chosen)


def _within(segment: SupervisionSegment, recording: Recording) -> tuple[float, float]:
    """Begin and end of what lies in the recording, in seconds."""
    return max(0.0, segment.start), min(segment.end, recording.duration)


def _fault(segment: SupervisionSegment, recording: Recording, is_there: bool, channel: int | None, text: str) -> str:
    """Why a segment cannot be used, as a count of many says it; ""."""
    if not is_there:
        return "whose audio file is not there"
    if segment.channel not in (recording.channel_ids or [0]):
        return "on a channel that their recording lacks"
    if channel is not None and segment.channel != channel:
        return f"on other channels than --channel {channel}"
    if segment.start < -TEXT_TOLERANCE or segment.end > recording.duration + TEXT_TOLERANCE:
        return "outside their recording"
    if not text:
        return "with an empty text"
    begin, end = _within(segment, recording)
    if (end - begin) * FRAMES_PER_SECOND < SHORTEST:
        return f"shorter than {SHORTEST / FRAMES_PER_SECOND:g} s"
    return ""


def _overlapping(segments: Iterable[SupervisionSegment]) -> Iterator[str]:
    """The ids of the segments that share more than TEXT_TOLERANCE with another of their recording and channel."""
    by_channel = defaultdict(list)
    for segment in segments:
        by_channel[segment.recording_id, segment.channel].append(segment)
    for together in by_channel.values():
        together.sort(key=lambda segment: (segment.start, segment.end))
        longest = together[0]  # of those before, the one that ends last
        for segment in together[1:]:
            if min(longest.end, segment.end) - segment.start > TEXT_TOLERANCE:
                yield from (longest.id, segment.id)
            longest = max(longest, segment, key=lambda each: each.end)
