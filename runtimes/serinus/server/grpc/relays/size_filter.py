"""What stands before the native front: it holds messages to their size limit before they can cost memory.

Why. pygrpc-native 0.5.0 takes messages of any size: it buffers whatever is announced, up to 4 GiB, and inflates a gzip message
without bound before its size is known to anybody. Measured: one request of 0.5 MB that inflates to 500 MB took it from 13
to 1 516 MB of memory and was handed to Python as if nothing were amiss. In a container that is a kill by one small request,
and it can be neither configured nor refused from Python. So the front listens on a Unix socket, and every connection passes through
here; or, while it holds nothing but plain messages within the limit, through native/frames/frame_scan.h, which judges those as this does and leaves
the connection to this with the first frame that it cannot judge (`go_on`).

Theory of operation. `FrameGuard` reads the client's half of an HTTP/2 connection, only so far as to know where frames end
(RFC 9113, 4.1) and where gRPC messages begin in DATA frames (gRPC over HTTP/2, "Length-Prefixed-Message"). It decodes no
header and keeps no state of HTTP/2's own; what it does not understand it passes on unchanged, and the front refuses it.
A message that fits in its DATA frame, as nearly all do, costs a few comparisons. For others:
  - An announced length over the limit: in place of the message a marker is sent, which Python recognises and answers with
    RESOURCE_EXHAUSTED; the rest of the stream is dropped.
  - A gzip message is inflated here, piece by piece and thrown away, to learn its true size. Frames are held until it is known, up
    to `_HELD_BYTES`; what is larger is passed on while it is measured, and cut short where it passes the limit, which the front
    answers with INTERNAL. Beyond `INFLATED_HERE` bytes of a read that is done in a thread, for 60 KB may be 64 MiB, which take 130 ms.
  - A deflate message is passed on under another name, for deflate.py to inflate within the limit.
Dropped bytes are never credited to the connection's flow-control window of 2 GiB, so a connection that had more than
`DROPPED_MOST` dropped is closed.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterable
from typing import Any

from ..deflate import DEFLATED, HIDDEN, NAMED, begins_deflated

__all__ = ["DROPPED_MOST", "INFLATED_HERE", "FrameGuard"]

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
DROPPED_MOST = 1 << 30
_PIECE_BYTES = 1 << 18
INFLATED_HERE = 2048
"""Bytes of a read that may be inflated on the event loop: 2 MiB at the most (zlib makes 1032 bytes of one), which take some 4 ms."""


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
        self.has_data = False
        """A DATA frame has come."""
        self.open: set[int] | None = None
        """Streams that the client has begun and not cancelled; whoever reads the answers takes those away that the front has ended. None: nobody does, and
        none are noted."""
        self._newest = 0
        self.has_work = False
        """What `feed` was not to inflate begins what it has kept; call it again, from wherever that may take its time."""
        self.dropped = 0
        """Bytes that the client has sent and the front will never see."""

    def go_on(self, messages: Iterable[tuple[int, int]], *, has_data: bool) -> None:
        """Take over from `frame_scan.h`, which has let the preface and whole frames pass.

        Args:
            messages: streams that are within a plain message, and the bytes of it that are to come.
            has_data: a DATA frame has passed.
        """
        self._preface = False
        self.has_data = has_data
        for stream, remaining in messages:
            message = self._messages[stream] = _Message()
            message.prefix, message.remaining, message.sent = _PREFIX.pack(0, remaining), remaining, True

    def feed(self, data: bytes, inflated_most: int = sys.maxsize) -> bytes:
        """Take what the client sent, and return what the front is to get.

        Args:
            data: its bytes; none, to go on where `has_work` is set.
            inflated_most: bytes of compressed messages that may be looked into; what is from the first frame on that has more is kept for the next call.
        """
        self.has_work = False
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
                self.has_data = True
                if (
                    length < 5
                    or data[position + 9]
                    or flags & _PADDED
                    or int.from_bytes(data[position + 10 : position + 14], "big") != length - 5
                    or length - 5 > self._limit
                    or (messages and stream & _STREAM_MASK in messages)
                ):
                    if inflated_most < sys.maxsize and self._may_inflate(stream & _STREAM_MASK, data, position, length):
                        inflated_most -= length
                        if inflated_most < 0:
                            self.has_work = True
                            break
                    frame = data[position:after]
                    passed = self._data(stream & _STREAM_MASK, flags, frame)
                    if passed is not frame:
                        if changed is None:
                            changed = []
                        changed += (data[unsent:position], passed)
                        unsent = after
            elif kind == _HEADERS:
                if self.open is not None:
                    self._note_begun(stream & _STREAM_MASK)
                if messages and flags & _END_STREAM:
                    self._forget(stream & _STREAM_MASK)
                if data.find(NAMED, position, after) >= 0:
                    if changed is None:
                        changed = []
                    changed += (data[unsent:position], data[position:after].replace(NAMED, HIDDEN))
                    unsent = after
            elif kind == _RST_STREAM:
                if self.open is not None:
                    self.open.discard(stream & _STREAM_MASK)
                self._forget(stream & _STREAM_MASK)
            position = after
        if position < end:
            self._tail = data[position:]
            data = data[:position]
        if changed is None:
            return data
        changed.append(data[unsent:])
        return b"".join(changed)

    def _note_begun(self, stream: int) -> None:
        """Note a stream, unless these HEADERS are trailers of one that is there already (RFC 9113, 5.1.1)."""
        if self.open is not None and stream > self._newest:
            self._newest = stream
            self.open.add(stream)

    def _forget(self, stream: int) -> None:
        """Drop what was held of a stream that has ended."""
        message = self._messages.pop(stream, None)
        if message is not None:
            self.dropped += message.held_bytes

    def _may_inflate(self, stream: int, data: bytes, position: int, length: int) -> bool:
        """Whether a DATA frame may hold something of a compressed message: it is plain where one plain message fills all of it."""
        message = self._messages.get(stream)
        if message is None:
            return length >= 5 and not (
                data[position + 9] == 0 and int.from_bytes(data[position + 10 : position + 14], "big") >= length - 5
            )
        return not message.refused and (message.inflater is not None or message.remaining < length)

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
