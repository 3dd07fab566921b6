"""One client's connection to the thin transport: an asyncio.Protocol; HTTP/1.1 parsed by llhttp (`httptools`).

Theory of operation
-------------------
*Parsing* is llhttp's, in its strict mode: bare LF, obs-fold, space before the colon, NUL, Content-Length beside
Transfer-Encoding, repeated or signed lengths and unknown codings never get past it (RFC 9112, 2.2, 5.1, 5.2, 6.3).
What llhttp lets pass and we do not: HTTP/1.1 without exactly one Host (RFC 9112, 3.2), Transfer-Encoding in HTTP/1.0
(RFC 9112, 6.1), HTTP/0.9.

*One connection* holds two queues. `_queue` has the requests that the application works on, in order; at most
`HttpLimits.pipeline`. `_waiting` has those that were parsed beyond that; while it is not empty, nothing more is read,
so it holds no more than one read's worth. An answer is written when all before it are (RFC 9112, 9.3.2). Each write is a
system call (~10 us), so pipelined answers that are there in the same turn of the loop leave together.

*Ends.* A connection ends (a) after the answer to a request that asked for it, or while draining; (b) after an error that leaves
the framing unsound; (c) idle for `keep_alive_s`; (d) with 408 when a request takes longer than `request_timeout_s` to
arrive; (e) when its client takes nothing of a waiting answer for `send_timeout_s`, or too little of it where
answers of all connections take too much memory (`unsent_answers`); (f) when the client is gone. In (b) and (d)
the client may still be sending, and closing would reset the connection and destroy the answer on its way: we shut down
our side, and read and drop until the client closes or `LINGER_S` has passed (RFC 9112, 9.6).

*Half-closed clients* get their answers: end of input alone does not say that nobody listens. A client that has really gone looks
just the same until something is written to it. So where an answer takes longer than `_PROBE_S` after the end of input, an HTTP/1.1
client is sent one interim `100 Continue`, which every client must be able to skip (RFC 9110, 15.2): a closed socket answers
that with RST, and then the work is cancelled.

*Answers in pieces* (RFC 9112, 7.1: chunked; closed by the end of the connection for HTTP/1.0) keep their place in the order: until
the answers before them are written, and while the client's window is full, their sender waits.

*Clock.* One timer for all connections, running only while there are any; it looks at each and sets the coarse time `now` that they
note. So a request costs no timer and no system call for the time, and deadlines hold to within one tick.

*States* and the steps between them are in `connection_state`, as tables; here is what is done at each. What becomes of one request is in
`queued_exchange`.

This module is longer than others here because it is the hot path: it is one object, and every call that a split would add is
paid by every request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, Protocol, cast

import httptools

from ...errors import MethodNotAllowed, NotSupported, RequestTimedOut, SerinusError, TooLarge
from ...transports.gathered_writes import gathering_writer
from ..connections.tcp_information import is_closed
from ..connections.waiting_connections import unread_bytes
from .connection_state import (
    AWAIT_CONTINUE,
    AWAITED,
    BODY,
    BROKEN,
    CONTINUE_SENT,
    DATA_AFTER_LAST,
    DISCARD,
    FULL,
    HEAD,
    HEAD_COMPLETE,
    IDLE,
    INPUT_END,
    INPUT_ENDED,
    LAST,
    LAST_REQUEST,
    MESSAGE_BEGIN,
    MESSAGE_COMPLETE,
    OPEN,
    PAUSE_WRITING,
    PROBE,
    PROBED,
    READING_LOST,
    REFUSED,
    REFUSED_SOUNDLY,
    RESUME_WRITING,
    SHUT,
    SHUT_DOWN,
    SHUTTING,
    UPGRADE,
    UPGRADE_ASKED,
    WRITING_LOST,
    Reading,
    Writing,
)
from .exchange import (
    CLIENT_LEFT,
    LINGER_S,
    BadRequest,
    Headers,
    HttpLimits,
    too_many_fields,
    unknown_coding,
    wrong_host,
)
from .late_arrivals import LateArrivals
from .queued_exchange import JOIN_BYTES, JSON, Answering, QueuedExchange
from .transport_refusals import ExpectationFailed, VersionNotSupported, refuse_chunks, refuse_head, refuse_syntax

__all__ = ["Connection", "Listener"]

_PROBE_S: Final = 0.25
_GATHERED: Final = 16
"""Small answers that are written together at most: 1 MiB."""
_SMALL_PART: Final = 4096
"""Pieces of a body below this size are gathered: an object for each two bytes of a chunked body would take 28 times its size."""
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_HEADERS: Final = Headers(())


class Listener(Answering, Protocol):
    """What a connection needs of the transport that it belongs to."""

    limits: HttpLimits
    loop: asyncio.AbstractEventLoop
    now: float
    """Loop time of the last tick, seconds."""
    tick_s: float
    arrivals: LateArrivals
    """Whether the loop is late."""

    def add(self, connection: Connection) -> None:
        """Count a connection in."""
        ...

    def discard(self, connection: Connection) -> None:
        """Count it out."""
        ...


class Connection(asyncio.Protocol):
    """One client's connection; the parser's callbacks are the methods named `on_*`. To `UnsentAnswers` it is a `Reader`."""

    tells_pace = True

    def __init__(self, server: Listener) -> None:
        self.server = server
        self.reading: Reading = IDLE
        """Changed by the tables of `connection_state` alone, as is `writing`."""
        self.writing: Writing = OPEN
        self.queue: deque[QueuedExchange] = deque()
        self._waiting: deque[QueuedExchange] = deque()
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._parser: Any = httptools.HttpRequestParser(self)
        # The request being read.
        self._url = b""
        self._raw: list[tuple[bytes, bytes]] = []
        self._headers = _NO_HEADERS
        self._head_fed = 0
        """Bytes of its head, or of its chunks' extensions and trailer, in reads that brought nothing else."""
        self._body = b""
        self._parts: list[bytes | bytearray] | None = None
        self._body_bytes = 0
        self._keep_alive = True
        self._say_keep_alive = False
        # Facts about the client.
        self._tls = False
        self.old = False
        """It speaks HTTP/1.0, which knows no chunks."""
        # Time and amounts.
        self._since = server.now
        """When the present state began: idle, reading, input ended, shut."""
        self._held = 0
        """Bytes of bodies that were gathered, of requests not yet answered."""
        self._read_paused = False
        """We take nothing more just now: see `_balance`."""
        self._stuck_bytes = 0
        self._stuck_since = 0.0
        self._probe_timer: asyncio.TimerHandle | None = None
        self._senders: list[asyncio.Future[None]] = []
        """Of answers in pieces, waiting for room."""
        # One turn of the loop: what is written together, and which loops of ours a call comes from.
        self._out: list[Any] = []
        self._flush_due = False
        self._feeding = False
        self._dispatching = False

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; asyncio calls this once."""
        self._transport = cast("asyncio.Transport", transport)
        self._write_pieces = gathering_writer(self._transport)
        self._tls = transport.get_extra_info("ssl_object") is not None
        self.server.add(self)
        self._since = self.server.now

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or we have closed: cancel what is still being worked on."""
        self.reading = READING_LOST[self.reading]
        self.writing = WRITING_LOST[self.writing]
        self.server.discard(self)
        self.server.unsent.drop(self)
        queue = list(self.queue)
        self.queue.clear()
        self._waiting.clear()
        observer = self.server.observer
        for exchange in queue:
            exchange.leave()
            if observer is not None and exchange.reply is None:
                observer(exchange, CLIENT_LEFT, 0 if exchange.pieces is None else exchange.sent)
        self._wake_senders()
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        self._parser = None  # it holds us and we hold it: break the cycle rather than leave it to the collector

    def data_received(self, data: bytes) -> None:
        """Feed the parser, whose callbacks dispatch what is complete."""
        state = self.reading
        if state >= LAST:
            self.reading = DATA_AFTER_LAST[state]
            return
        body_bytes = self._body_bytes
        if state is not IDLE:
            self._head_fed += len(data)
        self._feeding = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_after_upgrade(memoryview(data)[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse_syntax(error, data)
        if self._body_bytes != body_bytes:
            self._head_fed = 0
        elif self._head_fed > self.server.limits.head_bytes and self.reading < LAST:
            limits = self.server.limits
            error = refuse_head(self._url, limits) if self.reading is HEAD else refuse_chunks(limits)
            self._refuse(error, sound=False)
        self._feeding = False
        if self._out:
            self._flush()

    def eof_received(self) -> bool:
        """The client sends no more; it may still be reading."""
        self.reading = INPUT_END[self.reading]
        if self._tls or not (self.queue or self._waiting):
            return False  # asyncio closes the transport
        self._since = self.server.now
        # While the loop is late a client that left looks like this before its request is begun, which is then work for nobody.
        probe_s = 0.0 if self.server.arrivals.is_late else _PROBE_S
        self._probe_timer = self.server.loop.call_later(probe_s, self._probe)
        return True

    def pause_writing(self) -> None:
        """The client reads more slowly than we answer: take no more requests from it until it has caught up."""
        self.writing = PAUSE_WRITING[self.writing]
        self._stuck_bytes = self._transport.get_write_buffer_size()
        self._stuck_since = self.server.now
        self.server.unsent.add(self, 0)
        self._balance()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.writing = RESUME_WRITING[self.writing]
        self._wake_senders()
        self._dispatch_waiting()
        self._balance()

    # The parser's side

    def on_message_begin(self) -> None:
        """First byte of a request line."""
        self.reading = MESSAGE_BEGIN[self.reading]
        self._since = self.server.now
        self._url = b""
        self._raw = []

    def on_url(self, url: bytes) -> None:
        """All or a piece of the request target."""
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field, or a trailer field, which is dropped (RFC 9110, 6.5.1: a recipient may)."""
        if self.reading is HEAD:
            self._raw.append((name, value))

    def on_headers_complete(self) -> None:
        """Decide from the head alone whether to take the body."""
        self.reading = state = HEAD_COMPLETE[self.reading]
        if state is not BODY:
            return
        self._head_fed = 0
        self._body = b""
        self._body_bytes = 0
        raw = self._raw
        headers = self._headers
        if raw != headers.raw:
            headers = self._headers = Headers(raw)
            self._check_fields(headers)
        parser = self._parser
        self._keep_alive = keep_alive = parser.should_keep_alive()
        self._say_keep_alive = False
        if not keep_alive or headers.connection or headers.hosts != 1:
            self._check_version(headers)
        if len(self._url) > self.server.limits.target_bytes:
            self._refuse(refuse_head(self._url, self.server.limits), sound=False)
        elif (headers.upgrade or not self._url.startswith(b"/")) and parser.should_upgrade():
            self.reading = UPGRADE_ASKED[self.reading]
            return
        length = headers.content_length
        if length is not None and length > self.server.limits.body_bytes:
            self._refuse_body(length)
        elif headers.expect is not None and self.reading is BODY:
            self._check_expect(headers)

    def on_body(self, data: bytes) -> None:
        """All or a piece of the body."""
        state = self.reading
        if state is not BODY and state is not AWAITED:
            return
        if not self._body and self._parts is None:
            self._body = data
            self._body_bytes = len(data)
            if self._body_bytes <= self.server.limits.body_bytes:
                return
        else:
            parts = self._parts
            if parts is None:
                parts = self._parts = [self._body]
            if len(data) >= _SMALL_PART:
                parts.append(data)
            elif type(parts[-1]) is bytearray:
                parts[-1] += data
            else:
                parts.append(bytearray(data))
            self._body_bytes += len(data)
        if self._body_bytes > self.server.limits.body_bytes:
            self._refuse_body(self._body_bytes)

    def on_message_complete(self) -> None:
        """A whole request: hand it on, or let it wait."""
        state = self.reading
        self.reading = MESSAGE_COMPLETE[state]
        self._head_fed = 0
        if state is not BODY and state is not AWAITED:
            self._parts = None
            return
        body = self._body
        held = 0
        if self._parts is not None:
            body = b"".join(self._parts)
            held = len(body)
            self._parts = None
        exchange = QueuedExchange(self, self._parser.get_method(), self._url, self._headers, body, self._keep_alive)
        self._body = b""
        if not self._keep_alive:
            self.reading = LAST_REQUEST[self.reading]
        if self._say_keep_alive:
            exchange.say_keep_alive = True
        if held:
            exchange.held = held
            self._held += held
        queue = self.queue
        if self._waiting or self.writing is not OPEN or len(queue) >= self.server.limits.pipeline:
            self._waiting.append(exchange)
            self._balance()
        else:
            queue.append(exchange)
            self.server.app(exchange)
            if held:
                self._balance()

    # Refusals

    def _check_fields(self, headers: Headers) -> None:
        coding = unknown_coding(headers)
        if coding is not None:
            self._refuse(coding, sound=False)
        too_many = too_many_fields(headers.raw, self.server.limits)
        if too_many is not None:
            self._refuse(too_many, sound=False)

    def _check_version(self, headers: Headers) -> None:
        version = self._parser.get_http_version()
        if version == "1.1":
            wrong = wrong_host(headers)
            if wrong is not None:
                self._refuse(wrong, sound=False)
        elif version == "1.0":
            if headers.chunked:
                self._refuse(BadRequest("Transfer-Encoding does not exist in HTTP/1.0"), sound=False)
            self._say_keep_alive = self._keep_alive
            self.old = True
        else:
            self._refuse(VersionNotSupported(f"HTTP/{version} is not served; use HTTP/1.1"), sound=False)

    def _check_expect(self, headers: Headers) -> None:
        if headers.expect != b"100-continue":
            self._refuse(ExpectationFailed("the only expectation that can be met is '100-continue'"), sound=False)
        elif (headers.content_length or headers.chunked) and self._parser.get_http_version() == "1.1":
            self.reading = AWAIT_CONTINUE[self.reading]
            self._say_continue()

    def _say_continue(self) -> None:
        if not self.queue and not self._waiting:
            self.reading = CONTINUE_SENT[self.reading]
            self._out.append(_CONTINUE)
            if not self._feeding:
                self._flush()

    def _refuse_body(self, length: int) -> None:
        """413, at once. A body that is not much too large is read and dropped, so that the connection lives on."""
        limit = self.server.limits.body_bytes
        headers = self._headers
        sound = self.server.limits.are_worth_reading(headers)
        self._parts = None
        self._body = b""
        self._refuse(
            TooLarge(
                f"the body has {'more than ' if headers.chunked else ''}{length} bytes; at most {limit} are taken (max_body_bytes)"
            ),
            sound,
        )

    def _refuse(self, error: SerinusError, sound: bool) -> None:
        """Answer in turn without asking the application; the connection ends unless the framing is sound."""
        state = self.reading
        if state is DISCARD or state >= LAST:
            return  # it is answered already: what still comes of it is dropped
        method, headers = b"GET", _NO_HEADERS
        if state is BODY or state is AWAITED:
            method, headers = self._parser.get_method(), self._headers
        exchange = QueuedExchange(self, method, self._url, headers, b"", sound and self._keep_alive)
        exchange.refusal = error
        self.reading = (REFUSED_SOUNDLY if exchange.keep_alive else REFUSED)[state]
        if self._waiting or self.writing is not OPEN:
            self._waiting.append(exchange)
        else:
            self.queue.append(exchange)
            self._answer(exchange)

    def _answer(self, exchange: QueuedExchange) -> None:
        """Let the application answer, or the refusal."""
        error = exchange.refusal
        if error is None:
            self.server.app(exchange)
        else:
            extra = exchange.headers.request_id_back()
            if isinstance(error, MethodNotAllowed):
                extra.append((b"Allow", ", ".join(error.allow).encode()))
            exchange.respond(error.http_status, JSON, [self.server.app.error_body(error)], extra)

    def _refuse_syntax(self, error: httptools.HttpParserError, data: bytes | memoryview) -> None:
        if self.reading >= LAST:
            self.reading = DATA_AFTER_LAST[self.reading]
        else:
            self._refuse(refuse_syntax(error, bytes(data[:4096])), sound=False)

    def _go_on_after_upgrade(self, rest: memoryview) -> None:
        """Go on in HTTP/1.1: a server may ignore Upgrade (RFC 9110, 7.8), and Java's client sends `h2c` unasked.

        llhttp stops at the end of an upgrading request's head and takes its body for the new protocol's. A fresh parser
        is given the same head without Upgrade, and then the rest.
        """
        while True:
            method, version = self._parser.get_method(), self._parser.get_http_version().encode()
            if self.reading is not UPGRADE:
                return  # refused already
            if method == b"CONNECT":
                self._refuse(NotSupported("CONNECT is not offered: this server is no proxy"), sound=False)
                return
            head = [b"%b %b HTTP/%b\r\n" % (method, self._url, version)]
            head += [
                b"%b: %b\r\n" % field for field in self._raw if field[0].lower() not in (b"upgrade", b"connection")
            ]
            head.append(b"Connection: %b\r\n\r\n" % (b"keep-alive" if self._keep_alive else b"close"))
            self._parser = httptools.HttpRequestParser(self)
            try:
                self._parser.feed_data(b"".join(head))
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                self._refuse_syntax(error, rest)
                return

    # Answers

    def send_ready(self) -> None:
        """Write the answers at the head of the queue that are there."""
        queue = self.queue
        out = self._out
        while queue:
            exchange = queue[0]
            reply = exchange.reply
            if reply is None:
                if exchange.pieces is not None:
                    self.send_pieces(exchange)
                    self._wake_senders()
                    out = self._out
                break
            queue.popleft()
            if isinstance(reply, bytes):
                out.append(reply)
            else:
                out += reply
            if exchange.held:
                self._held -= exchange.held
            if not exchange.keep_alive:
                self._end()
                return
            if len(out) >= _GATHERED or not isinstance(reply, bytes):
                self._flush()  # so that a reader who is slow is noticed at once
                out = self._out
        if not self._feeding:
            if not queue:
                self._flush()
            elif out and not self._flush_due:
                self._flush_due = True
                self.server.loop.call_soon(self._flush)
        if self._waiting:
            self._dispatch_waiting()
        if self._read_paused:
            self._balance()
        if not queue and not self._waiting:
            state = self.reading
            if state is IDLE:
                self._since = self.server.now
            elif state is INPUT_ENDED or state is PROBED:
                self._end()
            elif state is AWAITED:
                self._say_continue()

    def send_pieces(self, exchange: QueuedExchange) -> None:
        """Write what there is of an answer in pieces, if it is its turn; what one turn of the loop brings leaves together."""
        pieces = exchange.pieces
        if self.queue[0] is not exchange or not pieces:
            return
        self._out += pieces
        exchange.pieces = []
        if len(self._out) >= _GATHERED or len(pieces[-1]) > JOIN_BYTES:
            self._flush()
        elif not self._feeding and not self._flush_due:
            self._flush_due = True
            self.server.loop.call_soon(self._flush)

    async def room(self, exchange: QueuedExchange) -> None:
        """Wait until it is this answer's turn and its client takes more."""
        while not exchange.gone and (self.writing is FULL or self.queue[0] is not exchange):
            sender: asyncio.Future[None] = self.server.loop.create_future()
            self._senders.append(sender)
            await sender

    def _wake_senders(self) -> None:
        senders, self._senders = self._senders, []
        for sender in senders:
            if not sender.done():
                sender.set_result(None)

    def _flush(self) -> None:
        """Write all answers that are due in one system call."""
        self._flush_due = False
        out = self._out
        if not out:
            return
        if len(out) == 1:
            self._transport.write(out[0])
        else:
            self._write_pieces(out)
        self._out = []

    def _dispatch_waiting(self) -> None:
        if self._dispatching:
            return  # an answer given at once comes back here through send_ready; the loop below goes on with it
        self._dispatching = True
        waiting, queue, limit = self._waiting, self.queue, self.server.limits.pipeline
        while waiting and len(queue) < limit and self.writing is OPEN:
            exchange = waiting.popleft()
            queue.append(exchange)
            self._answer(exchange)
        self._dispatching = False

    def _balance(self) -> None:
        """Read while there is room for more, and only then."""
        stuck = self.writing is FULL or self.writing is SHUTTING
        full = bool(self._waiting) or stuck or self._held > self.server.limits.body_bytes
        if full == self._read_paused or self.reading >= INPUT_ENDED or self._transport.is_closing():
            return
        self._read_paused = full
        if full:
            self._transport.pause_reading()
        else:
            self._since = self.server.now  # the time that we did not read is not the client's
            self._transport.resume_reading()

    def _end(self) -> None:
        """Close after the last answer; gently, where the client may still be sending."""
        self.reading = LAST_REQUEST[self.reading]
        for exchange in self.queue:
            exchange.leave()
        self.queue.clear()
        self._waiting.clear()
        self._flush()
        transport = self._transport
        if self.reading is not BROKEN or not transport.can_write_eof():
            transport.close()
            return
        self.writing = SHUT_DOWN[self.writing]
        self._since = self.server.now
        transport.write_eof()
        if self._read_paused:
            self._read_paused = False
            transport.resume_reading()

    @property
    def useless_since(self) -> float | None:
        """Loop time since which it has had no whole request and no answer to give, as of a tick; None: it has, or something of it waits to be read."""
        if self.queue or self._waiting or self._transport.is_closing() or unread_bytes(self._transport):
            return None
        return self._since

    def finish(self) -> None:
        """Close if nothing is in flight, nor sent and not read yet (draining)."""
        if not self.queue and not self._waiting and self.reading is IDLE and not unread_bytes(self._transport):
            self._transport.close()

    def abort(self) -> None:
        """Close now, whatever is in flight."""
        self._transport.abort()

    # What waits for a slow client

    def unsent(self) -> int:
        """See `Reader.unsent`."""
        return self._transport.get_write_buffer_size() + sum(exchange.unsent() for exchange in self.queue)

    @property
    def transport(self) -> asyncio.Transport:
        """To the client."""
        return self._transport

    def give_up(self) -> bool:
        """See `Reader.give_up`."""
        self._transport.abort()
        self.server.unsent.drop(self)
        return True

    # The clock's side

    def tick(self, now: float) -> None:
        """Look whether the present state has lasted too long."""
        limits = self.server.limits
        spent = now - self._since - self.server.tick_s  # `_since` may be one tick early
        reading, writing = self.reading, self.writing
        if writing is FULL or writing is SHUTTING or self._transport.is_closing():
            self._check_reader(now)
        elif writing is SHUT:
            if spent > LINGER_S:
                self._transport.abort()
        elif reading is HEAD or reading is BODY or reading is AWAITED:
            if spent > limits.request_timeout_s and not self._read_paused:
                text = f"the request was not complete after {limits.request_timeout_s:g} seconds"
                self._refuse(RequestTimedOut(text), sound=False)
        elif self.queue or self._waiting:
            return
        elif reading is DISCARD:
            if spent > 2 * limits.request_timeout_s and not self._read_paused:
                self._transport.abort()  # answered already (413), and still not sent
        elif reading is IDLE and spent > limits.keep_alive_s:
            self._transport.close()

    def _check_reader(self, now: float) -> None:
        """Give up on a client that takes nothing of what waits for it."""
        left = self._transport.get_write_buffer_size()
        if left != self._stuck_bytes:
            self._stuck_bytes = left
            self._stuck_since = now
        elif now - self._stuck_since - self.server.tick_s > self.server.limits.send_timeout_s:
            self.server.unsent.closed += not self._transport.is_closing()
            self._transport.abort()

    def _probe(self) -> None:
        """After the end of input with answers due: find out whether anybody is still there."""
        if self._transport.is_closing() or not self.queue:
            return
        if self.reading is INPUT_ENDED and self.queue[0].pieces is None:
            self.reading = PROBE[self.reading]
            if self.queue[0].keep_alive and not self.queue[0].say_keep_alive:  # HTTP/1.0 knows no 1xx
                self._transport.write(_CONTINUE)
        elif is_closed(self._transport):
            self._transport.abort()
            return
        self._probe_timer = self.server.loop.call_later(_PROBE_S, self._probe)
