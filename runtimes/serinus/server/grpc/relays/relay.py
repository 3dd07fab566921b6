"""A client's connection of the native engine, joined to one of its own to the front, through the guard, on the event loop.

It serves what `NativeRelays` does not: TLS, connections that came while descriptors were scarce, those that were declined there, and all where
there are no compiled kernels or no epoll.

Theory of operation. What the client sends goes through `FrameGuard`; what the front answers is passed on unread, unless descriptors are scarce: then the
heads of its frames are read for the streams that they end. Which connections have open calls nobody else knows, and one that has none is closed for
another before one that has some. Back-pressure goes through: a client that does not read stops the reading from the front, whose own flow control then
stops the answers. What the guard may not inflate on the event loop it does in a thread, and the client is not read meanwhile.

TLS ends before it (`TlsConnection`), with the plain transport's buffers and ends, so that nothing here differs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

from ....native.frames.frame_relay import Reported
from ...connections.acceptor import NO_DESCRIPTORS
from ...connections.unsent_answers import SEND_TIMEOUT_S
from .pace import Paced
from .size_filter import DROPPED_MOST, INFLATED_HERE, FrameGuard

__all__ = ["ALPN", "Relay"]

_log = logging.getLogger("serinus.grpc")

ALPN = "h2"
"""HTTP/2 over TLS (RFC 9113, 3.2)."""
_REST_S = 0.1
"""Until another try where there are no descriptors, and nobody to close."""
_HEADERS, _RST_STREAM, _END_STREAM = 1, 3, 1
"""Types of frames, and the flag of HEADERS that are trailers (RFC 9113, 6.2, 6.4)."""
_HEAD = struct.Struct(">IBI")
"""A frame's length (24 bits) and type in one number, its flags, its stream (RFC 9113, 4.1)."""


