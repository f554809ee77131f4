"""Connections that never end their request, or their handshake: they keep nobody out."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kdstream.serving import server as server_module
from kdstream.serving.limits import LOOPBACK_NAMES, Limits
from kdstream.serving.server import Server, serve
from support.serving import RawClient

HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
UNFINISHED = pytest.mark.parametrize("data, encrypted", [(b"", False), (HALF, False), (b"", True)])


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> ssl.SSLContext:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl, which makes the certificate")
    folder: Path = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@asynccontextmanager
async def serving_nothing(context: ssl.SSLContext | None = None, **limits: Any) -> AsyncIterator[str]:
    """The address of a server without a model."""
    address = asyncio.get_running_loop().create_future()
    server = Server({}, Limits(**limits), LOOPBACK_NAMES)
    running = asyncio.create_task(serve(server, "127.0.0.1", 0, context, address.set_result))
    try:
        yield await address
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def begin(url: str, data: bytes) -> socket.socket:
    """A connection that has said no more than `data`."""
    host, port = url.split("/")[2].split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(data)
    return connection


def is_open(connection: socket.socket) -> bool:
    """Whether the server still waits for it."""
    connection.settimeout(0.01)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


async def is_healthy(url: str) -> bool:
    async with aiohttp.ClientSession() as http, http.get(url + "healthz", ssl=False, timeout=10) as answer:
        return (await answer.json())["status"] == "ok"


@UNFINISHED
def test_a_request_that_does_not_come_whole_in_time_is_closed(tls, data, encrypted):
    async def run() -> tuple[list[bytes], float]:
        async with serving_nothing(tls if encrypted else None, idle_seconds=0.5) as url:
            start = time.monotonic()
            connections = [begin(url, data) for _ in range(3)]
            answers = [await asyncio.to_thread(connection.recv, 1) for connection in connections]
            seconds = time.monotonic() - start
            assert await is_healthy(url)
            return answers, seconds

    answers, seconds = asyncio.run(run())
    assert answers == [b""] * 3 and 0.5 <= seconds < 5


@UNFINISHED
def test_of_too_many_connections_the_oldest_are_closed_that_are_no_client_s(monkeypatch, tls, data, encrypted):
    monkeypatch.setattr(server_module, "SPARE_CONNECTIONS", 4)

    async def run() -> list[bool]:
        async with serving_nothing(tls if encrypted else None, max_clients=1, idle_seconds=600.0) as url:
            connections = []
            for _ in range(30):
                connections.append(await asyncio.to_thread(begin, url, data))
                assert await is_healthy(url)
            return [is_open(connection) for connection in connections]

    *older, last = asyncio.run(run())
    assert last and not any(older[:-6])  # of 2 clients' and 4 others


def test_a_client_stays_while_others_come_in_crowds(monkeypatch):
    monkeypatch.setattr(server_module, "SPARE_CONNECTIONS", 4)

    async def run() -> bytes:
        async with serving_nothing(max_clients=1) as url:
            client = await asyncio.to_thread(RawClient, url)
            crowd = [await asyncio.to_thread(begin, url, HALF) for _ in range(30)]
            assert not is_open(crowd[0])
            client.frame(1, b"{")
            return await asyncio.to_thread(client.socket.recv, 1000)

    assert b"a text message must be a JSON object" in asyncio.run(run())
