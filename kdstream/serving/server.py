"""The page, and the websocket that it speaks to.

A client opens /stream and sends {"type": "start", "sample_rate": 48000, "format": "f32le"} (or "s16le"), then binary
messages of mono samples, then {"type": "end"}.  It is sent {"type": "partial", "text": ...} as words come, and one
{"type": "final", "text": ...} after the end; or {"type": "error", "message": ...}; then the connection is closed.  One
connection is one utterance.

Nothing a client does costs the others more than its share.  Audio that comes too fast waits in the network, not in
memory; of the texts for a client that reads too slowly the newest alone is kept; who reads nothing, sends nothing, or
sends what is none of the above is let go, and told why where it listens.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from kdstream.audio.samples import LOUDEST
from kdstream.errors import UserError, option
from kdstream.serving.engine import ClientStream, Engine, EngineError
from kdstream.serving.limits import Limits
from kdstream.units import SAMPLE_RATES

PAGE = Path(__file__).with_name("page.html")
FORMATS = {"f32le": "<f4", "s16le": "<i2"}
SEND_BUFFER = 16384  # bytes of texts that may be under way to a client; more would be old when it is read
TOO_LARGE = 2  # times --max-message-bytes: what is larger is not even read, and told by its close code alone
CLOSE_SECONDS = 2.0  # that a client has to answer a close
HEADERS = {
    "Cache-Control": "no-store",
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Refusal(Exception):
    """Why a client is let go, as it is told."""

    def __init__(self, code: WSCloseCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Format(NamedTuple):
    """What the samples of a client are."""

    sample_rate: int
    dtype: str

    @staticmethod
    def parse(message: str) -> Format:
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
        return Format(int(rate), FORMATS[encoding])

    def samples(self, message: bytes) -> np.ndarray:
        """Float32 samples (S,) in [-1, 1].  Raises Refusal for bytes that cannot be such."""
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


class Server:
    """The page and its websocket as an aiohttp application.

    Args:
      names: by which browsers may address the server; None: any.  On a loopback address it must be LOOPBACK_NAMES, or a
        page from elsewhere could have its own name resolve to this machine and then count as the same origin.
    """

    def __init__(self, engine: Engine, limits: Limits, names: frozenset[str] | None) -> None:
        self._engine, self._limits, self._names = engine, limits, names
        self.clients: set[web.WebSocketResponse] = set()
        self._page = PAGE.read_text(encoding="utf-8")
        self._headers = {**HEADERS, "Content-Security-Policy": content_security_policy(self._page)}

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._check_source])
        app.router.add_get("/", self._show_page)
        app.router.add_get("/stream", self._stream)
        app.cleanup_ctx.append(self._decode)
        app.on_shutdown.append(self._say_goodbye)
        return app

    async def _decode(self, app: web.Application) -> AsyncIterator[None]:
        decoding = asyncio.create_task(self._engine.run())
        yield
        decoding.cancel()
        with suppress(asyncio.CancelledError):
            await decoding

    async def _say_goodbye(self, app: web.Application) -> None:
        closing = [ws.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops") for ws in self.clients]
        await asyncio.gather(*closing, return_exceptions=True)

    @web.middleware
    async def _check_source(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        try:
            name = urlsplit(f"//{request.host}").hostname
            origin = urlsplit(request.headers.get("Origin", f"//{request.host}")).netloc
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        if self._names is not None and name not in self._names:
            raise web.HTTPForbidden(text="not a name of this server; see --names\n")
        if origin.lower() != request.host.lower():
            raise web.HTTPForbidden(text="pages from elsewhere may not use this server\n")
        return await handler(request)

    async def _show_page(self, request: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type="text/html", headers=self._headers)

    async def _stream(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(
            max_msg_size=TOO_LARGE * self._limits.max_message_bytes + 1,  # aiohttp takes less than this
            timeout=CLOSE_SECONDS,
            compress=False,  # or a small message could unpack to a large one
            writer_limit=0,  # each text waits until those before it are under way
        )
        await ws.prepare(request)
        try:
            keep_few_texts(request)
            if len(self.clients) >= self._limits.max_clients:
                raise Refusal(WSCloseCode.TRY_AGAIN_LATER, f"{self._limits.max_clients} clients are here already")
            self.clients.add(ws)
            await self._hear(ws)
            await within(2 * CLOSE_SECONDS, ws.close())
        except Refusal as refusal:
            logging.info("%s: let go: %s", request.remote, refusal)
            with suppress(ConnectionError, asyncio.TimeoutError):
                await within(2 * CLOSE_SECONDS, self._refuse(ws, refusal))
        except (ConnectionError, asyncio.TimeoutError) as error:
            logging.info("%s: gone: %s", request.remote, str(error) or "it reads nothing")
        finally:
            self.clients.discard(ws)
            if request.transport is not None:
                request.transport.abort()  # or what a client never reads would keep the connection
        return ws

    async def _hear(self, ws: web.WebSocketResponse) -> None:
        """Hears one utterance, to the final text.

        Raises Refusal; ConnectionError where the client left; asyncio.TimeoutError where it does not read.
        """
        message = await self._receive(ws, self._limits.idle_seconds)
        if message.type is not WSMsgType.TEXT:
            raise Refusal(WSCloseCode.POLICY_VIOLATION, "the first message must be of type start")
        form = Format.parse(message.data)
        stream = self._engine.open(form.sample_rate)
        listening = asyncio.create_task(self._listen(ws, form, stream))
        telling = asyncio.create_task(self._tell(ws, stream))
        tasks = (listening, telling)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            (telling if telling.done() else listening).result()
        except EngineError as error:
            raise Refusal(WSCloseCode.INTERNAL_ERROR, str(error)) from error
        finally:
            self._engine.close(stream)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, ws: web.WebSocketResponse, form: Format, stream: ClientStream) -> None:
        """Takes what the client sends, until it is cancelled."""
        limits, samples, idle_seconds = self._limits, 0, self._limits.idle_seconds
        while True:
            message = await self._receive(ws, idle_seconds)
            if idle_seconds is None:
                raise Refusal(WSCloseCode.POLICY_VIOLATION, "nothing may follow the end")
            if message.type is WSMsgType.TEXT:
                if parse_json(message.data).get("type") != "end":
                    raise Refusal(WSCloseCode.POLICY_VIOLATION, "after the start, text messages must be of type end")
                stream.finish()
                idle_seconds = None
                continue
            block = form.samples(message.data)
            samples += len(block)
            if samples > limits.max_seconds * form.sample_rate:
                raise Refusal(WSCloseCode.MESSAGE_TOO_BIG, f"more than {limits.max_seconds:g} s of audio")
            await stream.accept(block)

    async def _receive(self, ws: web.WebSocketResponse, seconds: float | None) -> WSMessage:
        """The next message with content.

        Raises Refusal where none comes or one is too large, ConnectionError where the client left.
        """
        try:
            message = await ws.receive(seconds)
        except asyncio.TimeoutError as error:
            raise Refusal(WSCloseCode.POLICY_VIOLATION, f"nothing was sent for {seconds:g} s") from error
        unread = getattr(message.data, "code", None) == WSCloseCode.MESSAGE_TOO_BIG  # of a WebSocketError
        if unread or size_of(message) > self._limits.max_message_bytes:
            flag = option("max_message_bytes", self._limits.max_message_bytes)
            raise Refusal(
                WSCloseCode.MESSAGE_TOO_BIG, f"a message has more bytes than {flag} allows; send shorter ones"
            )
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            raise ConnectionError(f"closed with {ws.close_code}" + f", {message.data}" * bool(message.data))
        return message

    async def _tell(self, ws: web.WebSocketResponse, stream: ClientStream) -> None:
        """Sends texts, the final one last."""
        final = False
        while not final:
            text, final = await stream.next_text()
            kind = "final" if final else "partial"
            await within(self._limits.send_seconds, ws.send_json({"type": kind, "text": text}))

    async def _refuse(self, ws: web.WebSocketResponse, refusal: Refusal) -> None:
        await ws.send_json({"type": "error", "message": str(refusal)})
        await ws.close(code=refusal.code, message=str(refusal).encode()[:120])


def size_of(message: WSMessage) -> int:
    """Bytes of content, 0 where it has none."""
    if message.type is WSMsgType.TEXT:
        return len(message.data.encode())
    return len(message.data) if message.type is WSMsgType.BINARY else 0


def keep_few_texts(request: web.Request) -> None:
    """Bounds the texts that are under way to a client.  Raises ConnectionError where it left."""
    if request.transport is None:
        raise ConnectionError("it left at once")
    request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    request.transport.set_write_buffer_limits(high=SEND_BUFFER)


async def within(seconds: float, doing: Awaitable[Any]) -> Any:
    """Its result, or asyncio.TimeoutError.  (Before Python 3.12, asyncio.wait_for can swallow a cancellation.)"""
    task = asyncio.ensure_future(doing)
    try:
        await asyncio.wait((task,), timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()


def content_security_policy(page: str) -> str:
    """Allows the page's own script and style, its websocket, and the worklet that it makes; nothing else."""

    def digests(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(x.encode()).digest()).decode()}'" for x in found)

    return (
        f"default-src 'none'; script-src {digests('script')} blob:; style-src {digests('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def serve(
    app: web.Application,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    announce: Callable[[str], None],
) -> None:
    """Serves until SIGINT or SIGTERM; `announce` gets the address once it can be used.

    Raises UserError where it is not to be had.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        address, port = runner.addresses[0][:2]
        shown = f"[{address}]" if ":" in address else address
        announce(f"{'https' if tls else 'http'}://{shown}:{port}/")
        await stop.wait()
    except (OSError, OverflowError) as error:  # a port above 65535 is the latter
        reason = getattr(error, "strerror", None) or error
        raise UserError(str(reason), flag=f"--host {host} --port {port}", fix="choose another") from error
    finally:
        await runner.cleanup()
