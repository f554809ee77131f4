"""The page, the websocket that it speaks to (protocol.py has the messages), and what operators ask for.

GET /models has the names of the models, /healthz says whether all is well, and /metrics is for Prometheus.

Nothing a client does costs the others more than its share.  Audio that comes too fast waits in the network, not in
memory, and so does that of a client that reads too slowly; of its growing texts the newest alone is kept.  Who reads
nothing, sends nothing, or sends what is no message is let go, and told why where it listens.  A connection that is no
client's lasts --idle-seconds, and less where too many others come.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import signal
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from kdstream.errors import UserError, option
from kdstream.serving.connections import Connections, listen
from kdstream.serving.engine import ClientStream, Engine, EngineError
from kdstream.serving.limits import Limits
from kdstream.serving.metrics import Histogram, family, process
from kdstream.serving.protocol import Refusal, Silence, Start, messages_of, parse_json
from kdstream.serving.sessions import Session, Sessions

PAGE = Path(__file__).with_name("page.html")
SEND_BUFFER = 16384  # bytes of texts that may be under way to a client; more would be old when it is read
TOO_LARGE = 2  # times --max-message-bytes: what is larger is not even read, and told by its close code alone
CLOSE_SECONDS = 2.0  # that a client has to answer a close
SPARE_CONNECTIONS = 64  # that may be open beside those of clients
HEADERS = {
    "Cache-Control": "no-store",
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server:
    """The page and its websocket as an aiohttp application.

    Args:
      engines: by the names of their models, the default one first.
      names: by which browsers may address the server; None: any.  On a loopback address it must be LOOPBACK_NAMES, or a
        page from elsewhere could have its own name resolve to this machine and then count as the same origin.
    """

    def __init__(self, engines: Mapping[str, Engine], limits: Limits, names: frozenset[str] | None) -> None:
        self._engines, self.limits, self._names = engines, limits, names
        self._sessions = Sessions(engines, limits)
        self._refusals: Counter[str] = Counter()
        self.clients: set[web.WebSocketResponse] = set()
        self._most_clients = 2 * limits.max_clients  # some may be dead, and their clients back
        self._page = PAGE.read_text(encoding="utf-8")
        self._headers = {**HEADERS, "Content-Security-Policy": content_security_policy(self._page)}

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._check_source])
        app.router.add_get("/", self._show_page)
        app.router.add_get("/stream", self._stream)
        app.router.add_get("/models", self._show_models)
        app.router.add_get("/healthz", self._show_health)
        app.router.add_get("/metrics", self._show_metrics)
        app.cleanup_ctx.append(self._decode)
        app.on_shutdown.append(self._say_goodbye)
        return app

    def connections(self) -> Connections:
        """Room for all that may be open."""

        def clients() -> set[int]:
            sockets = [ws.get_extra_info("socket") for ws in self.clients]
            return {each.fileno() for each in sockets if each is not None}

        return Connections(self._most_clients + SPARE_CONNECTIONS, self.limits.idle_seconds, clients)

    async def _decode(self, app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for engine in self._engines.values():
                await stack.enter_async_context(running(engine))
            yield

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

    async def _show_models(self, request: web.Request) -> web.Response:
        models = [{"name": name, "hotwords": each.runtime.takes_hotwords} for name, each in self._engines.items()]
        return web.json_response({"models": models}, headers=HEADERS)

    async def _show_health(self, request: web.Request) -> web.Response:
        problems = {name: engine.problem for name, engine in self._engines.items() if engine.problem}
        state = {"status": "failing" if problems else "ok", "problems": problems}
        return web.json_response(state, status=503 if problems else 200, headers=HEADERS)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        def each(of: Callable[[str, Engine], float | Histogram]) -> dict[str, float | Histogram]:
            return {name: of(name, engine) for name, engine in self._engines.items()}

        families = [
            ("streams", "gauge", "Clients that are heard.", each(lambda name, _: self._sessions.count(name)[0])),
            (
                "streams_away",
                "gauge",
                "Clients that may come back.",
                each(lambda name, _: self._sessions.count(name)[1]),
            ),
            ("audio_seconds_total", "counter", "Audio that was decoded.", each(lambda _, engine: engine.audio)),
            ("segments_total", "counter", "Segments that were finished.", each(lambda _, engine: engine.segments)),
            ("lag_seconds", "gauge", "Audio that waits, of the client with most.", each(lambda _, engine: engine.lag)),
            ("step_seconds", "histogram", "Time of the steps.", each(lambda _, engine: engine.steps)),
            (
                "errors_total",
                "counter",
                "Steps that failed, for all their clients or for one.",
                each(lambda _, engine: engine.failures),
            ),
        ]
        text = "".join(family(name, kind, what, "model", values) for name, kind, what, values in families)
        text += family("refusals_total", "counter", "Clients that were let go.", "reason", self._refusals)
        text += process()
        return web.Response(text=text, content_type="text/plain", charset="utf-8", headers=HEADERS)

    async def _stream(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(
            max_msg_size=TOO_LARGE * self.limits.max_message_bytes + 1,  # aiohttp takes less than this
            timeout=CLOSE_SECONDS,
            compress=False,  # or a small message could unpack to a large one
            writer_limit=0,  # each text waits until those before it are under way
        )
        await ws.prepare(request)
        try:
            keep_few_texts(request)
            if len(self.clients) >= self._most_clients:
                raise Refusal(WSCloseCode.TRY_AGAIN_LATER, "too many connections")
            self.clients.add(ws)
            await self._hear(ws)
            await within(2 * CLOSE_SECONDS, ws.close())
        except Refusal as refusal:
            logging.info("%s: let go: %s", request.remote, refusal)
            self._refusals[refusal.code.name.lower()] += 1
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
        """Hears a client to its end.

        Raises Refusal; ConnectionError where the client left; asyncio.TimeoutError where it does not read.
        """
        message = await self._receive(ws, self.limits.idle_seconds)
        if message.type is not WSMsgType.TEXT:
            raise Refusal(WSCloseCode.POLICY_VIOLATION, "the first message must be of type start")
        start = Start.parse(message.data)
        session = self._sessions.find(start)
        await session.take()
        stream = session.stream
        stream.tell_again(start.segments)
        listening = asyncio.create_task(self._listen(ws, start, stream))
        telling = asyncio.create_task(self._tell(ws, session))
        tasks = session.tasks = (listening, telling)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if session.tasks is not tasks:
                raise ConnectionError("it came back over another connection")
            (telling if telling.done() else listening).result()
            self._sessions.close(session)
        except EngineError as error:
            self._sessions.close(session)
            raise Refusal(WSCloseCode.INTERNAL_ERROR, str(error)) from error
        except Refusal as refusal:
            if not isinstance(refusal, Silence):
                self._sessions.close(session)
            raise
        finally:
            if session.tasks is tasks:
                self._sessions.leave(session)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, ws: web.WebSocketResponse, form: Start, stream: ClientStream) -> None:
        """Takes what the client sends, until it is cancelled."""
        while True:
            message = await self._receive(ws, None if stream.finished else self.limits.idle_seconds)
            if stream.finished:
                raise Refusal(WSCloseCode.POLICY_VIOLATION, "nothing may follow the end")
            if message.type is WSMsgType.BINARY:
                await stream.accept(form.samples(message.data))
                continue
            if parse_json(message.data).get("type") != "end":
                raise Refusal(WSCloseCode.POLICY_VIOLATION, "after the start, text messages must be of type end")
            stream.finish()

    async def _receive(self, ws: web.WebSocketResponse, seconds: float | None) -> WSMessage:
        """The next message with content.

        Raises Refusal where none comes or one is too large, ConnectionError where the client left.
        """
        try:
            message = await ws.receive(seconds)
        except asyncio.TimeoutError as error:
            raise Silence(seconds or 0.0) from error
        unread = getattr(message.data, "code", None) == WSCloseCode.MESSAGE_TOO_BIG  # of a WebSocketError
        if unread or size_of(message) > self.limits.max_message_bytes:
            flag = option("max_message_bytes", self.limits.max_message_bytes)
            raise Refusal(
                WSCloseCode.MESSAGE_TOO_BIG, f"a message has more bytes than {flag} allows; send shorter ones"
            )
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            raise ConnectionError(f"closed with {ws.close_code}" + f", {message.data}" * bool(message.data))
        return message

    async def _tell(self, ws: web.WebSocketResponse, session: Session) -> None:
        """Sends segments and texts, to the end."""
        stream, final = session.stream, False
        hello = {"type": "session", "session": session.id, "samples": stream.samples, "ended": stream.finished}
        await within(self.limits.send_seconds, ws.send_json(hello))
        while not final:
            news = await stream.next_news()
            for message in messages_of(news):
                await within(self.limits.send_seconds, ws.send_json(message))
            final = news.final

    async def _refuse(self, ws: web.WebSocketResponse, refusal: Refusal) -> None:
        await ws.send_json({"type": "error", "message": str(refusal)})
        await ws.close(code=refusal.code, message=str(refusal).encode()[:120])


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[None]:
    """Lets it decode meanwhile."""
    decoding = asyncio.create_task(engine.run())
    try:
        yield
    finally:
        decoding.cancel()
        with suppress(asyncio.CancelledError):
            await decoding


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
    server: Server,
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
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=CLOSE_SECONDS)
    await runner.setup()
    try:
        for listener in listen(host, port, server.connections()):
            await web.SockSite(runner, listener, ssl_context=tls).start()
        address, port = runner.addresses[0][:2]
        shown = f"[{address}]" if ":" in address else address
        announce(f"{'https' if tls else 'http'}://{shown}:{port}/")
        await stop.wait()
    except (OSError, OverflowError) as error:  # a port above 65535 is the latter
        reason = getattr(error, "strerror", None) or error
        raise UserError(str(reason), flag=f"--host {host} --port {port}", fix="choose another") from error
    finally:
        await runner.cleanup()
