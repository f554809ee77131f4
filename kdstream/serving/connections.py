"""How many connections are open, and how long, whatever they have said so far.

A request that never ends, or a handshake of TLS, reaches no handler.  So connections are counted where they are
accepted.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any
from weakref import WeakValueDictionary

NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # an address of a family that the machine lacks


class Connections:
    """The open ones, of which those that are no client's are bounded in number and time.

    Args:
      most: for one more the oldest goes that is no client's.
      seconds: after which one goes that is no client's.
      clients: gives the file descriptors of clients' connections, which stay; fewer than `most`.
    """

    def __init__(self, most: int, seconds: float, clients: Callable[[], set[int]]) -> None:
        self._most, self._seconds, self._clients = most, seconds, clients
        self._numbers = itertools.count()
        # by the time of their beginning; asyncio owns and closes them
        self._open: WeakValueDictionary[tuple[float, int], socket.socket] = WeakValueDictionary()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._open[loop.time(), next(self._numbers)] = connection
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._close_old)
        if len(self._open) > self._most:
            others = self._others()
            if len(self._open) > self._most:
                self._close(others[0])

    def _others(self) -> list[tuple[float, int]]:
        """Those that are no client's, by age.  Forgets those that are closed."""
        clients, others = self._clients(), []
        for key, connection in list(self._open.items()):
            if connection.fileno() < 0:
                del self._open[key]
            elif connection.fileno() not in clients:
                others.append(key)
        return sorted(others)

    def _close_old(self) -> None:
        loop = asyncio.get_running_loop()
        others = self._others()
        while others and others[0][0] + self._seconds <= loop.time():
            self._close(others.pop(0))
        self._timer = loop.call_at(others[0][0] + self._seconds, self._close_old) if others else None

    def _close(self, key: tuple[float, int]) -> None:
        connection = self._open.pop(key, None)
        if connection is not None:
            with suppress(OSError):  # its client may be gone
                connection.shutdown(socket.SHUT_RDWR)  # asyncio then closes it, whatever it does with it


class Listener(socket.socket):
    """A listening socket whose connections are counted."""

    def __init__(self, plain: socket.socket, connections: Connections) -> None:
        super().__init__(fileno=plain.detach())
        self._connections = connections

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self._connections.add(connection)
        return connection, address


def listen(host: str, port: int, connections: Connections) -> list[Listener]:
    """One for each address of `host`.  Raises OSError; OverflowError for a port above 65535."""
    found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners, missing = [], None
    with ExitStack() as made:
        for family, address in dict.fromkeys((family, address) for family, *_, address in found):
            try:
                plain = socket.create_server((address[0], port, *address[2:]), family=family)
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
                missing = error
                continue
            listeners.append(made.enter_context(Listener(plain, connections)))
        if missing is not None and not listeners:
            raise missing
        made.pop_all()
    return listeners
