"""HTTP/1.1 for a router: whole requests in, whole answers out.

Theory of operation. A connection reads a request (within `read_s` of its first byte), hands it to the handler in a task, and writes the answer; requests
that a client sends ahead wait in a queue, and nothing more is read while one waits. A connection that ends cancels its task. A request that takes
longer than `write_s` is cancelled and answered 503, where KServe's router resets the connection. An idle connection is closed after `idle_s`.
"""

from __future__ import annotations

import asyncio
import http
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httptools
import orjson

from ...transports.gathered_writes import gathering_writer

__all__ = ["ConnectionLimits", "HttpAnswer", "HttpRequest", "RouterConnection", "error_body"]

_HEAD_BYTES = 64 * 1024
"""Of a request's line and headers; Go's default is 1 MiB, nginx' 32 KiB."""


@dataclass(slots=True)
class HttpRequest:
    """One request that has been read."""

    method: str = ""
    target: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    keep_alive: bool = True


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One answer."""

    status: int
    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds and bytes of a connection."""

    read_s: float
    write_s: float
    idle_s: float
    body_bytes: int


Handler = Callable[[HttpRequest], Awaitable[HttpAnswer]]


def error_body(error: str, cause: str) -> bytes:
    """An error as KServe's router writes it."""
    return orjson.dumps({"error": error, "cause": cause})


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""


class RouterConnection(asyncio.Protocol):
    """One connection.

    Args:
        handler: answers requests.
        limits: seconds and bytes.
        open_connections: holds this one while it is open.
    """

    def __init__(self, handler: Handler, limits: ConnectionLimits, open_connections: set[RouterConnection]) -> None:
        self._handler = handler
        self._limits = limits
        self._open = open_connections
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._request = HttpRequest()
        self._chunks: list[bytes] = []
        self._head_bytes = self._body_bytes = 0
        self._in_head = False
        self._waiting: deque[HttpRequest] = deque()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        """No further request is taken: the client, a limit or the end of the process says so."""
        self.closed = asyncio.Event()

    # asyncio -------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: it is open."""
        self._transport = transport
        self._open.add(self)
        self._wait(self._limits.idle_s, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: it has ended; what is under way for it ends, too."""
        self._open.discard(self)
        self.closed.set()
        self._stop_waiting()
        self._closing = True
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes."""
        if self._closing:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "this server offers no other protocol; send no Upgrade header")
        except httptools.HttpParserError as error:
            if not self._closing:
                self._refuse(400, f"not an HTTP request: {error}")
        if self._in_head:  # llhttp tells a field when it is whole; what it keeps until then is counted here
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES and not self._closing:
                self._refuse(431, f"the request's line and headers are larger than {_HEAD_BYTES} bytes")

    # llhttp --------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """llhttp: a request begins."""
        self._request = HttpRequest()
        self._chunks = []
        self._head_bytes = self._body_bytes = 0
        self._in_head = True
        self._wait(self._limits.read_s, self._too_slow)

    def on_url(self, url: bytes) -> None:
        """llhttp: a piece of the target."""
        self._request.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: one header field."""
        self._request.headers.append((name.decode("latin-1"), value.decode("latin-1")))
        if name.lower() == b"content-length" and value.isdigit() and int(value[:18]) > self._limits.body_bytes:
            self._too_large()
        elif name.lower() == b"expect" and value.lower() == b"100-continue" and not self._closing:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_headers_complete(self) -> None:
        """llhttp: the head is whole."""
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        """llhttp: a piece of the body."""
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            self._too_large()
        elif not self._closing:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        """llhttp: the request is whole."""
        if self._closing:
            return
        self._stop_waiting()
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.body = b"".join(self._chunks)
        request.keep_alive = self._parser.should_keep_alive()
        self._chunks = []
        self._waiting.append(request)
        if self._task is None:
            self._task = asyncio.ensure_future(self._work())
        else:
            self._transport.pause_reading()

    # Work ----------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Answer what waits, one after another."""
        while self._waiting:
            request = self._waiting.popleft()
            try:
                answer = await asyncio.wait_for(self._handler(request), self._limits.write_s)
            except asyncio.TimeoutError:
                cause = f"the graph did not answer within {self._limits.write_s:g} s (routerTimeouts.serverWrite)"
                answer = HttpAnswer(503, error_body("Failed to process request", cause), "application/json")
            self._write(answer, keep_alive=request.keep_alive, head_only=request.method == "HEAD")
            if self._closing:
                return
        self._task = None
        self._transport.resume_reading()
        self._wait(self._limits.idle_s, self._close)

    def _write(self, answer: HttpAnswer, *, keep_alive: bool, head_only: bool = False) -> None:
        self._closing = self._closing or not keep_alive
        lines = [f"HTTP/1.1 {answer.status} {_phrase(answer.status)}", f"content-type: {answer.content_type}"]
        lines += [f"content-length: {len(answer.body)}", *(["connection: close"] if self._closing else []), "", ""]
        gathering_writer(self._transport)(["\r\n".join(lines).encode("latin-1"), b"" if head_only else answer.body])
        if self._closing:
            self._transport.close()

    def _refuse(self, status: int, cause: str) -> None:
        """Answer for a request that is not taken, and close."""
        self._stop_waiting()
        self._closing = True
        if self._task is None:
            body = error_body("Failed to process request", cause)
            self._write(HttpAnswer(status, body, "application/json"), keep_alive=False)

    def _too_large(self) -> None:
        if not self._closing:
            self._refuse(413, f"the request's body is larger than {self._limits.body_bytes} bytes")

    def _too_slow(self) -> None:
        self._refuse(408, f"the request did not come within {self._limits.read_s:g} s (routerTimeouts.serverRead)")

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        if self._task is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._closing = True
        self._transport.close()

    def finish(self) -> None:
        """Take no further request; one that is under way is answered."""
        self._closing = True
        if self._task is None:
            self._transport.close()
