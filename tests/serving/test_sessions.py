"""Clients that come back, have hotwords of their own, and what operators are told of them all."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from typing import Any

import aiohttp
import numpy as np
import pytest

from kdstream.endpoints import EndpointConfig
from kdstream.serving.engine import ClientStream, Engine
from kdstream.serving.limits import Limits
from kdstream.serving.protocol import Start
from kdstream.serving.runtime import Runtime
from kdstream.serving.sessions import Session, Sessions
from support.serving import END, START, Heard, noise, speak

pytestmark = pytest.mark.slow

SECONDS = 2.5


def test_a_client_that_drops_comes_back_to_its_session_and_loses_no_segment(runtime, serving):
    audio = noise(12.0, seed=1)
    rules = EndpointConfig(rule3_min_utterance_length=1.0)

    async def connect(http: aiohttp.ClientSession, url: str, heard: Heard, samples: np.ndarray, last: bool) -> None:
        start = {**START, "session": heard.session.get("session", ""), "segments": len(heard.segments)}
        async with http.ws_connect(url + "stream") as ws:
            await ws.send_json(start)
            heard.take((await ws.receive()).json())
            samples = samples[heard.session["samples"] :]
            for place in range(0, len(samples), 8000):
                await ws.send_bytes(samples[place : place + 8000].tobytes())
            if last:
                await ws.send_json(END)
            async for message in ws:
                heard.take(message.json())
                if not last and len(heard.segments) == 3:
                    ws._response.connection.transport.abort()  # without a word

    async def run() -> tuple[Heard, Heard]:
        cut = Runtime(runtime.model, rules=rules)
        async with serving(runtime=cut) as running, aiohttp.ClientSession() as http:
            dropped = Heard()
            await connect(http, running.url, dropped, audio[: 6 * 16000], last=False)
            await running.empty()
            first = dropped.session["session"]
            await connect(http, running.url, dropped, audio, last=True)
            assert dropped.session["session"] == first and dropped.session["samples"] == 6 * 16000
            other = Heard()
            await connect(http, running.url, other, audio, last=True)
            assert other.session["session"] != first
            return dropped, other

    dropped, other = asyncio.run(run())
    assert dropped.final == other.final and len(other.segments) > 6
    assert dropped.segments == other.segments and list(other.segments) == list(range(len(other.segments)))


def test_a_client_whose_connection_fell_silent_comes_back_to_its_session(serving):
    async def connect(http: aiohttp.ClientSession, url: str, session: str) -> dict:
        async with http.ws_connect(url + "stream") as ws:
            await ws.send_json({**START, "session": session})
            told = (await ws.receive()).json()
            await ws.send_bytes(noise(1.0, seed=1).tobytes())
            assert [message.json() async for message in ws][-1]["message"] == "nothing was sent for 0.5 s"
            return told

    async def run() -> tuple[dict, dict]:
        async with serving(idle_seconds=0.5) as running, aiohttp.ClientSession() as http:
            first = await connect(http, running.url, "")
            return first, await connect(http, running.url, first["session"])

    first, second = asyncio.run(run())
    assert second == {**first, "samples": 16000}


def test_of_connections_that_come_back_at_once_one_alone_has_the_session(runtime):
    async def run() -> None:
        engine = Engine(runtime)
        session = Session(Start(16000, "f4"), "one", engine, engine.open(16000))

        async def come_back() -> None:
            await session.take()
            session.tasks = (asyncio.create_task(asyncio.sleep(60)),)
            connections.extend(session.tasks)

        connections: list[asyncio.Task] = []
        await come_back()
        await asyncio.gather(come_back(), come_back())
        assert [task for task in connections if not task.done()] == list(session.tasks)
        await session.take()

    asyncio.run(run())


def test_a_client_that_asks_for_something_else_gets_a_session_of_its_own(runtime):
    async def run() -> None:
        sessions = Sessions({"one": Engine(runtime), "two": Engine(runtime)}, Limits())
        began = Start(16000, "f4", "one")
        session = sessions.find(began)
        back = began._replace(session=session.id)
        assert sessions.find(back) is session
        others = (back._replace(model="two"), back._replace(sample_rate=8000), back._replace(dtype="i2"))
        found = [session, *map(sessions.find, others)]
        assert len({each.id for each in found}) == 4 and found[1].model == "two"

    asyncio.run(run())


def test_a_stream_that_has_ended_is_not_kept_for_its_client_to_come_back(serving):
    async def run() -> list[ClientStream | None]:
        async with serving(resume_seconds=600.0) as running:
            engine, opened = running.server._engines["tiny"], []

            def open_watched(*args: Any) -> ClientStream:
                client = Engine.open(engine, *args)
                opened.append(weakref.ref(client))
                return client

            engine.open = open_watched
            for seed in range(3):
                await speak(running.url, noise(0.5, seed), speed=None)
            await running.empty()
            gc.collect()
            return [client() for client in opened]

    *before, _ = asyncio.run(run())  # the thread may hold those of its last batch
    assert before == [None, None]


def test_operators_are_told_of_health_load_and_errors(serving, said):
    audio, _ = said[0]

    async def run() -> None:
        async with serving() as running, aiohttp.ClientSession() as http:

            async def get(path: str) -> str:
                async with http.get(running.url + path) as answer:
                    assert answer.status == 200
                    return await answer.text()

            await speak(running.url, audio, speed=None)
            await speak(running.url, audio, {**START, "model": "large"}, speed=None)
            assert json.loads(await get("healthz")) == {"status": "ok", "problems": {}}
            assert json.loads(await get("models")) == {"models": [{"name": "tiny", "hotwords": False}]}
            metrics = await get("metrics")
        lines = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
        tiny = '{model="tiny"}'
        silence = running.server._engines["tiny"].runtime.model.tail / 100
        assert float(lines["kdstream_audio_seconds_total" + tiny]) == pytest.approx(SECONDS + silence, abs=0.02)
        assert lines["kdstream_segments_total" + tiny] == "1" and lines["kdstream_streams" + tiny] == "0"
        assert lines["kdstream_lag_seconds" + tiny] == "0" and lines["kdstream_errors_total" + tiny] == "0"
        assert lines['kdstream_refusals_total{reason="policy_violation"}'] == "1"
        assert float(lines["process_cpu_seconds_total"]) > 0.1
        steps = lines["kdstream_step_seconds_count" + tiny]
        assert int(steps) >= 15 and lines['kdstream_step_seconds_bucket{model="tiny",le="+Inf"}'] == steps

    asyncio.run(run())


def test_a_client_has_hotwords_of_its_own(served, serving, said):
    served.tokenizer.save_vocabulary(served.files.vocabulary)
    runtime = Runtime(served.files, method="modified_beam_search", hotwords_score=2.0)

    async def run() -> list[Heard]:
        async with serving(runtime=runtime) as running:
            lists = (["f", "be :3"], [], ["BÉD"], ["be", "b" * 201])
            clients = [speak(running.url, said[1][0], {**START, "hotwords": hotwords}, None) for hotwords in lists]
            return await asyncio.gather(*clients)

    biased, plain, odd, long = asyncio.run(run())
    assert biased.final != plain.final and biased.final.count("BE") > plain.final.count("BE")
    assert odd.error.startswith("hotwords: line 1, 'BÉD': the model has no token for 'É'")
    assert long.error.startswith(f"hotwords: line 2, '{'b' * 40}...': 201 letters are more than 200")
