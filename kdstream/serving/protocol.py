"""The messages of /stream: what a client sends, and what it is told.

A client sends
    {"type": "start", "sample_rate": 48000, "format": "f32le"} (or "s16le"), with "model": NAME and
        "hotwords": ["NEW YORK :2.5", ...] where it wants them;
    binary messages of mono samples;
    {"type": "end"}.
It is sent
    {"type": "session", "session": ID, "samples": N, "ended": false}, first of all;
    {"type": "segment", "id": 0, "start": 0.4, "end": 2.1, "text": ..., "words": [{"word", "start", "end"}, ...]} for
        each finished segment, with times in seconds of its audio.  The last one may come again with its last word
        completed;
    {"type": "partial", "text": ...}, the segment that grows;
    {"type": "final"} after the end and the last segment; or {"type": "error", "message": ...}.
Then the connection is closed.

A client that lost its connection sends the same start with "session": ID and "segments": how many it has.  Where the
server knows the session still, it answers with this ID, and with the samples that it has: the client goes on with those
after them.  It tells the segments after those that the client has, and the last of those again.  Otherwise, and where
it has no longer all of these, the ID is a new one, of a new session.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
from aiohttp import WSCloseCode

from kdstream.audio.samples import LOUDEST
from kdstream.serving.engine import News
from kdstream.units import SAMPLE_RATES

FORMATS = {"f32le": "<f4", "s16le": "<i2"}
HOTWORDS = 200  # that a client may have; hotwords.py bounds each


class Refusal(Exception):
    """Why a client is let go, as it is told."""

    def __init__(self, code: WSCloseCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Silence(Refusal):
    """It sends nothing.  Its connection may be dead without knowing it, so it may come back to its session."""

    def __init__(self, seconds: float) -> None:
        super().__init__(WSCloseCode.POLICY_VIOLATION, f"nothing was sent for {seconds:g} s")


class Start(NamedTuple):
    """What a client wants; sample_rate and dtype say what its samples are."""

    sample_rate: int
    dtype: str
    model: str | None = None
    hotwords: tuple[str, ...] = ()
    session: str = ""
    segments: int = 0

    @staticmethod
    def parse(message: str) -> Start:
        """Raises Refusal for what is no start message."""
        start = parse_json(message)
        rate, encoding = start.get("sample_rate"), start.get("format")
        if start.get("type") != "start":
            raise Refusal(WSCloseCode.POLICY_VIOLATION, "the first message must be of type start")
        if isinstance(rate, bool) or rate not in SAMPLE_RATES:
            rates = ", ".join(map(str, SAMPLE_RATES))
            raise Refusal(WSCloseCode.POLICY_VIOLATION, f"sample_rate must be one of {rates}")
        if not isinstance(encoding, str) or encoding not in FORMATS:
            raise Refusal(WSCloseCode.POLICY_VIOLATION, f"format must be one of {', '.join(FORMATS)}")
        model, hotwords = start.get("model"), start.get("hotwords", [])
        session, segments = start.get("session", ""), start.get("segments", 0)
        if not (model is None or isinstance(model, str)) or not isinstance(session, str):
            raise Refusal(WSCloseCode.POLICY_VIOLATION, "model and session must be texts")
        if not isinstance(segments, int) or isinstance(segments, bool) or segments < 0:
            raise Refusal(WSCloseCode.POLICY_VIOLATION, "segments must be a number of them")
        if not isinstance(hotwords, list) or not all(isinstance(phrase, str) for phrase in hotwords):
            raise Refusal(WSCloseCode.POLICY_VIOLATION, "hotwords must be a list of texts")
        if len(hotwords) > HOTWORDS:
            raise Refusal(WSCloseCode.POLICY_VIOLATION, f"more than {HOTWORDS} hotwords")
        return Start(int(rate), FORMATS[encoding], model, tuple(hotwords), session, segments)

    def samples(self, message: bytes) -> np.ndarray:
        """Float32 samples (S,) of at most LOUDEST; full scale is 1.  Raises Refusal for bytes that cannot be such."""
        if len(message) % np.dtype(self.dtype).itemsize:
            raise Refusal(WSCloseCode.UNSUPPORTED_DATA, "a binary message must hold whole samples")
        samples = np.frombuffer(message, self.dtype)
        if self.dtype == FORMATS["s16le"]:
            return samples.astype(np.float32) / 32768
        if not np.all(np.abs(samples) <= LOUDEST):  # nor is a comparison with NaN true
            raise Refusal(WSCloseCode.UNSUPPORTED_DATA, "f32le samples must be numbers in [-1, 1]")
        return samples.astype(np.float32)


def parse_json(message: str) -> dict:
    """Raises Refusal for what is no JSON object."""
    try:
        parsed = json.loads(message)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise Refusal(WSCloseCode.UNSUPPORTED_DATA, "a text message must be a JSON object")
    return parsed


def messages_of(news: News) -> list[dict[str, Any]]:
    """What a client is told of it."""
    told: list[dict[str, Any]] = [
        {"type": "segment", "id": number, **segment.to_json()} for number, segment in news.segments.items()
    ]
    return [*told, {"type": "final"} if news.final else {"type": "partial", "text": news.growing}]
