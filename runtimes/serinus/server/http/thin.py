"""The thin transport: listening, the clock, the heads of answers, and the end. Each client's connection is a `Connection`.

Its theory of operation is in `serinus.server.http.connection`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import partial
from typing import Any, cast

from ..connections.acceptor import Acceptor
from ..connections.idle_room import Idle, IdleRoom
from ..connections.tls_listener import TlsListener
from ..connections.unsent_answers import UnsentAnswers
from ..connections.waiting_connections import accept_waiting
from .connection import Connection
from .exchange import REASONS, App, HttpLimits, Observer, RawHeaders
from .late_arrivals import LateArrivals
from .stand_in import StandIn

__all__ = ["ThinServer"]


class ThinServer:
    """Listening sockets, their connections, the clock and what all answers share.

    Args:
        app: answers.
        limits: of heads, bodies and times.
        observer: told of each answer.
        fields: that every answer carries.
        unsent: what waits for slow clients, of other servers of this process too; None: of this one alone.
        arrivals: told how late the loop is; None: nobody tells.
        room: who closes an idle connection where descriptors run out, of other servers of this process too; None: this one alone.
        most_connections: open at a time; the eldest is closed for one more. None: as many as there are descriptors.
    """

    def __init__(
        self,
        app: App,
        limits: HttpLimits,
        *,
        observer: Observer | None = None,
        fields: RawHeaders = (),
        unsent: UnsentAnswers | None = None,
        arrivals: LateArrivals | None = None,
        room: IdleRoom | None = None,
        most_connections: int | None = None,
    ) -> None:
        self._room = room or IdleRoom()
        self._room.add(self._idlest, lambda: len(self._connections) + self.beginning)
        self._most_connections = most_connections
        self.arrivals = arrivals or LateArrivals()
        self.unsent = UnsentAnswers(patience_s=limits.send_timeout_s) if unsent is None else unsent
        self.app = app
        self.limits = limits
        self.observer = observer
        self.loop: asyncio.AbstractEventLoop = cast("asyncio.AbstractEventLoop", None)
        self.now = 0.0
        """Loop time of the last tick, seconds."""
        self.tick_s = min(1.0, max(0.01, min(limits.request_timeout_s, limits.keep_alive_s, limits.send_timeout_s) / 8))
        self.closing = False
        self._fields = b"".join(b"%b: %b\r\n" % field for field in fields)
        self.prefixes: dict[str, bytes] = {}
        """Content type to the head of a plain 200, up to the length; made afresh when the second changes."""
        self._date = b""
        self._second = 0
        self._connections: dict[Connection, None] = {}
        """In the order in which they came."""
        self._timer: asyncio.TimerHandle | None = None
        self._server: Acceptor | None = None
        self._sock: socket.socket = cast("socket.socket", None)
        self._empty = asyncio.Event()
        self._ssl: Any = None

    async def listen(self, *, sock: socket.socket, ssl: Any = None, backlog: int = 2048) -> None:
        """Accept connections on a bound socket.

        `backlog` is how many connections may wait to be accepted; the kernel cuts it to net.core.somaxconn. Beyond it
        the kernel drops SYNs, and a client's retry comes a second later.
        """
        self.loop = asyncio.get_running_loop()
        self._sock = sock
        self._ssl = ssl
        make = partial(Connection, self)
        if ssl is not None:
            self._server = TlsListener(
                sock, ssl, make, backlog=backlog, make_room=self._room.make, is_full=self._room.is_full
            )
        else:
            self._server = Acceptor(sock, make, backlog=backlog, make_room=self._room.make, is_full=self._room.is_full)

    async def change_certificate(self, ssl: Any) -> None:
        """Begin connections with another TLS context; those that are open go on as they are."""
        if isinstance(self._server, TlsListener):
            self._server.context = ssl

    def stand_in(self, answers: Mapping[bytes, bytes]) -> StandIn | None:
        """Give who answers these paths while the loop is held, and hands everything else to it; None: TLS is spoken here."""
        if self._ssl is not None:
            return None
        return StandIn(self._sock, answers, self._adopt)

    def _adopt(self, connection: socket.socket) -> None:
        """Serve a connection that another thread has accepted; from any thread."""

        def take() -> None:
            if self.closing or self._server is None:
                connection.close()
            else:
                self._server.adopt(connection)

        try:
            self.loop.call_soon_threadsafe(take)
        except RuntimeError:  # the loop is closed
            connection.close()

    # Connections and clock

    def add(self, connection: Connection) -> None:
        """Count a connection in, at the time that it is: by that of the last tick it would be older than what came before it. The first starts the clock."""
        self._read_clock()
        if self._timer is None:
            self._timer = self.loop.call_later(self.tick_s, self._tick)
        self._connections[connection] = None
        if self._most_connections is not None and len(self._connections) > self._most_connections:
            eldest = next(iter(self._connections))
            del self._connections[eldest]
            eldest.transport.abort()

    def discard(self, connection: Connection) -> None:
        """Count it out."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._empty.set()

    def close_idle(self) -> bool:
        """Close the connection that has been of no use for longest, for a new one has no descriptor; whether there is one.

        As nginx does where `worker_connections` are not enough ("reusing connections"). One with a request that is worked on is never closed.
        """
        idle = self._idlest()
        if idle is None:
            return False
        idle[1]()
        return True

    def _idlest(self) -> Idle | None:
        handshake = self._server.idlest() if self._server is not None else None
        useless = [
            (since, connection) for connection in self._connections if (since := connection.useless_since) is not None
        ]
        if not useless:
            return handshake
        since, longest = min(useless, key=lambda found: found[0])
        if handshake is not None and handshake[0] < since:
            return handshake
        return since, partial(self._close_idle, longest)

    def _close_idle(self, connection: Connection) -> None:
        del self._connections[connection]
        connection.abort()

    @property
    def connection_count(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    @property
    def beginning(self) -> int:
        """Connections that were accepted and have not begun, where TLS is spoken with their handshakes under way."""
        return self._server.beginning if self._server is not None else 0

    def _read_clock(self) -> None:
        self.now = self.loop.time()
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date = formatdate(second, usegmt=True).encode()
            self.prefixes.clear()

    def _tick(self) -> None:
        self._read_clock()
        now = self.now
        for connection in list(self._connections):
            connection.tick(now)
        self.unsent.look()
        self.unsent.tend()
        self._timer = self.loop.call_later(self.tick_s, self._tick) if self._connections else None

    # Heads

    def make_prefix(self, content_type: str) -> bytes:
        """Build and keep the head of a 200 without further fields, up to the digits of its length."""
        prefix = b"HTTP/1.1 200 OK\r\nDate: %b\r\n%bContent-Type: %b\r\nContent-Length: " % (
            self._date,
            self._fields,
            content_type.encode("latin-1"),
        )
        if len(self.prefixes) < 64:
            self.prefixes[content_type] = prefix
        return prefix

    def head(
        self,
        status: int,
        content_type: str,
        length: int | None,
        headers: RawHeaders,
        keep_alive: bool,
        say_keep_alive: bool,
        *,
        chunked: bool = False,
    ) -> bytes:
        """Build the head of any answer; a length that is not known is None."""
        first = b"HTTP/1.1 %d %b\r\nDate: %b\r\n%b"
        lines = [first % (status, REASONS.get(status, b"Unknown"), self._date, self._fields)]
        if content_type:
            lines.append(b"Content-Type: %b\r\n" % content_type.encode("latin-1"))
        if chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif length is not None and status not in (204, 304):  # RFC 9110, 8.6
            lines.append(b"Content-Length: %d\r\n" % length)
        lines += [b"%b: %b\r\n" % field for field in headers]
        if not keep_alive:
            lines.append(b"Connection: close\r\n")
        elif say_keep_alive:
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    # The end

    async def take_waiting(self) -> None:
        """Accept the connections that the kernel has: closing the listening socket would reset them."""
        if self._server is not None:
            await accept_waiting(self._server.sockets)

    def stop_accepting(self) -> None:
        """Close the listening socket; each answer from now on carries `Connection: close`."""
        self.closing = True
        if self._server is not None:
            self._server.close()

    async def drain(self, timeout_s: float) -> None:
        """Wait for what is in flight, and close what is idle.

        A connection that has just been idle may have a request on its way, which closing would destroy; such a client gets
        half a second to send it and to see `Connection: close`; so has one that is at its TLS handshake.
        """
        self.stop_accepting()
        deadline = self.loop.time() + timeout_s
        grace = self.loop.time() + min(0.5, timeout_s / 4)
        while (self._connections or (self.beginning and self.loop.time() < grace)) and (
            left := deadline - self.loop.time()
        ) > 0:
            if self.loop.time() >= grace:
                for connection in list(self._connections):
                    connection.finish()
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), min(left, 0.05))
            except asyncio.TimeoutError:
                pass

    async def close(self) -> None:
        """Close everything now; requests in flight are cancelled."""
        self.stop_accepting()
        for connection in list(self._connections):
            connection.abort()
        if self._connections:  # connection_lost comes in the next turns
            self._empty.clear()
            await self._empty.wait()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._server is not None:
            await self._server.wait_closed()
