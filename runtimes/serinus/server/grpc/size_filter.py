"""What stands before the native front: it holds messages to their size limit before they can cost memory.

Why. pygrpc-native 0.5.0 takes messages of any size: it buffers whatever is announced, up to 4 GiB, and inflates a gzip message
without bound before its size is known to anybody. Measured: one request of 0.5 MB that inflates to 500 MB took it from 13
to 1 516 MB of memory and was handed to Python as if nothing were amiss. In a container that is a kill by one small request,
and it can be neither configured nor refused from Python. So the front listens on a Unix socket, and every connection passes through
here.

Theory of operation. `FrameGuard` reads the client's half of an HTTP/2 connection, only so far as to know where frames end
(RFC 9113, 4.1) and where gRPC messages begin in DATA frames (gRPC over HTTP/2, "Length-Prefixed-Message"). It decodes no
header and keeps no state of HTTP/2's own; what it does not understand it passes on unchanged, and the front refuses it.
A message that fits in its DATA frame, as nearly all do, costs a few comparisons. For others:
  - An announced length over the limit: in place of the message a marker is sent, which Python recognises and answers with
    RESOURCE_EXHAUSTED; the rest of the stream is dropped.
  - A gzip message is inflated here, piece by piece and thrown away, to learn its true size. Frames are held until it is known, up
    to `_HELD_BYTES`; what is larger is passed on while it is measured, and cut short where it passes the limit, which the front
    answers with INTERNAL.
  - A deflate message is passed on under another name, for deflate.py to inflate within the limit.
Dropped bytes are never credited to the connection's flow-control window of 2 GiB, so a connection that had more than
`_DROPPED_MOST` dropped is closed. The server's half is passed on unread. Back-pressure goes through: a client that does not
read stops the reading from the front, whose own flow control then stops the answers.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

from ..http.unsent_answers import SEND_TIMEOUT_S
from .deflate import DEFLATED, HIDDEN, NAMED, begins_deflated

__all__ = ["FrameGuard", "Relay"]

_log = logging.getLogger("serinus.grpc")

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct(">BHBBI")
"""Length (24 bits, as 8 and 16), type, flags, stream (RFC 9113, 4.1)."""
_PREFIX = struct.Struct(">BI")
"""Compressed flag and length of a message (gRPC over HTTP/2)."""
_DATA, _HEADERS, _RST_STREAM = 0, 1, 3
_END_STREAM, _PADDED = 1, 8
_STREAM_MASK = 0x7FFF_FFFF
_FRAME_MOST = 16384
"""SETTINGS_MAX_FRAME_SIZE's default, which the front never raises (RFC 9113, 6.5.2)."""
_HELD_BYTES = 1 << 20
"""Most bytes of one gzip message held until its size is known: a quarter of the front's stream window, so it never stalls."""
_DROPPED_MOST = 1 << 30
_PIECE_BYTES = 1 << 18
_SOON_S = 1e-3
"""What no pace is told over less than."""


class _Message:
    """The message that a stream is in the middle of."""

    __slots__ = ("held", "held_bytes", "holding", "inflated", "inflater", "prefix", "refused", "remaining", "sent")

    def __init__(self) -> None:
        self.prefix = b""
        self.remaining = 0
        self.inflater: Any = None
        self.inflated = 0
        self.holding = False
        self.held: list[bytes] = []
        self.held_bytes = 0
        self.sent = False
        """Some of it has been passed on, so that a marker can no longer take its place."""
        self.refused = False
        """This message was too large, and what remains of the stream is dropped."""


