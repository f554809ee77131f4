"""Odd messages to the served websocket; after each of them another client must still hear what it heard before."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import soundfile

from odd.world import World
from support.serving import END, SCRIPT, START, speak

ANSWER_SECONDS = 10.0
MAX_BYTES = 65536
KIND = "message"
Message = str | bytes


def faults(world: World, count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """Of `count` clients: what was odd, "refused" or "handled", and the fault or ""."""
    (encoder,) = [path for path in world.student.glob("encoder-*.onnx") if not path.name.endswith(".int8.onnx")]
    log = world.folder / "serve.log"
    flags = ["--port", "0", "--max-message-bytes", str(MAX_BYTES), "--idle-seconds", "2"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(encoder), *flags], stdout=-1, stderr=stderr, text=True
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            yield from asyncio.run(_try_all(url, world.audio(0), random.Random(f"{KIND} {seed}"), count, log))
        finally:
            process.terminate()
            status = process.wait(60)
    yield "the server's end", "handled", "" if status == 0 else f"it ended with status {status}"


async def _try_all(url: str, audio: Path, rng: random.Random, count: int, log: Path) -> list[tuple[str, str, str]]:
    samples, _ = soundfile.read(audio, dtype="float32")
    samples = samples[:8000]
    first = (await speak(url, samples, speed=None)).final
    told = []
    for _ in range(count):
        what, messages = odd_client(rng, samples)
        before = log.stat().st_size
        ended, fault = await _client(url, messages)
        if (await speak(url, samples, speed=None)).final != first:
            fault = fault or "another client heard something else afterwards"
        with log.open("rb") as file:
            file.seek(before)
            said = file.read()
        if b"--max-message-bytes" in said and ended == "refused":
            fault = ""  # of a message that much larger the server reads no end, so that it can say so to its log alone
        if b"Traceback" in said:
            fault = fault or "a traceback in the log"
        told.append((what, ended, fault))
    return told


async def _client(url: str, messages: list[Message]) -> tuple[str, str]:
    """Sends the messages; ("refused" or "handled", the fault)."""
    async with aiohttp.ClientSession() as session, session.ws_connect(url + "stream", max_msg_size=0) as ws:
        try:
            for message in messages:
                await (ws.send_bytes(message) if isinstance(message, bytes) else ws.send_str(message))
        except (ConnectionError, aiohttp.ClientError):
            pass
        answers = []
        try:
            async with asyncio.timeout(ANSWER_SECONDS) if hasattr(asyncio, "timeout") else _nothing():
                async for message in ws:
                    answers.append(json.loads(message.data))
        except (asyncio.TimeoutError, TimeoutError):
            return "handled", "no answer"
        code = ws.close_code
    last = answers[-1] if answers else {}
    if last.get("type") == "final":
        return "handled", ""
    if last.get("type") == "error" and last.get("message") and code not in (None, 1000):
        return "refused", ""
    if code in (1002, 1007, 1009):  # the websocket library lets go before a message is whole
        return "refused", ""
    return "refused", f"let go with {code} and {last!r}"


class _nothing:
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...


def odd_client(rng: random.Random, samples: np.ndarray) -> tuple[str, list[Message]]:
    """What is odd, and all that the client sends."""
    start, end, sound = json.dumps(START), json.dumps(END), samples.tobytes()
    floats = np.frombuffer(rng.randbytes(400), np.float32)
    odd_json = rng.choice(
        ["", "{", "[]", "null", "1", '"x"', "{}", '{"type": 1}', '{"type": "END"}', '{"type": ["end"]}', "[" * 5000,
         '{"type": "end", "type": "start"}', "\x00", "é" * 100, '{"type": null}', json.dumps(START) * 2]
    )  # fmt: skip
    odd_start = json.dumps(
        {**START, rng.choice(["sample_rate", "format", "type", "more"]): rng.choice(
            [None, 0, -1, 1e9, 16000.5, "16000", True, [], {}, "x", "s16le", "f32be", 8000, 44100, 10**30]
        )}
    )  # fmt: skip
    kinds: dict[str, list[Message]] = {
        f"first {odd_json[:30]!r}": [odd_json, sound, end],
        f"start {odd_start}": [odd_start, sound, end],
        f"then {odd_json[:30]!r}": [start, odd_json, sound, end],
        "sound first": [sound, start, end],
        "start twice": [start, start, sound, end],
        "end first": [end],
        "end at once": [start, end],
        "end twice": [start, sound, end, end],
        "sound after the end": [start, end, sound],
        "nothing": [],
        "start alone": [start],
        "no end": [start, sound],
        "half a sample": [start, sound[: rng.randrange(1, 400)], end],
        "no bytes": [start, b"", sound, b"", end],
        "any floats": [start, floats.tobytes(), end],
        "loud": [start, (samples * rng.choice([2, 32768])).astype(np.float32).tobytes(), end],
        "NaN": [start, np.full(100, np.nan, np.float32).tobytes(), end],
        "one sample each": [start, *[sound[i : i + 4] for i in range(0, 400, 4)], end],
        "as large as allowed": [start, bytes(MAX_BYTES), end],
        "one byte more": [start, bytes(MAX_BYTES + 1), end],
        "much more": [start, bytes(40 * MAX_BYTES), end],
        "longer than allowed": [start, *[bytes(64000)] * 25, end],
        "large text": [start, "x" * (2 * MAX_BYTES), end],
        "16 bits": [json.dumps({**START, "format": "s16le"}), rng.randbytes(2 * rng.randrange(1, 8000)), end],
        "8 kHz": [json.dumps({**START, "sample_rate": 8000}), sound, end],
    }
    what = rng.choice(list(kinds))
    return what, kinds[what]