class Relay(asyncio.Protocol, Paced):
    """One client's connection, joined to one of its own to the front.

    Args:
        path: the front's Unix socket.
        guard: filters what the client sends.
        relays: the set of all open ones; this adds and removes itself.
        send_timeout_s: how long the client may take nothing of what waits for it.
        on_stalled: told when it is closed for that.
        make_room: closes another connection where there is no descriptor for the one to the front; whether there was one.
        counts_calls: know which calls are open, for half a microsecond an answer.
        declined: what was joined to the front elsewhere, to go on with; the guard knows of it.
    """

    def __init__(
        self,
        path: str,
        guard: FrameGuard,
        relays: set[Any],
        send_timeout_s: float = SEND_TIMEOUT_S,
        on_stalled: Callable[[], None] = lambda: None,
        make_room: Callable[[], bool] = lambda: False,
        *,
        counts_calls: bool = False,
        declined: Reported | None = None,
    ) -> None:
        super().__init__()
        self._make_room = make_room
        self._time = asyncio.get_running_loop().time
        self.heard_at = self._time()
        """Loop time at which either side last said something."""
        self._send_timeout_s = send_timeout_s
        self._on_stalled = on_stalled
        self._stalled: asyncio.TimerHandle | None = None
        """Waits for the client to take something."""
        self._sent = 0
        """Bytes that the front has sent to the client."""
        self._declined = declined
        self._path = path
        self._guard = guard
        self.counts_calls = counts_calls
        if counts_calls:
            guard.open = set()
        self._relays = relays
        self._client: Any = None
        self._front: Any = None
        self._joining: asyncio.Task[None] | None = None
        self._going_on: asyncio.Task[None] | None = None
        """Owns the front's descriptor, so it is never cancelled."""
        self._early = b""
        """Read before the front was joined: uvloop may deliver once more after `pause_reading`."""
        self._early_end = False
        self._inflating: asyncio.Future[bytes] | None = None
        """The guard is at work in a thread; what is read meanwhile is early too."""
        self._is_held = False
        """The front takes nothing more."""
        self._is_full = False
        """The client takes nothing more."""
        self._has_gone = False
        """The client has."""
        self._leaving: asyncio.TimerHandle | None = None
        """The front has left; waits for the client to take the rest."""
        self._head = b""
        """What has come of the head of a frame of the front's; empty: nothing."""
        self._ahead = 0
        """Bytes until the next one begins."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to join; nothing is read before that is done. Who speaks TLS and has not agreed on HTTP/2 is closed."""
        self._client = transport
        self._relays.add(self)
        encrypted = transport.get_extra_info("ssl_object")
        if encrypted is not None and encrypted.selected_alpn_protocol() != ALPN:
            _log.debug("a TLS client of the gRPC port does not offer %s in ALPN, as every gRPC client does", ALPN)
            self.front_left()  # after the handshake, as grpcio's engine: a monitor of certificates has seen what it wanted
            return
        self._client.pause_reading()
        loop = asyncio.get_running_loop()
        declined, self._declined = self._declined, None
        if declined is None:
            self._joining = loop.create_task(self._join())
            return
        if declined.to_client:
            self._client.write(declined.to_client)  # before the front can say more; it is too little to hold the front
        self._going_on = loop.create_task(self._go_on(declined))

    async def _go_on(self, declined: Reported) -> None:
        """Take the front's end of a connection that was joined to it elsewhere."""
        front = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=declined.front)
        try:
            transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: _FrontSide(self), sock=front)
        except OSError as error:
            _log.error("a connection to the gRPC front cannot go on: %s", error)
            front.close()
            self._client.abort()
            return
        self._begin(transport, declined.to_front, declined.tail)

    async def _join(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                front, _ = await loop.create_unix_connection(lambda: _FrontSide(self), self._path)
                break
            except OSError as error:
                if error.errno not in NO_DESCRIPTORS:
                    _log.error("the gRPC front does not accept: %s", error)
                    self._client.abort()
                    return
                if not self._make_room():
                    await asyncio.sleep(_REST_S)
        self._begin(front)

    def _begin(self, front: asyncio.Transport, passed: bytes = b"", tail: bytes = b"") -> None:
        """Pass on what has come until now: what the guard need not see, then what it has not seen."""
        if self._client.is_closing():
            front.abort()
            return
        self._front = front
        if self._is_full:
            self.pause_writing()  # uvloop reads from the front before this is reached
        self._client.resume_reading()
        if passed:
            front.write(passed)
        early, self._early = tail + self._early, b""
        if early:
            self.data_received(early)
        if self._early_end and self._inflating is None and not front.is_closing():
            front.write_eof()

    def data_received(self, data: bytes) -> None:
        """Pass on what the guard lets through."""
        self.heard_at = self._time()
        if self._front is None or self._inflating is not None:
            self._early += data
            self._client.pause_reading()
            return
        self._pass_on(self._guard.feed(data, INFLATED_HERE))
        if self._guard.has_work and not self._client.is_closing():
            self._client.pause_reading()
            self._inflating = asyncio.get_running_loop().run_in_executor(None, self._guard.feed, b"")
            self._inflating.add_done_callback(self._inflated)

    def _inflated(self, work: asyncio.Future[bytes]) -> None:
        """Go on with the client where the guard's thread has ended."""
        self._inflating = None
        if work.cancelled() or self._client.is_closing():
            return
        if (error := work.exception()) is not None:
            _log.error("a gRPC connection is closed: its messages could not be measured", exc_info=error)
            self.abort()
            return
        self._pass_on(work.result())
        early, self._early = self._early, b""
        if early:
            self.data_received(early)
        if self._inflating is None and not self._client.is_closing():
            if not self._is_held:
                self._client.resume_reading()
            if self._early_end:
                self._front.write_eof()

    def _pass_on(self, passed: bytes) -> None:
        if passed:
            self._front.write(passed)
        if self._guard.dropped > DROPPED_MOST:
            _log.warning("closing a gRPC connection of which %d bytes were over the size limit", self._guard.dropped)
            self.abort()

    def eof_received(self) -> bool:
        """Tell the front; answers may still come."""
        if self._front is None or self._inflating is not None:
            self._early_end = True
        elif not self._front.is_closing():
            self._front.write_eof()
        return True

    def pause_writing(self) -> None:
        """Stop reading from the front, once it is joined, while the client does not read."""
        self._is_full = True
        if self._front is not None:
            self._front.pause_reading()
            self._await_reading(self._client.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Read from the front again."""
        self._is_full = False
        if self._front is not None:
            self._front.resume_reading()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _await_reading(self, before: int) -> None:
        """Close in `send_timeout_s` if the client has taken nothing by then."""

        def look() -> None:
            left = self._client.get_write_buffer_size()
            if left < before:
                self._await_reading(left)
            else:
                self._on_stalled()
                self.abort()

        self._stalled = asyncio.get_running_loop().call_later(self._send_timeout_s, look)

    @property
    def has_called(self) -> bool:
        """Whether anything of a message has come."""
        return self._guard.has_data

    @property
    def is_at_work(self) -> bool:
        """Whether a call is open, or an answer has not gone out yet; true where nobody counts."""
        return not self.counts_calls or bool(self._guard.open) or self._client.get_write_buffer_size() > 0

    @property
    def is_closing(self) -> bool:
        """Whether it is on its way out."""
        return self._client is None or self._client.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:  # why the client left is nobody's concern
        """Leave the front too, which cancels the calls."""
        self._relays.discard(self)
        self._has_gone = True
        for timer in (self._stalled, self._leaving):
            if timer is not None:
                timer.cancel()
        self._stalled = self._leaving = None
        if self._joining is not None:
            self._joining.cancel()
        if self._front is not None:
            self._front.abort()

    def from_front(self, data: bytes) -> None:
        """Pass on what the front answers."""
        if self._has_gone:
            return  # while the front was joined to it anew, which `_begin` is about to see
        self.heard_at = self._time()
        self._sent += len(data)
        self._client.write(data)

    def counted_from_front(self, data: bytes) -> None:
        """Pass on what the front answers, and note the streams that it ends."""
        self.from_front(data)
        assert self._guard.open is not None  # noqa: S101 # see `__init__`
        if self._head:
            data, self._head = self._head + data, b""
        position, end = self._ahead, len(data)
        while position <= end - 9:
            word, flags, stream = _HEAD.unpack_from(data, position)
            kind = word & 0xFF
            if (kind == _HEADERS and flags & _END_STREAM) or kind == _RST_STREAM:
                self._guard.open.discard(stream)
            position += 9 + (word >> 8)
        if position < end:
            self._head = data[position:]
            position = end
        self._ahead = position - end

    def hold_client(self, held: bool) -> None:
        """Stop or go on reading from the client, as the front can take more or not."""
        self._is_held = held
        if self._client.is_closing() or self._inflating is not None:
            return
        if held:
            self._client.pause_reading()
        else:
            self._client.resume_reading()

    def front_left(self) -> None:
        """Close once everything written has gone out, or nobody has taken it for the client's time."""
        self._client.close()
        if self in self._relays and self._leaving is None:
            self._leaving = asyncio.get_running_loop().call_later(self._send_timeout_s, self.abort)

    def abort(self) -> None:
        """Drop the connection."""
        self._client.abort()


class _FrontSide(asyncio.Protocol):
    """The front's half of a relay."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.data_received = relay.counted_from_front if relay.counts_calls else relay.from_front

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._relay.hold_client(True)

    def resume_writing(self) -> None:
        self._relay.hold_client(False)

    def connection_lost(self, exc: Exception | None) -> None:  # the client is told by closing
        self._relay.front_left()
