"""One connection over a transport of the test's own, by a clock of the test's own.

A real socket cannot be made to fill at a chosen byte, nor a minute to pass.
"""

from __future__ import annotations

import asyncio
from typing import Any

from serinus.errors import SerinusError
from serinus.server.http.connection import Connection
from serinus.server.http.exchange import Exchange, HttpLimits
from serinus.server.http.thin import ThinServer

__all__ = ["GET", "LIMITS", "TICK_S", "App", "Joined", "Wire"]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = HttpLimits(request_timeout_s=60, keep_alive_s=65)
TICK_S = 1.0


class Wire(asyncio.Transport):
    """Notes each write as it came, and what else is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[list[bytes]] = []
        self.asked: list[str] = []
        self.waiting = 0
        self.closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        self.writes.append([bytes(data)])

    def writelines(self, parts: Any) -> None:
        self.writes.append([bytes(part) for part in parts])

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.asked.append("eof")

    def pause_reading(self) -> None:
        self.asked.append("pause")

    def resume_reading(self) -> None:
        self.asked.append("resume")

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.asked.append("close")
        self.closing = True

    def abort(self) -> None:
        self.asked.append("abort")
        self.closing = True

    @property
    def text(self) -> bytes:
        return b"".join(b"".join(parts) for parts in self.writes)


class App:
    """Keeps each request until it is answered by the test."""

    def __init__(self) -> None:
        self.held: list[Exchange] = []
        self.cancelled = 0

    def __call__(self, exchange: Exchange) -> None:
        exchange.pending = self
        self.held.append(exchange)

    def error_body(self, error: SerinusError) -> bytes:
        return str(error).encode()

    def cancel(self) -> None:
        self.cancelled += 1


class Joined:
    """A connection, its wire and its server, whose clock stands at 1000 s."""

    def __init__(self, limits: HttpLimits = LIMITS, observer: Any = None) -> None:
        self.app, self.wire = App(), Wire()
        self.server = ThinServer(self.app, limits, observer=observer)
        self.server.loop = asyncio.get_running_loop()
        self.server._date = b"today"
        self.server._timer = self.server.loop.call_later(3600, lambda: None)
        self.server.now = 1000.0
        self.server._read_clock = lambda: None  # type: ignore[method-assign] # it stands
        self.connection = Connection(self.server)
        self.connection.connection_made(self.wire)

    def feed(self, data: bytes) -> None:
        self.connection.data_received(data)

    def tick(self, after_s: float) -> list[str]:
        """Let so many seconds pass since the beginning, and look."""
        self.server.now = 1000.0 + after_s
        self.connection.tick(self.server.now)
        return self.wire.asked

    def answer(self, body: bytes = b"ok", **fields: Any) -> None:
        self.app.held.pop(0).respond(200, "text/plain", [body], **fields)

    def close(self) -> None:
        if self.server.connection_count:
            self.connection.connection_lost(None)
        self.server._timer.cancel()
