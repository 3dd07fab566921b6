"""A listening socket whose connections begin with a TLS handshake: how long one may take, and how many may be under way.

Theory of operation. asyncio's own TLS server tells nobody of a connection before its handshake is over: one that never ends holds a buffer of 256 KiB
for a minute, in any number, and the end of the process too. So connections are accepted here, and each handshake is a task. One has
`HANDSHAKE_S`; past `HANDSHAKES` the one that has gone on longest is given up for a new one, since an honest client is done in a few round trips.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

__all__ = ["HANDSHAKES", "HANDSHAKE_S", "TlsListener"]

_log = logging.getLogger("serinus.http")

HANDSHAKE_S: Final = 10.0
"""`TLSHandshakeTimeout` of Go's net/http (DefaultTransport); asyncio's 60 is meant for any network."""
HANDSHAKES: Final = 256
"""64 MiB of buffers at the most."""
_ACCEPTED: Final = 64
"""Connections accepted in one turn of the loop, which has others to serve."""
_REST_S: Final = 1.0
"""Until the next try where the process has no descriptors left; asyncio's ACCEPT_RETRY_DELAY."""


class TlsListener:
    """Accepts on one socket; to its server it is what `loop.create_server` gives.

    Args:
        sock: bound.
        context: whose certificate is shown; it may be exchanged.
        make: makes the protocol of a connection; its `connection_made` is called after the handshake.
        backlog: connections that may wait to be accepted.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol], *, backlog: int
    ) -> None:
        self.context = context
        self._sock = sock
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[asyncio.Task[None], None] = {}
        """In the order in which they began."""
        self._resting: asyncio.TimerHandle | None = None
        self._is_open = True
        sock.listen(backlog)
        sock.setblocking(False)
        self._loop.add_reader(sock, self._accept)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The socket at which connections wait."""
        return (self._sock,) if self._is_open else ()

    @property
    def handshakes(self) -> int:
        """How many are under way."""
        return len(self._handshakes)

    def close(self) -> None:
        """Accept no more; handshakes go on."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._sock)
            if self._resting is not None:
                self._resting.cancel()
            self._sock.close()

    async def wait_closed(self) -> None:
        """End the handshakes that are under way."""
        tasks = list(self._handshakes)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.error("no connection can be accepted: %s; trying again in %g s", error.strerror, _REST_S)
                self._loop.remove_reader(self._sock)
                self._resting = self._loop.call_later(_REST_S, self._go_on)
                return
            if len(self._handshakes) >= HANDSHAKES:
                eldest = next(iter(self._handshakes))
                del self._handshakes[eldest]
                eldest.cancel()
            task = self._loop.create_task(self._shake_hands(connection))
            self._handshakes[task] = None
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    def _go_on(self) -> None:
        self._resting = None
        if self._is_open:
            self._loop.add_reader(self._sock, self._accept)

    async def _shake_hands(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(
                self._make, connection, ssl=self.context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except (OSError, asyncio.TimeoutError) as error:  # the client's doing, at any rate over the internet
            _log.debug("a TLS handshake failed: %s", error)
            connection.close()
        except BaseException:
            connection.close()
            raise
