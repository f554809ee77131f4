"""What the fields of a cut may hold: Lhotse takes whatever a manifest says, and fails far from it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lhotse.cut import Cut, MixedCut
from lhotse.cut.data import DataCut

SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold


class Kind(NamedTuple):
    """name: for messages.  holds: whether a value is of this kind."""

    name: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # and no bool, which is an int to isinstance


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_text(value: Any) -> bool:
    return type(value) is str and (value.isascii() or not SURROGATE.search(value))


NUMBER = Kind("a number", _is_number)
ABOVE_ZERO = Kind("a number above 0", lambda value: _is_number(value) and value > 0)
COUNT = Kind("a whole number from 0 on", _is_count)
RATE = Kind("a rate in Hz", lambda value: _is_count(value) and value > 0)
CHANNELS = Kind(
    "a channel or several", lambda value: all(map(_is_count, value if isinstance(value, list) else [value]))
)
TEXT = Kind("a text", _is_text)
TEXT_OR_NONE = Kind("a text or null", lambda value: value is None or _is_text(value))
# icefall's files of results have a line for each, in which a tab ends the name.
NAME = Kind(
    "a name on one line, without tabs",
    lambda value: _is_text(value) and len(value.splitlines()) == 1 and "\t" not in value,
)

CUT = {"id": NAME}
DATA_CUT = {"start": NUMBER, "duration": NUMBER, "channel": CHANNELS}
SUPERVISION = {"id": TEXT, "start": NUMBER, "duration": NUMBER, "text": TEXT_OR_NONE}
RECORDING = {"sampling_rate": RATE, "num_samples": COUNT, "duration": NUMBER}
SOURCE = {"type": TEXT, "channels": CHANNELS}
FEATURES = {
    "type": TEXT, "num_frames": COUNT, "num_features": COUNT, "frame_shift": ABOVE_ZERO, "sampling_rate": RATE,
    "start": NUMBER, "duration": NUMBER, "storage_type": TEXT, "storage_path": TEXT,
}  # fmt: skip
TRACK = {"offset": NUMBER}


def field_fault(cut: Cut) -> str:
    """The first field of a cut that holds what it cannot, in words; "" if none does."""
    for whole, fields in _all_fields(cut):
        for name, kind in fields.items():
            value = getattr(whole, name, None)
            if not kind.holds(value):
                return f"cut {str(cut.id)!r}: {type(whole).__name__}.{name} is {str(value)[:60]!r}, not {kind.name}"
    return ""


def _all_fields(cut: Any) -> Iterator[tuple[Any, dict[str, Kind]]]:
    """The parts of a cut, and the kinds of their fields."""
    yield cut, CUT
    if isinstance(cut, MixedCut):
        for track in cut.tracks:
            yield track, TRACK
            yield from _all_fields(track.cut)
    if not isinstance(cut, DataCut):
        return
    yield cut, DATA_CUT
    for supervision in cut.supervisions:
        yield supervision, SUPERVISION
    if cut.recording is not None:
        yield cut.recording, RECORDING
        for source in cut.recording.sources:
            yield source, SOURCE
    if cut.features is not None:
        yield cut.features, FEATURES
