"""Who answers liveness on the server's own port while the event loop is held.

Theory of operation. A model that computes or waits on the event loop keeps it from accepting, and a liveness probe that is not answered
has the process killed in the middle of work. So the watchdog's thread, once it has found the loop held, takes new connections from
the same listening socket. It looks at what came first without reading it (MSG_PEEK). A plain GET of a liveness path, whole, is read,
answered and closed; every other connection is handed to the loop unread, as if the loop had accepted it, and is served when the loop is free.
Nothing but "the process is alive" is said here: readiness, metrics and answers are the loop's.

What this does not reach: probes on a connection that the loop has accepted before (kubelet opens one for each), TLS (its first bytes
are no GET), and a loop held by code that keeps the interpreter's lock, where no thread runs at all.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["StandIn"]

_MOST: Final = 256
"""Connections that may be waited for at a time; what is more waits in the kernel's queue."""
_HEAD_BYTES: Final = 4096
"""A probe's request is shorter; the kubelet's has 200 bytes."""
_REST_S: Final = 0.02


class StandIn:
    """Accepts in the loop's place, in another thread, between `serve` and `end`.

    Args:
        listener: the server's socket; closed by the server when it stops accepting.
        answers: path to the body of its 200, JSON.
        adopt: takes over an accepted connection of which nothing was read, from any thread.
    """

    def __init__(
        self, listener: socket.socket, answers: Mapping[bytes, bytes], adopt: Callable[[socket.socket], None]
    ) -> None:
        self._listener = listener
        self._answers = {
            b"GET %b HTTP/1." % path: (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
                % (len(body), body)
            )
            for path, body in answers.items()
        }
        self._adopt = adopt
        self._silent: dict[int, socket.socket] = {}
        """Accepted, and nothing has come."""

    def serve(self, for_s: float) -> None:
        """Accept and answer for so long."""
        poll = select.poll()
        with contextlib.suppress(OSError):
            if self._listener.fileno() >= 0 and len(self._silent) < _MOST:
                poll.register(self._listener.fileno(), select.POLLIN)
            for number in self._silent:
                poll.register(number, select.POLLIN)
            for number, _ in poll.poll(for_s * 1e3):
                connection = self._silent.pop(number, None)
                if connection is None:
                    self._accept()
                else:
                    self._look(connection)

    def end(self) -> None:
        """Hand over whatever has said nothing: the loop is free."""
        silent, self._silent = self._silent, {}
        for connection in silent.values():
            self._adopt(connection)

    def _accept(self) -> None:
        while len(self._silent) < _MOST:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # it is closed, or no descriptor is left, which the next look would find at once
                time.sleep(_REST_S)
                return
            connection.setblocking(False)
            self._look(connection)

    def _look(self, connection: socket.socket) -> None:
        """Answer it, hand it over, or wait for its first bytes."""
        try:
            head = connection.recv(_HEAD_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            self._silent[connection.fileno()] = connection
            return
        except OSError:
            connection.close()
            return
        line, _, rest = head.partition(b"\r\n")
        answer = self._answers.get(line[:-1])
        # A head that is not whole, has a body, or is followed by another request is the loop's.
        if answer is None or not head.endswith(b"\r\n\r\n") or b"\r\n\r\n" in head[:-4] or _may_have_body(rest):
            self._adopt(connection)
            return
        with contextlib.suppress(OSError):
            connection.recv(len(head))
            connection.send(answer)
            connection.shutdown(socket.SHUT_WR)
        connection.close()


def _may_have_body(head: bytes) -> bool:
    names = {line.partition(b":")[0].strip().lower() for line in head.split(b"\r\n")}
    return not names.isdisjoint((b"content-length", b"transfer-encoding", b"expect", b"upgrade"))
