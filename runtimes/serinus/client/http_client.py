"""A small HTTP/1.1 client for one target: what a transformer's hop costs is this file.

Theory of operation. A `HttpClient` keeps idle connections to one host and port, newest first. A request takes one or opens
one, writes head and body in one call, and waits on a future that the connection's parser (llhttp) resolves. One
request at a time per connection. A connection goes back to the pool when its response is complete and both sides keep
it alive; a request that is cancelled or times out closes its connection, since its answer may still come. Connections
idle for `IDLE_S` are not used again: a server may be closing them at that very moment, and an inference must not be
sent twice to find out (RFC 9112, 9.3.1). Nor is one that has something to read before it is asked, most often its end, which
the loop has not come to yet. A GET that an idle connection leaves unanswered is sent once more, on a new one: it changes nothing.

What failed before a byte was written is told apart (`Unreachable`), since only that is safe to try again.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httptools

from ..errors import TimedOut, UpstreamFailed
from ..transports.gathered_writes import gathering_writer

__all__ = ["HttpClient", "HttpResponse", "Unreachable"]

IDLE_S: Final = 4.0
"""Shorter than the shortest keep-alive in use, uvicorn's default of 5 s."""
_MAX_IDLE: Final = 256


class Unreachable(UpstreamFailed):
    """No connection could be made: the request was never sent."""


class _Unanswered(UpstreamFailed):
    """The connection was closed before its answer was whole."""


