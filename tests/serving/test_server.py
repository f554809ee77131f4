"""The live page's server: finals are those of chunk-wise decoding, and no client can spoil another's."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import WSCloseCode
from yarl import URL

from kdstream.serving.runtime import Runtime, SegmentedStream
from kdstream.serving.server import within
from support.serving import END, START, Heard, RawClient, Running, noise, running_script, speak

pytestmark = pytest.mark.slow

SECONDS = 2.5
CLIENTS, CLIENT_SECONDS = 64, 30.0
MEGABYTE = 1 << 20


@pytest.fixture
def undisturbed(serving, said) -> Callable:
    """Runs a nuisance while clients who behave speak, and asserts that these notice nothing."""

    def check(nuisance: Callable[[Running], Awaitable[Any]], **limits: Any) -> Any:
        async def run() -> Any:
            async with serving(**limits) as running:
                witnesses = [asyncio.create_task(speak(running.url, audio)) for audio, _ in said.values()]
                await asyncio.sleep(0.5)
                result = await nuisance(running)
                for witness, (_, text) in zip(witnesses, said.values(), strict=True):
                    heard = await witness
                    assert (heard.final, heard.error, heard.close_code) == (text, None, WSCloseCode.OK)
                after, text = said[0]
                assert (await speak(running.url, after, speed=None)).final == text
                await running.empty()
                return result

        return asyncio.run(run())

    return check


@pytest.mark.slow
def test_64_clients_at_real_time_speed_get_what_chunk_wise_decoding_hears(served):
    audio = {str(seed): noise(CLIENT_SECONDS, 10 + seed) for seed in range(8)}
    expected = served.offline(audio)
    assert len(set(expected.values())) == 8 and all(len(text) > 50 for text in expected.values())

    async def everybody(url: str):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.gather(
                *(speak(url, audio[str(n % 8)], delay=0.01 * n, session=session) for n in range(CLIENTS))
            )

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with running_script(served.files.encoder) as url:
        begin = time.monotonic()
        heard = asyncio.run(everybody(url))
        wall = time.monotonic() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    lags = np.percentile([one.lag for one in heard], [50, 90, 100])
    print(f"{CLIENTS} clients in {wall:.1f} s, server {seconds:.1f} s of CPU; from the last sample to the final text: "
          f"50/90/100 % {' / '.join(f'{lag:.2f}' for lag in lags)} s")  # fmt: skip
    assert [one.final for one in heard] == [expected[str(n % 8)] for n in range(CLIENTS)]
    assert all(one.error is None and one.close_code == WSCloseCode.OK for one in heard)
    assert all(len(set(one.partials)) > 10 for one in heard)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the server says its memory on Linux alone")
def test_a_client_that_speaks_for_minutes_is_heard_in_constant_memory(served):
    """KDSTREAM_SPEECH_MINUTES=30 for longer; it speaks 20 times as fast as people do."""
    minutes = int(os.environ.get("KDSTREAM_SPEECH_MINUTES", 2))
    audio = np.tile(noise(60.0, seed=5), minutes)

    async def run(url: str) -> tuple[Heard, list[float]]:
        async def memory() -> None:
            while True:
                async with http.get(url + "metrics") as answer:
                    line = re.search(r"^process_resident_memory_bytes (\d+)$", await answer.text(), re.MULTILINE)
                megabytes.append(int(line[1]) / MEGABYTE)
                await asyncio.sleep(0.5)

        megabytes: list[float] = []
        async with aiohttp.ClientSession() as http:
            watching = asyncio.create_task(memory())
            heard = await speak(url, audio, speed=20.0, session=http)
            watching.cancel()
        return heard, megabytes

    with running_script(served.files.encoder) as url:
        heard, megabytes = asyncio.run(run(url))
    half = len(megabytes) // 2
    print(f"{minutes} minutes: {max(megabytes[:half]):.1f} MB in the first half, {max(megabytes[half:]):.1f} MB later, "
          f"{len(heard.segments)} segments, lag {heard.lag:.2f} s")  # fmt: skip
    assert heard.error is None and len(heard.segments) > minutes and half >= 4
    assert max(megabytes[half:]) < max(megabytes[:half]) + 4


def test_a_client_that_vanishes_disturbs_nobody(undisturbed, said):
    def vanish(url: str) -> None:
        for size in (0, 4000, len(said[0][0])):
            client = RawClient(url)
            client.frame(1, json.dumps(START).encode())
            client.frame(2, said[0][0][:size].tobytes())
            client.reset()

    async def nuisance(running: Running) -> None:
        await asyncio.to_thread(vanish, running.url)

    undisturbed(nuisance)


def test_a_client_that_falls_silent_is_let_go_and_told(undisturbed):
    async def nuisance(running: Running) -> aiohttp.WSMessage:
        async with aiohttp.ClientSession() as session, session.ws_connect(running.url + "stream") as ws:
            await ws.send_json(START)
            await ws.send_bytes(bytes(400))
            messages = [message.json() async for message in ws]
            return messages[-1], ws.close_code

    message, code = undisturbed(nuisance, idle_seconds=1.0)
    assert message == {"type": "error", "message": "nothing was sent for 1 s"} and code == WSCloseCode.POLICY_VIOLATION


GARBAGE = {  # messages, and the close code that they earn
    "no JSON": (["{"], WSCloseCode.UNSUPPORTED_DATA),
    "deep JSON": (["[" * 100000], WSCloseCode.UNSUPPORTED_DATA),
    "no object": (["[1]"], WSCloseCode.UNSUPPORTED_DATA),
    "no start": ([END], WSCloseCode.POLICY_VIOLATION),
    "samples first": ([bytes(400)], WSCloseCode.POLICY_VIOLATION),
    "odd rate": ([{**START, "sample_rate": 47999}], WSCloseCode.POLICY_VIOLATION),
    "no rate": ([{**START, "sample_rate": [16000]}], WSCloseCode.POLICY_VIOLATION),
    "odd format": ([{**START, "format": ["f32le"]}], WSCloseCode.POLICY_VIOLATION),
    "two starts": ([START, START], WSCloseCode.POLICY_VIOLATION),
    "no whole samples": ([START, bytes(401)], WSCloseCode.UNSUPPORTED_DATA),
    "not a number": ([START, np.full(99, np.nan, "<f4").tobytes()], WSCloseCode.UNSUPPORTED_DATA),
    "endless": ([START, np.full(99, np.inf, "<f4").tobytes()], WSCloseCode.UNSUPPORTED_DATA),
    "no scale": ([START, np.full(99, 3e4, "<f4").tobytes()], WSCloseCode.UNSUPPORTED_DATA),
    "segments that are no number": ([{**START, "segments": True}], WSCloseCode.POLICY_VIOLATION),
    "more after the end": ([START, END, END], WSCloseCode.POLICY_VIOLATION),
}


def test_a_client_that_sends_garbage_is_told_and_disturbs_nobody(undisturbed):
    async def one(session: aiohttp.ClientSession, url: str, messages: Any) -> tuple[str, int]:
        async with session.ws_connect(url + "stream") as ws:
            for message in messages:
                await (ws.send_bytes if isinstance(message, bytes) else ws.send_str)(
                    json.dumps(message) if isinstance(message, dict) else message
                )
            kinds = [message.json()["type"] async for message in ws]
            return kinds[-1:], ws.close_code

    def raw(url: str) -> None:
        for opcode, payload, bits in ((1, b"\xff\xfe", 0x80), (2, b"x", 0xF0), (7, b"x", 0x80), (9, bytes(999), 0x80)):
            RawClient(url).frame(opcode, payload, bits)
        with socket.create_connection(url.split("/")[2].split(":")) as plain:
            plain.sendall(bytes(range(256)) * 40 + b"\r\n\r\n")

    async def nuisance(running: Running) -> dict[str, tuple[str, int]]:
        await asyncio.to_thread(raw, running.url)
        async with aiohttp.ClientSession() as session:
            answers = [await one(session, running.url, messages) for messages, _ in GARBAGE.values()]
        return dict(zip(GARBAGE, answers, strict=True))

    answers = undisturbed(nuisance)
    assert answers == {name: (["error"], code) for name, (_, code) in GARBAGE.items()}


def test_a_client_that_sends_100_megabytes_is_stopped_and_disturbs_nobody(undisturbed):
    def in_one_message(client: RawClient) -> int:
        client.socket.sendall(bytes([0x82, 0xFF]) + (100 * MEGABYTE).to_bytes(8, "big") + bytes(4))
        sent = 0
        with suppress(OSError):
            while sent < 100 * MEGABYTE:
                client.socket.sendall(bytes(MEGABYTE))
                sent += MEGABYTE
        return sent

    def in_fragments(client: RawClient) -> int:
        return client.frames_until_refused(2, bytes(MEGABYTE // 4), count=400, first_bits=0)

    def flood(url: str, send: Callable[[RawClient], int]) -> int:
        client = RawClient(url)
        client.frame(1, json.dumps(START).encode())
        sent = send(client)
        client.socket.close()
        return sent

    async def nuisance(running: Running) -> list[int]:
        return [await asyncio.to_thread(flood, running.url, way) for way in (in_one_message, in_fragments)]

    assert max(undisturbed(nuisance)) < 20 * MEGABYTE  # what fits into the network's buffers


@pytest.mark.parametrize("size, answer", [(6500, "final"), (6504, "error"), (13000, "error"), (13004, None)])
def test_a_message_of_the_limit_is_taken_and_one_above_it_refused(undisturbed, caplog, size, answer):
    """Above twice the limit a message is not read, and the close code alone tells its sender."""

    async def nuisance(running: Running) -> tuple[list[dict[str, str]], int | None]:
        async with aiohttp.ClientSession() as session, session.ws_connect(running.url + "stream") as ws:
            await ws.send_json(START)
            await ws.send_bytes(bytes(size))
            if answer == "final":
                await ws.send_json(END)
            return [message.json() async for message in ws], ws.close_code

    caplog.set_level(logging.INFO)
    messages, code = undisturbed(nuisance, max_message_bytes=6500)
    problem = "a message has more bytes than --max-message-bytes 6500 allows; send shorter ones"
    assert [message["type"] for message in messages[-1:]] == [answer] * (answer is not None)
    assert code == (WSCloseCode.OK if answer == "final" else WSCloseCode.MESSAGE_TOO_BIG)
    if answer == "error":
        assert messages[-1]["message"] == problem and f"let go: {problem}" in caplog.text


def test_a_client_that_never_reads_is_let_go_and_disturbs_nobody(undisturbed, caplog):
    audio = noise(0.5, seed=5).tobytes()

    def talk(url: str) -> int:
        client = RawClient(url, receive_buffer=1)
        client.frame(1, json.dumps(START).encode())
        return client.frames_until_refused(2, audio, count=1000) // len(audio)

    async def nuisance(running: Running) -> int:
        return await asyncio.to_thread(talk, running.url)

    caplog.set_level(logging.INFO)
    assert undisturbed(nuisance, send_seconds=1.0) < 1000
    assert "gone: it reads nothing" in caplog.text


@pytest.mark.parametrize("rate, encoding", [(16000, "s16le"), (48000, "f32le"), (8000, "s16le")])
def test_rates_and_formats_are_converted(serving, runtime, rate, encoding):
    samples = noise(SECONDS, seed=7, rate=rate)
    if encoding == "s16le":
        integers = (samples * 32767).astype("<i2")
        samples, sent = integers.astype(np.float32) / 32768, integers
    else:
        sent = samples
    stream = SegmentedStream(runtime)
    stream.accept(samples, rate)
    stream.accept(np.zeros(rate // 4, np.float32), rate)
    stream.finish()
    stream.decode()
    expected = stream.text

    async def run() -> str:
        async with serving() as running:
            start = {**START, "sample_rate": rate, "format": encoding}
            return (await speak(running.url, sent, start, speed=None)).final

    heard = asyncio.run(run())
    # 250 ms of silence may hold a chunk more than the tail does
    assert len(heard) > 20 and expected.startswith(heard) and len(expected) - len(heard) < 10


def test_a_final_text_comes_of_no_audio_at_all(serving):
    async def run() -> str:
        async with serving() as running:
            return (await speak(running.url, np.zeros(0, np.float32))).final

    assert asyncio.run(run()) is not None


def test_one_client_too_many_is_turned_away_until_another_leaves(serving, said):
    audio, expected = said[0]

    async def run() -> None:
        async with serving(max_clients=1) as running:
            first = asyncio.create_task(speak(running.url, audio))
            await asyncio.sleep(0.5)
            second = await speak(running.url, audio)
            assert (second.error, second.close_code) == ("1 clients are here already", WSCloseCode.TRY_AGAIN_LATER)
            assert (await first).final == expected
            await running.empty()
            assert (await speak(running.url, audio, speed=None)).final == expected

    asyncio.run(run())


def test_a_cancellation_is_kept_even_as_what_was_waited_for_comes():
    async def run() -> None:
        text = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(within(60, text))
        await asyncio.sleep(0)
        text.set_result("words")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(run())


def test_a_batch_that_fails_ends_its_clients_and_no_others(served, serving, said):
    runtime = Runtime(served.files)
    recognizer = runtime.recognizer

    class Failing:
        """Fails once."""

        failed = False

        def __getattr__(self, name: str) -> Any:
            return getattr(recognizer, name)

        def decode_streams(self, streams: Any) -> None:
            if not self.failed:
                self.failed = True
                raise RuntimeError("out of memory")
            recognizer.decode_streams(streams)

    runtime.recognizer = Failing()
    audio, expected = said[0]

    async def run() -> None:
        async with serving(runtime=runtime) as running:
            failed = await speak(running.url, audio, speed=None)
            assert (failed.error, failed.close_code) == ("the recogniser failed", WSCloseCode.INTERNAL_ERROR)
            assert (await speak(running.url, audio, speed=None)).final == expected

    asyncio.run(run())


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 101),
        ({"Origin": "http://{host}"}, 101),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[evil"}, 400),
        ({"Origin": "http://evil.example:{port}", "Host": "evil.example:{port}"}, 403),
        ({"Origin": "http://localhost:{port}", "Host": "localhost:{port}"}, 101),
    ],
    ids=str,
)
def test_pages_from_elsewhere_may_not_use_the_server(serving, headers, status):
    async def run() -> int:
        async with serving() as running, aiohttp.ClientSession() as session:
            host = running.url.split("/")[2]
            filled = {name: text.format(host=host, port=host.split(":")[1]) for name, text in headers.items()}
            try:
                async with session.ws_connect(running.url + "stream", headers=filled):
                    return 101
            except aiohttp.WSServerHandshakeError as error:
                return error.status

    assert asyncio.run(run()) == status


def test_the_page_comes_with_a_strict_policy_and_nothing_else_is_served(serving):
    paths = ("page.html", "server.py", "..%2fserver.py", "%2e%2e/%2e%2e/README.md", "%2fetc%2fpasswd", "stream/x")

    async def run() -> None:
        async with serving() as running, aiohttp.ClientSession() as session:
            async with session.get(running.url) as page:
                policy, text = page.headers["Content-Security-Policy"], await page.text()
            assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
            assert not re.search(r"(src|href)=.?(http|/)", text) and text.count("<script>") == 1
            for path in paths:
                async with session.get(URL(running.url + path, encoded=True)) as answer:
                    assert answer.status == 404, path
            async with session.post(running.url, data=bytes(MEGABYTE)) as answer:
                assert answer.status == 405
            async with session.get(running.url + "stream") as answer:
                assert answer.status == 400  # no upgrade

    asyncio.run(run())
