"""What a client may ask of the server, and the names of this machine: what the flags need to know of serving."""

from __future__ import annotations

from dataclasses import dataclass

from kdstream.config.flags import Section, flag, settings_of
from kdstream.errors import UserError, option

LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))


@dataclass(frozen=True)
class Limits(Section):
    """What a client may ask of the server."""

    max_clients: int = flag(64, "Clients that are heard at once; more are turned away.")
    max_message_bytes: int = flag(1 << 20, "Bytes that a message may have; a client that sends more is let go.")
    resume_seconds: float = flag(60.0, "Seconds for which a client that lost its connection may come back.")
    idle_seconds: float = flag(30.0, "Seconds that a client may send nothing, and that a connection lasts without one.")
    send_seconds: float = flag(10.0, "Seconds for which a client may read nothing while there is text for it.")

    def __post_init__(self) -> None:
        for name, value in settings_of(self).items():
            if not value > 0:
                raise UserError("must be more than 0", flag=option(name, f"{value:g}"))
