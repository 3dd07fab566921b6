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
from functools import partial
from typing import Final

from .acceptor import Acceptor
from .idle_room import Idle

__all__ = ["HANDSHAKES", "HANDSHAKE_S", "TlsListener"]

_log = logging.getLogger("serinus.connections")

HANDSHAKE_S: Final = 10.0
"""`TLSHandshakeTimeout` of Go's net/http (DefaultTransport); asyncio's 60 is meant for any network."""
HANDSHAKES: Final = 256
"""64 MiB of buffers at the most."""


class TlsListener(Acceptor):
    """An `Acceptor` whose connections speak TLS; `make`'s protocol is told of its connection after the handshake.

    Args:
        sock: bound.
        context: whose certificate is shown; it may be exchanged.
        make: makes the protocol of a connection.
        backlog: connections that may wait to be accepted.
        make_room: see `Acceptor`.
        is_full: see `Acceptor`.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        make: Callable[[], asyncio.Protocol],
        *,
        backlog: int,
        make_room: Callable[[], bool] = lambda: False,
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self.context = context
        super().__init__(sock, make, backlog=backlog, make_room=make_room, is_full=is_full)

    def adopt(self, connection: socket.socket) -> None:
        """Begin a handshake, in the place of the eldest where there are too many."""
        if len(self._beginning) >= HANDSHAKES:
            self._give_up(next(iter(self._beginning)))
        super().adopt(connection)

    def idlest(self) -> Idle | None:
        """The eldest handshake, of no use since it was accepted."""
        for eldest, since in self._beginning.items():
            return since, partial(self._give_up, eldest)
        return None

    def _give_up(self, handshake: asyncio.Task[None]) -> None:
        self._beginning.pop(handshake, None)
        handshake.cancel()

    def _shed(self) -> bool:
        if super()._shed():
            return True
        eldest = self.idlest()
        if eldest is None:
            return False
        eldest[1]()
        return True

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await self._connect(connection, HANDSHAKE_S)
        except (OSError, asyncio.TimeoutError) as error:  # the client's doing, at any rate over the internet
            _log.debug("a TLS handshake failed: %s", error)
            connection.close()
        except BaseException:
            connection.close()
            raise

    async def _connect(self, connection: socket.socket, handshake_s: float) -> None:
        """Shake hands, for at most so many seconds, and give the connection its protocol.

        Raises:
            OSError: the handshake failed.
            asyncio.TimeoutError: it took too long.
        """
        await self._loop.connect_accepted_socket(
            self._make, connection, ssl=self.context, ssl_handshake_timeout=handshake_s
        )