class FrameGuard:
    """Filters what one client sends.

    Args:
        limit: largest message, bytes, after inflating.
        marker: the message put in the place of one that is too large; shorter than any real one would be.
    """

    def __init__(self, limit: int, marker: bytes) -> None:
        self._limit = limit
        self._refusal = _PREFIX.pack(0, len(marker)) + marker
        self._tail = b""
        self._preface = True
        self._blind = False
        self._messages: dict[int, _Message] = {}
        self.dropped = 0
        """Bytes that the client has sent and the front will never see."""

    def feed(self, data: bytes) -> bytes:
        """Take what the client sent, and return what the front is to get."""
        if self._blind:
            return data
        if self._tail:
            data = self._tail + data
            self._tail = b""
        position = 0
        if self._preface:
            if not _PREFACE.startswith(data[:24]):
                return self._give_up(data)
            if len(data) < 24:
                self._tail = data
                return b""
            self._preface = False
            position = 24
        end = len(data)
        messages = self._messages
        changed: list[bytes] | None = None
        unsent = 0
        while end - position >= 9:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, position)
            length = high << 16 | low
            if length > _FRAME_MOST:
                rest = self._give_up(data[unsent:])  # a FRAME_SIZE_ERROR, which the front answers
                return rest if changed is None else b"".join([*changed, rest])
            after = position + 9 + length
            if after > end:
                break
            if kind == _DATA:
                if (
                    length < 5
                    or data[position + 9]
                    or flags & _PADDED
                    or int.from_bytes(data[position + 10 : position + 14], "big") != length - 5
                    or length - 5 > self._limit
                    or stream in messages
                ):
                    frame = data[position:after]
                    passed = self._data(stream & _STREAM_MASK, flags, frame)
                    if passed is not frame:
                        if changed is None:
                            changed = []
                        changed += (data[unsent:position], passed)
                        unsent = after
            elif messages and (kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM)):
                message = messages.pop(stream & _STREAM_MASK, None)
                if message is not None:
                    self.dropped += message.held_bytes
            if kind == _HEADERS and data.find(NAMED, position, after) >= 0:
                if changed is None:
                    changed = []
                changed += (data[unsent:position], data[position:after].replace(NAMED, HIDDEN))
                unsent = after
            position = after
        if position < end:
            self._tail = data[position:]
            data = data[:position]
        if changed is None:
            return data
        changed.append(data[unsent:])
        return b"".join(changed)

    def _give_up(self, data: bytes) -> bytes:
        """Pass everything on from here: this is no HTTP/2, and the front will say so and close."""
        self._blind = True
        return data

    def _data(self, stream: int, flags: int, frame: bytes) -> bytes:
        """Judge a DATA frame; returns the frame itself where it may pass as it is."""
        message = self._messages.get(stream)
        if message is not None and message.refused:
            self.dropped += len(frame) - 9
            if flags & _END_STREAM:
                del self._messages[stream]
            return b""
        first, end = 9, len(frame)
        if flags & _PADDED:
            first, end = 10, end - (frame[9] if end > 9 else end)
            if end < first:
                return frame  # a PROTOCOL_ERROR, which the front answers
        if message is None:
            message = self._messages[stream] = _Message()
        released: list[bytes] = []  # frames held until now, whose message turned out to be small enough
        start = began = first  # `began`: where the message that the loop is in begins in this frame
        while start < end:
            if len(message.prefix) < 5:
                taken = min(5 - len(message.prefix), end - start)
                message.prefix += frame[start : start + taken]
                start += taken
                if taken == 5 and frame[start - 5] == 1 and end - start >= 2 and begins_deflated(frame, start):
                    frame = b"".join(
                        (frame[: start - 5], b"\0", frame[start - 4 : start], DEFLATED, frame[start + len(DEFLATED) :])
                    )
                    message.prefix = b"\0" + message.prefix[1:]
                if len(message.prefix) == 5:
                    compressed, message.remaining = _PREFIX.unpack(message.prefix)
                    if message.remaining > self._limit:
                        return b"".join([*released, self._refuse(stream, flags, message, frame[first:began])])
                    if compressed:
                        message.inflater = zlib.decompressobj(31)
                        message.holding = not message.sent and began == first
            else:
                taken = min(message.remaining, end - start)
                if message.inflater is not None and not self._fits(message, frame[start : start + taken]):
                    return b"".join([*released, self._refuse(stream, flags, message, frame[first:began])])
                message.remaining -= taken
                start += taken
            if len(message.prefix) == 5 and not message.remaining:
                released += message.held
                message = self._messages[stream] = _Message()
                began = start
        if flags & _END_STREAM or not message.prefix:
            del self._messages[stream]
            released += message.held
        elif message.holding:
            message.held.append(frame)
            message.held_bytes += len(frame)
            if message.held_bytes <= _HELD_BYTES:
                return b"".join(released)
            message.holding = False
            message.sent = True
            frame = b"".join(message.held)
            message.held, message.held_bytes = [], 0
        else:
            message.sent = True
        return b"".join([*released, frame]) if released else frame

    def _fits(self, message: _Message, piece: bytes) -> bool:
        """Inflate and forget; False when the message has grown over the limit."""
        try:
            while piece and not message.inflater.eof:
                message.inflated += len(message.inflater.decompress(piece, _PIECE_BYTES))
                if message.inflated > self._limit:
                    return False
                piece = message.inflater.unconsumed_tail
        except zlib.error:
            message.inflater = None  # no gzip, which the front finds out too
        return True

    def _refuse(self, stream: int, flags: int, message: _Message, before: bytes) -> bytes:
        """End the client's half: with the marker where nothing of the message has been passed on, else abruptly.

        Args:
            stream: its number.
            flags: those of the frame at hand.
            message: the one that is too large.
            before: what precedes it in the frame at hand.
        """
        self.dropped += _FRAME_MOST + message.held_bytes
        if flags & _END_STREAM:
            del self._messages[stream]
        else:
            refused = self._messages[stream] = _Message()
            refused.refused = True
        if message.sent:
            return _frame(stream, _END_STREAM, b"")
        return (_frame(stream, 0, before) if before else b"") + _frame(stream, _END_STREAM, self._refusal)


