"""Bytes of connections: HTTP/1.1's heads and chunks through the real connection, HTTP/2's frames through the guard before the native engine."""

from __future__ import annotations

import asyncio
import struct

from connection_support import Joined
from reliability.fuzz.targets import target
from serinus.server.grpc.relays.size_filter import FrameGuard

__all__: list[str] = []

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MARKER = b"\xffmarker"
LOOP = asyncio.new_event_loop()


def _http(data: bytes) -> None:
    """In one piece, and cut after each 7th byte: the same requests are let through.

    Not compared: when and with which refusal the connection ends. The parser knows a method that is none sooner when it comes in pieces (400, not 501).
    """

    async def both() -> tuple[object, object]:
        return _outcome([data]), _outcome([data[at : at + 7] for at in range(0, len(data), 7)])

    whole, cut = LOOP.run_until_complete(both())
    assert whole == cut, (whole, cut)


def _outcome(pieces: list[bytes]) -> list[tuple[bytes, bytes, bytes]]:
    """The requests that were let through."""
    joined = Joined()
    through = []
    try:
        for piece in pieces:
            if joined.wire.closing:
                break
            joined.feed(piece)
            while joined.app.held:
                one = joined.app.held[0]
                through.append((one.method, one.target, bytes(one.body)))
                joined.answer()
        return through
    finally:
        joined.close()


def _requests() -> list[bytes]:
    return [
        b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" * 2,
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: 1\r\n\r\n",
        b"POST /x HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
    ]


def _frames(data: bytes) -> None:
    """In one piece and byte by byte, the front gets the same bytes."""
    whole, cut = FrameGuard(1000, MARKER), FrameGuard(1000, MARKER)
    first = whole.feed(data)
    assert first == b"".join(cut.feed(data[at : at + 1]) for at in range(len(data)))[: len(first)] or whole.dropped


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + payload


def _conversations() -> list[bytes]:
    message = struct.pack("!BI", 0, 5) + b"hello"
    return [
        PREFACE + _frame(4, 0, 0, b"") + _frame(1, 4, 1, b"\x82\x86") + _frame(0, 1, 1, message),
        PREFACE + _frame(0, 0, 1, message[:3]) + _frame(0, 1, 1, message[3:]),
        PREFACE + _frame(0, 1, 1, struct.pack("!BI", 0, 5000)) + _frame(0, 9, 3, b"\x02" + message + b"\0\0"),
        PREFACE + _frame(0, 1, 1, struct.pack("!BI", 1, 9) + b"\x78\x9c\x4b\x04\x00\x00\x62\x00\x62"),
    ]


target("http", _http, _requests)
target("http2_frames", _frames, _conversations)
