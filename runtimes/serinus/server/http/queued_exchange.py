"""A request of one connection of the thin transport, and its answer until it is written.

An answer is one buffer or a few, made with its head when the application responds, or pieces that are added one by one. The connection
decides when they leave: in the order in which the requests came.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from ...errors import Overloaded, SerinusError
from ...protocol.raw import Buffer
from ..connections.tcp_information import silent_s
from ..connections.unsent_answers import LARGE_BYTES, Reader, UnsentAnswers
from .exchange import App, Exchange, Headers, Observer, RawHeaders

__all__ = ["JOIN_BYTES", "JSON", "Answering", "Order", "QueuedExchange"]

JOIN_BYTES: Final = LARGE_BYTES
"""Answers up to this size are copied into one buffer; beyond it the pieces go out as they are."""
JSON: Final = "application/json"


class Answering(Protocol):
    """What an exchange needs of the transport that its connection belongs to."""

    app: App
    observer: Observer | None
    unsent: UnsentAnswers
    """Of all connections together."""
    closing: bool
    """Each answer says `Connection: close`."""
    prefixes: dict[str, bytes]
    """Content type to the head of a plain 200, up to the length."""

    def make_prefix(self, content_type: str) -> bytes:
        """Build and keep an entry of `prefixes`."""
        ...

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
        ...


class Order(Reader, Protocol):
    """What an exchange needs of its connection."""

    old: bool
    """Its client speaks HTTP/1.0, which knows no chunks."""
    queue: deque[QueuedExchange]
    """Of the requests that are worked on, in the order in which they came."""

    @property
    def server(self) -> Answering:
        """The transport that it belongs to."""
        ...

    @property
    def transport(self) -> asyncio.Transport:
        """To the client."""
        ...

    def send_ready(self) -> None:
        """Write the answers at the head of the queue that are there."""
        ...

    def send_pieces(self, exchange: QueuedExchange) -> None:
        """Write what there is of an answer in pieces, if it is its turn."""
        ...

    async def room(self, exchange: QueuedExchange) -> None:
        """Wait until it is this answer's turn and its client takes more."""
        ...


class QueuedExchange(Exchange):
    """A request of one connection, and its place in the connection's order."""

    __slots__ = (
        "chunked",
        "connection",
        "held",
        "keep_alive",
        "pieces",
        "refusal",
        "reply",
        "say_keep_alive",
        "sent",
        "status",
    )

    def __init__(
        self,
        connection: Order,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        keep_alive: bool,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.pending = None
        self.gone = False
        self.connection = connection
        self.keep_alive = keep_alive
        self.say_keep_alive = False
        """The client speaks HTTP/1.0 and asked for it (RFC 9112, 9.3)."""
        self.held = 0
        """Bytes counted in the connection's `_held`."""
        self.refusal: SerinusError | None = None
        """Found by the transport: answered in its turn, without the application."""
        self.reply: bytes | list[Any] | None = None
        self.pieces: list[bytes] | None = None
        """Of an answer in pieces: what waits for its turn; None: it is no such answer."""

    def respond(
        self,
        status: int,
        content_type: str,
        chunks: Sequence[Buffer],
        headers: RawHeaders = (),
    ) -> None:
        """See `Exchange.respond`."""
        if self.gone or self.reply is not None:
            return
        connection = self.connection
        server = connection.server
        self.pending = None
        length = _byte_length(chunks[0]) if len(chunks) == 1 else sum(map(_byte_length, chunks))
        if server.closing:
            self.keep_alive = False
        if status == 200 and self.keep_alive and not headers and not self.say_keep_alive:
            prefix = server.prefixes.get(content_type)
            if prefix is None:
                prefix = server.make_prefix(content_type)
            head = b"%b%d\r\n\r\n" % (prefix, length)
        else:
            head = server.head(status, content_type, length, headers, self.keep_alive, self.say_keep_alive)
        if self.method == b"HEAD":
            self.reply = head
        elif length <= JOIN_BYTES:
            self.reply = b"".join((head, *chunks))
        else:
            try:
                server.unsent.check(length)
            except Overloaded as error:
                self._refuse_large(error)
                return
            server.unsent.add(connection, length)
            self.reply = [head]
            self.reply += [chunk if type(chunk) is bytes else memoryview(chunk).cast("B") for chunk in chunks if chunk]
        if server.observer is not None:
            server.observer(self, status, length)
        if connection.queue[0] is self:
            connection.send_ready()

    def _refuse_large(self, error: Overloaded) -> None:
        """Answer that there is no room for the answer."""
        extra = [*self.headers.request_id_back(), (b"Retry-After", b"%d" % math.ceil(error.retry_after_s or 1))]
        self.respond(error.http_status, JSON, [self.connection.server.app.error_body(error)], extra)

    def waited_s(self) -> float:
        """See `Exchange.waited_s`."""
        return silent_s(self.connection.transport)

    def unsent(self) -> int:
        """Bytes of it that its connection has not been given yet."""
        reply = self.reply
        if reply is None:
            return 0
        return len(reply) if isinstance(reply, bytes) else sum(map(len, reply))

    def begin(self, status: int, content_type: str, headers: RawHeaders = ()) -> None:
        """See `Exchange.begin`."""
        if self.gone or self.reply is not None:
            return
        server = self.connection.server
        chunked = not self.connection.old
        if server.closing or not chunked:
            self.keep_alive = False
        self.status = status
        self.sent = 0
        self.pieces = [server.head(status, content_type, None, headers, self.keep_alive, False, chunked=chunked)]
        self.chunked = chunked and self.method != b"HEAD"
        self.connection.send_pieces(self)

    async def send(self, piece: bytes) -> None:
        """See `Exchange.send`."""
        if self.gone or self.pieces is None or self.method == b"HEAD":
            return
        self.sent += len(piece)
        self.pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece)
        connection = self.connection
        connection.send_pieces(self)
        await connection.room(self)

    def finish(self, *, whole: bool = True) -> None:
        """See `Exchange.finish`."""
        pieces = self.pieces
        if self.gone or pieces is None or self.reply is not None:
            return
        self.pending = None
        if not whole:
            self.keep_alive = False
        elif self.chunked:
            pieces.append(b"0\r\n\r\n")
        self.reply = b"".join(pieces)
        connection = self.connection
        if connection.server.observer is not None:
            connection.server.observer(self, self.status, self.sent)
        if connection.queue[0] is self:
            connection.send_ready()


def _byte_length(chunk: Buffer) -> int:
    return len(chunk) if type(chunk) is bytes else memoryview(chunk).nbytes
