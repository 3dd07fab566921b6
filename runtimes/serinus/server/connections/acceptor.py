"""A listening socket of which each turn of the event loop takes all connections that wait, or nearly all.

Theory of operation. libuv, and so uvloop's own server, accepts one connection in each turn of the loop (since 1.46). While a model computes on the loop
a turn lasts as long as a predict, and a hundred clients that come together wait for a hundred predicts before the last of them is even
refused. And where the process has no descriptor left, libuv resets every connection that waits, probes too. So connections are accepted here: up to
`_ACCEPTED` in a turn; and where descriptors have run out the server is asked to close a connection that is idle, and those that wait stay in the
kernel's queue until there is room.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from .idle_room import Idle

__all__ = ["NO_DESCRIPTORS", "Acceptor"]

_log = logging.getLogger("serinus.connections")

_ACCEPTED: Final = 16
"""In one turn: the loop has others to serve, and workers that share the socket should each have some."""
_REST_S: Final = 0.1
"""Until the next try where there are no descriptors and no connection is idle; asyncio's ACCEPT_RETRY_DELAY is 1 s, as long as a probe waits."""
_QUIET_S: Final = 60.0
"""Between two lines of the log that say so."""
NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What the kernel says where there is no room for one more socket."""


class Acceptor:
    """Accepts on one socket; to its server it is what `loop.create_server` gives.

    Args:
        sock: bound.
        make: makes the protocol of a connection.
        backlog: connections that may wait to be accepted.
        make_room: closes a connection that is idle, where descriptors have run out; gives whether there was one.
        is_full: whether no more are to be accepted until room is made.
        take: serves a connection without a protocol of `make`'s; gives whether it does.
    """

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.Protocol],
        *,
        backlog: int,
        make_room: Callable[[], bool] = lambda: False,
        is_full: Callable[[], bool] = lambda: False,
        take: Callable[[socket.socket], bool] = lambda _: False,
    ) -> None:
        self._is_full = is_full
        self._take = take
        self._sock = sock
        self._make = make
        self._make_room = make_room
        self._loop = asyncio.get_running_loop()
        self._beginning: dict[asyncio.Task[None], float] = {}
        """Connections that were accepted and have no protocol yet, with the loop time of that, in the order in which they came."""
        self._resting: asyncio.TimerHandle | None = None
        self._told_at = float("-inf")
        self._is_open = True
        sock.listen(backlog)
        sock.setblocking(False)
        self._loop.add_reader(sock, self._accept)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The socket at which connections wait."""
        return (self._sock,) if self._is_open else ()

    @property
    def beginning(self) -> int:
        """Connections that were accepted and have no protocol yet."""
        return len(self._beginning)

    def idlest(self) -> Idle | None:
        """What was accepted first and has no protocol yet; None: a connection begins in a moment, and nobody need be closed for it."""
        return None

    def close(self) -> None:
        """Accept no more; what was accepted begins."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._sock)
            if self._resting is not None:
                self._resting.cancel()
            self._sock.close()

    async def wait_closed(self) -> None:
        """End the connections that have not begun."""
        tasks = list(self._beginning)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that was accepted elsewhere."""
        if self._take(connection):
            return
        task = self._loop.create_task(self._begin(connection))
        self._beginning[task] = self._loop.time()
        task.add_done_callback(partial(self._begun, connection))

    def _begun(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._beginning.pop(task, None)
        if task.cancelled():
            connection.close()  # a task that was given up before its first step has closed nothing

    def _accept(self) -> None:
        for _ in range(_ACCEPTED):
            if self._is_full() and not self._shed():
                self._wait_for_room(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
                return
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._wait_for_room(error)
                return
            connection.setblocking(False)
            self.adopt(connection)

    def _wait_for_room(self, error: OSError) -> None:
        """Try again soon; the loop closes what was idle meanwhile."""
        now = self._loop.time()
        if now - self._told_at > _QUIET_S:
            self._told_at = now
            _log.error(
                "no connection can be accepted: %s; idle ones are closed for new ones (ulimit -n)", error.strerror
            )
        if error.errno in NO_DESCRIPTORS and self._shed():
            return  # the socket is readable still, so the next turn comes back here
        self._loop.remove_reader(self._sock)
        self._resting = self._loop.call_later(_REST_S, self._go_on)

    def _shed(self) -> bool:
        """Close something that is of no use now; whether there was anything."""
        return self._make_room()

    def _go_on(self) -> None:
        self._resting = None
        if self._is_open:
            self._loop.add_reader(self._sock, self._accept)

    async def _begin(self, connection: socket.socket) -> None:
        """Give the connection its protocol."""
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError as error:  # the client has gone meanwhile
            _log.debug("a connection could not begin: %s", error)
            connection.close()
        except BaseException:
            connection.close()
            raise