@dataclass(slots=True)
class HttpResponse:
    """A complete response; header names in lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class _Connection(asyncio.Protocol):
    """One connection, as asyncio and llhttp call it."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._transport: Any = None
        self._unread = select.poll()
        self._future: asyncio.Future[HttpResponse] | None = None
        self._response = HttpResponse()
        self._chunks: list[bytes] = []
        self._parser: Any = None
        self._keep_alive = True
        self._until_close = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._unread.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.forget(self)
        self._transport = None
        future = self._future
        if exc is None and self._until_close:  # RFC 9112, 6.3: without a length the body ends with the connection
            self._finish()
        if future is not None and not future.done():
            reason = f": {exc}" if exc else ""
            peer = self._client.peer
            future.set_exception(_Unanswered(f"{peer} closed the connection before it had answered{reason}"))

    def data_received(self, data: bytes) -> None:
        if self._future is None:  # nobody asked: the connection cannot be trusted any more
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._future is not None and not self._future.done():
                self._future.set_exception(UpstreamFailed(f"{self._client.peer}'s answer is no HTTP: {error}"))
            self.close()

    def send(self, chunks: Iterable[Any], future: asyncio.Future[HttpResponse]) -> None:
        """Write a request whose answer resolves the future."""
        self._future = future
        self._response = HttpResponse()
        self._chunks = []
        self._until_close = False
        self._parser = httptools.HttpResponseParser(self)
        gathering_writer(self._transport)(list(chunks))

    @property
    def is_open(self) -> bool:
        """Whether a request may be written."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits to be read: what an idle connection has to say is that it is at its end."""
        return not self._unread.poll(0)

    def close(self) -> None:
        """Close without waiting."""
        if self._transport is not None:
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: one header field; repeated fields are joined (RFC 9110, 5.3)."""
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers = self._response.headers
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        """llhttp: the head is whole; only now does the parser know the status."""
        response = self._response
        response.status = self._parser.get_status_code()
        headers = response.headers
        self._until_close = (
            response.status >= 200 and "content-length" not in headers and "transfer-encoding" not in headers
        )

    def on_body(self, body: bytes) -> None:
        """llhttp: a piece of the body, chunking removed."""
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        """llhttp: the response is whole."""
        if self._response.status < 200:  # 100 Continue and its like: the answer is still to come, from the same parser
            self._response = HttpResponse()
            self._chunks = []
            return
        self._keep_alive = self._parser.should_keep_alive()
        self._until_close = False
        if self._finish() and self._keep_alive:
            self._client.release(self)
        else:
            self.close()

    def _finish(self) -> bool:
        """Give the response to whom waits for it; whether somebody does."""
        response, chunks = self._response, self._chunks
        response.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        future, self._future = self._future, None
        if future is None or future.done():
            return False
        future.set_result(response)
        return True


class _BoundedConnection(_Connection):
    """A connection that gives up an answer that grows too large; a class of its own, so that others count nothing."""

    def __init__(self, client: HttpClient, most_bytes: int) -> None:
        super().__init__(client)
        self._most_bytes = most_bytes
        self._seen_bytes = 0

    def send(self, chunks: Iterable[Any], future: asyncio.Future[HttpResponse]) -> None:
        """Write a request whose answer resolves the future."""
        self._seen_bytes = 0
        super().send(chunks, future)

    def on_body(self, body: bytes) -> None:
        """llhttp: a piece of the body, chunking removed."""
        self._seen_bytes += len(body)
        if self._seen_bytes <= self._most_bytes:
            self._chunks.append(body)
            return
        self._chunks.clear()
        if self._future is not None and not self._future.done():
            message = f"{self._client.peer}'s answer is larger than {self._most_bytes} bytes"
            self._future.set_exception(UpstreamFailed(message))
        self.close()


class HttpClient:
    """Requests to one target.

    Args:
        host: name or address.
        port: TCP port.
        tls: a context, or None for plain HTTP.
        peer: what messages call the target.
        host_field: the `Host` header where it is not that of host and port, as before a gateway.
        most_bytes: largest answer; None: any.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        *,
        peer: str = "the predictor",
        host_field: str = "",
        most_bytes: int | None = None,
    ) -> None:
        self.peer = peer
        self._most_bytes = most_bytes
        self._host = host
        self._port = port
        self._tls = tls
        self._idle: list[_Connection] = []
        default = 443 if tls else 80
        name = f"[{host}]" if ":" in host else host
        self._host_field = host_field or (name if port == default else f"{name}:{port}")

    async def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[Any] = (),
        length: int = 0,
        *,
        timeout_s: float | None = None,
    ) -> HttpResponse:
        """Send a request and read its whole response.

        Args:
            method: HTTP method.
            path: request target, escaped.
            headers: without Host and Content-Length.
            body: chunks of bytes.
            length: bytes of all chunks.
            timeout_s: for everything; None: no limit.

        Raises:
            Unreachable: no connection; nothing was sent.
            UpstreamFailed: it was sent, and no whole answer came.
            TimedOut: `timeout_s` passed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[HttpResponse] = loop.create_future()
        started = loop.time()
        if timeout_s is not None and timeout_s <= 0:
            raise TimedOut(f"the deadline passed before {self.peer} was asked")
        connection = self._take(started)
        pooled = connection is not None
        if connection is None:
            connection = await self._connect(timeout_s)
            if not connection.is_open:
                raise Unreachable(f"{self.peer} {self._host}:{self._port} closed the connection at once")
        head = [f"{method} {path} HTTP/1.1\r\nhost: {self._host_field}\r\n"]
        head.extend(f"{name}: {value}\r\n" for name, value in headers.items())
        if method == "POST":
            head.append(f"content-length: {length}\r\n")
        head.append("\r\n")
        connection.send(["".join(head).encode("latin-1", "replace"), *body], future)
        timer = None
        if timeout_s is not None:
            timer = loop.call_at(started + timeout_s, self._expire, future, timeout_s)
        try:
            return await future
        except (TimedOut, asyncio.CancelledError):
            connection.close()
            raise
        except _Unanswered:
            if not pooled or method != "GET":
                raise
        finally:
            if timer is not None:
                timer.cancel()
        self.close()  # the others are of the same age
        left_s = None if timeout_s is None else started + timeout_s - loop.time()
        return await self.request(method, path, headers, timeout_s=left_s)

    def _expire(self, future: asyncio.Future[HttpResponse], timeout_s: float) -> None:
        if not future.done():
            future.set_exception(TimedOut(f"{self.peer} did not answer within {timeout_s:.3g} s"))

    def _take(self, now: float) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and now - connection.idle_since < IDLE_S and connection.is_quiet:
                return connection
            connection.close()
        return None

    async def _connect(self, timeout_s: float | None) -> _Connection:
        loop = asyncio.get_running_loop()
        opening = loop.create_connection(
            self._connection,
            self._host,
            self._port,
            ssl=self._tls,
            server_hostname=self._host if self._tls else None,
        )
        try:
            _, connection = await asyncio.wait_for(opening, timeout_s)
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise TimedOut(
                f"no connection to {self.peer} {self._host}:{self._port} within {timeout_s:.3g} s"
            ) from error
        except OSError as error:
            raise Unreachable(
                f"no connection to {self.peer} {self._host}:{self._port}: {error.strerror or error}"
            ) from error
        except UnicodeError as error:
            raise Unreachable(f"no connection to {self.peer} {self._host!r}: it is no host's name: {error}") from error
        return connection

    def _connection(self) -> _Connection:
        return _Connection(self) if self._most_bytes is None else _BoundedConnection(self, self._most_bytes)

    def release(self, connection: _Connection) -> None:
        """Take a connection back whose response is complete."""
        connection.idle_since = asyncio.get_running_loop().time()
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: _Connection) -> None:
        """Drop a connection that was closed."""
        try:
            self._idle.remove(connection)
        except ValueError:
            pass

    def close(self) -> None:
        """Close all idle connections."""
        for connection in self._idle[:]:
            connection.close()
        self._idle.clear()

    def leave(self) -> None:
        """Let all idle connections go whose loop is closed: nothing can be done with them, and they end with their last reference."""
        self._idle.clear()