def _frame(stream: int, flags: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, _DATA, flags, stream) + payload


class Relay(asyncio.Protocol):
    """One client's connection, joined to one of its own to the front.

    Args:
        path: the front's Unix socket.
        guard: filters what the client sends.
        relays: the set of all open ones; this adds and removes itself.
        send_timeout_s: how long the client may take nothing of what waits for it.
        on_stalled: told when it is closed for that.
    """

    def __init__(
        self,
        path: str,
        guard: FrameGuard,
        relays: set[Relay],
        send_timeout_s: float = SEND_TIMEOUT_S,
        on_stalled: Callable[[], None] = lambda: None,
    ) -> None:
        self._send_timeout_s = send_timeout_s
        self._on_stalled = on_stalled
        self._stalled: asyncio.TimerHandle | None = None
        """Waits for the client to take something."""
        self._sent = self._seen = self._marked = 0
        """Bytes that the front has sent to the client; as of the last look; as of the mark."""
        self.moved_at = time.monotonic()
        """When that was last seen to grow."""
        self.marked_at = self.moved_at
        """Since when `pace` counts."""
        self._path = path
        self._guard = guard
        self._relays = relays
        self._client: Any = None
        self._front: Any = None
        self._joining: asyncio.Task[None] | None = None
        self._early = b""
        """Read before the front was joined: uvloop may deliver once more after `pause_reading`."""
        self._early_end = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to join; nothing is read before that is done."""
        self._client = transport
        self._client.pause_reading()
        self._relays.add(self)
        self._joining = asyncio.get_running_loop().create_task(self._join())

    async def _join(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            front, _ = await loop.create_unix_connection(lambda: _FrontSide(self), self._path)
        except OSError as error:
            _log.error("the gRPC front does not accept: %s", error)
            self._client.abort()
            return
        if self._client.is_closing():
            front.abort()
            return
        self._front = front
        self._client.resume_reading()
        early, self._early = self._early, b""
        if early:
            self.data_received(early)
        if self._early_end:
            front.write_eof()

    def data_received(self, data: bytes) -> None:
        """Pass on what the guard lets through."""
        if self._front is None:
            self._early += data
            self._client.pause_reading()
            return
        passed = self._guard.feed(data)
        if passed:
            self._front.write(passed)
        if self._guard.dropped > _DROPPED_MOST:
            _log.warning("closing a gRPC connection of which %d bytes were over the size limit", self._guard.dropped)
            self.abort()

    def eof_received(self) -> bool:
        """Tell the front; answers may still come."""
        if self._front is None:
            self._early_end = True
        elif not self._front.is_closing():
            self._front.write_eof()
        return True

    def pause_writing(self) -> None:
        """Stop reading from the front while the client does not read."""
        if self._front is not None:
            self._front.pause_reading()
            self._await_reading(self._client.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Read from the front again."""
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

    def note_progress(self, now: float) -> None:
        """Note whether anything has gone to the client since the last look."""
        if self._sent != self._seen:
            self._seen = self._sent
            self.moved_at = now

    def mark(self, now: float) -> None:
        """Count what goes to the client anew."""
        self._marked, self.marked_at = self._sent, now

    def pace(self, now: float) -> float:
        """Bytes per second that have gone to the client since it was marked."""
        return (self._sent - self._marked) / max(now - self.marked_at, _SOON_S)

    def connection_lost(self, exc: Exception | None) -> None:  # why the client left is nobody's concern
        """Leave the front too, which cancels the calls."""
        self._relays.discard(self)
        if self._stalled is not None:
            self._stalled.cancel()
        if self._joining is not None:
            self._joining.cancel()
        if self._front is not None:
            self._front.abort()

    def from_front(self, data: bytes) -> None:
        """Pass on what the front answers."""
        self._sent += len(data)
        self._client.write(data)

    def hold_client(self, held: bool) -> None:
        """Stop or go on reading from the client, as the front can take more or not."""
        if self._client.is_closing():
            return
        if held:
            self._client.pause_reading()
        else:
            self._client.resume_reading()

    def front_left(self) -> None:
        """Close once everything written has gone out."""
        self._client.close()

    def abort(self) -> None:
        """Drop the connection."""
        self._client.abort()


class _FrontSide(asyncio.Protocol):
    """The front's half of a relay."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.data_received = relay.from_front

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._relay.hold_client(True)

    def resume_writing(self) -> None:
        self._relay.hold_client(False)

    def connection_lost(self, exc: Exception | None) -> None:  # the client is told by closing
        self._relay.front_left()
