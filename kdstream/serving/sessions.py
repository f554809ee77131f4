"""Who is heard, and who may come back: a client that loses its connection finds its session again."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import WSCloseCode

from kdstream.errors import UserError
from kdstream.serving.engine import ClientStream, Engine
from kdstream.serving.limits import Limits
from kdstream.serving.protocol import Refusal, Start


@dataclass(eq=False)
class Session:
    """What one client says, over one connection after the other.

    start: which began it.
    id: that nobody can guess.
    tasks: of the connection that has it; none while the client is away.
    expiry: when it is forgotten, while the client is away.
    """

    start: Start
    model: str
    engine: Engine
    stream: ClientStream
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    tasks: tuple[asyncio.Task, ...] = ()
    expiry: asyncio.TimerHandle | None = None

    def goes_on_by(self, start: Start) -> bool:
        """Whether a client that comes back asks for what it began with, and has the segments that are kept no more."""
        same = self.start._replace(session=start.session, segments=start.segments) == start
        return same and self.stream.can_tell(start.segments)

    async def take(self) -> None:
        """Takes it from the connection that has it, which may be dead without knowing it."""
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None
        while tasks := self.tasks:  # of two that come back at once, the later one finds those of the other
            self.tasks = ()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Sessions:
    """All sessions, no more than Limits.max_clients: where they are too many, one whose client is away has to go.

    Args:
      engines: by the names of their models, the first of which is the default.
    """

    def __init__(self, engines: Mapping[str, Engine], limits: Limits) -> None:
        self._engines, self._limits = engines, limits
        self._sessions: dict[str, Session] = {}

    def find(self, start: Start) -> Session:
        """The session that a client comes back to, or a new one, where that cannot go on.

        Raises Refusal.
        """
        session = self._sessions.get(start.session)
        return session if session is not None and session.goes_on_by(start) else self._open(start)

    def _open(self, start: Start) -> Session:
        model = next(iter(self._engines)) if start.model is None else start.model
        engine = self._engines.get(model)
        if engine is None:
            known = ", ".join(self._engines)
            raise Refusal(WSCloseCode.POLICY_VIOLATION, f"model must be one of {known}")
        try:
            hotwords = engine.runtime.spell(start.hotwords) if start.hotwords else ""
        except UserError as error:
            raise Refusal(WSCloseCode.POLICY_VIOLATION, str(error)) from error
        if len(self._sessions) >= self._limits.max_clients:
            away = next((each for each in self._sessions.values() if each.expiry is not None), None)
            if away is None:
                raise Refusal(WSCloseCode.TRY_AGAIN_LATER, f"{self._limits.max_clients} clients are here already")
            self.close(away)
        session = Session(start, model, engine, engine.open(start.sample_rate, hotwords))
        self._sessions[session.id] = session
        return session

    def leave(self, session: Session) -> None:
        """Its client is away, and may come back."""
        session.tasks = ()
        loop = asyncio.get_running_loop()
        session.expiry = loop.call_later(self._limits.resume_seconds, self.close, session)

    def close(self, session: Session) -> None:
        """Forgets it."""
        session.tasks = ()  # so that its connection does not leave it: it would be kept for --resume-seconds
        if session.expiry is not None:
            session.expiry.cancel()
        self._sessions.pop(session.id, None)
        session.engine.close(session.stream)

    def count(self, model: str) -> tuple[int, int]:
        """Sessions of a model: those that are heard, and those whose clients are away."""
        here = [bool(session.tasks) for session in self._sessions.values() if session.model == model]
        return sum(here), len(here) - sum(here)
