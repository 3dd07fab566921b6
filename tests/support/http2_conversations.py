"""What clients of the native engine say, as bytes of HTTP/2: conversations drawn at random, most of them as honest clients have them."""

from __future__ import annotations

import random
import struct
import zlib

from grpc_support import DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PING, PREFACE, RST_STREAM, frame, message
from serinus.server.grpc.deflate import NAMED

__all__ = ["LIMIT", "conversation", "cut", "data_of", "squeezed"]

LIMIT = 40_000
"""Of a message, for which `conversation` makes some that are over it."""
_RESERVED = 1 << 31


def squeezed(payload: bytes, *, is_gzip: bool = True) -> bytes:
    """A payload in gzip, or in zlib's form."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31 if is_gzip else 15)
    return packer.compress(payload) + packer.flush()


def data_of(stream: int, body: bytes, most: int, *, end: bool = True) -> list[bytes]:
    """DATA frames of a body, each of at most so many bytes."""
    pieces = [body[at : at + most] for at in range(0, len(body), most)] or [b""]
    return [frame(DATA, END_STREAM * (end and at == len(pieces) - 1), stream, one) for at, one in enumerate(pieces)]


def _odd(rnd: random.Random, stream: int) -> list[bytes]:
    """Frames that want judgement, or that no client should send."""
    payload = rnd.randbytes(rnd.choice((0, 1, 30, 3000)))
    prefix = message(payload)
    zeros = bytes(rnd.choice((10, LIMIT, LIMIT + 1, 3 * LIMIT)))
    return rnd.choice(
        (
            lambda: [frame(HEADERS, END_HEADERS, stream, b"\x88\x40" + NAMED)],
            lambda: data_of(stream, message(squeezed(zeros), compressed=1), rnd.choice((7, 100, 16384))),
            lambda: data_of(stream, message(squeezed(zeros, is_gzip=False), compressed=1), rnd.choice((7, 100, 16384))),
            lambda: data_of(stream, message(payload, claim=rnd.choice((LIMIT + 1, 2**31, 2**32 - 1))), 16384),
            lambda: [frame(DATA, PADDED, stream, b"\x03" + prefix + bytes(3))],
            lambda: [frame(DATA, PADDED | END_STREAM, stream, b"\xff" + prefix)],
            lambda: data_of(stream, prefix, rnd.randint(1, 4)),
            lambda: [frame(DATA, END_STREAM, stream | _RESERVED, prefix)],
            lambda: [b"\xff" + rnd.randbytes(8)],
            lambda: [rnd.randbytes(40)],
            lambda: [frame(DATA, 0, stream, message(payload) + message(b"x", claim=LIMIT + 1))],
        )
    )()


def _honest(rnd: random.Random, stream: int) -> list[bytes]:
    """Frames as clients send them: one call, or what goes with it."""
    size = rnd.choice((0, 1, 5, 30, 30, 500, 17_000, LIMIT))
    body = message(rnd.randbytes(size))
    first = frame(HEADERS, END_HEADERS, stream, b"\x82" + rnd.randbytes(rnd.randint(0, 40)))
    most = rnd.choice((5, 900, 16384, 16384)) if size < 1000 else rnd.choice((900, 16384))
    return rnd.choice(
        (
            lambda: [first, *data_of(stream, body, most)],
            lambda: [first, *data_of(stream, body, most, end=False), frame(DATA, END_STREAM, stream)],
            lambda: [first, *data_of(stream, body, most)[:-1], frame(RST_STREAM, 0, stream, bytes(4))],
            lambda: [first, *data_of(stream, body, most)[:-1], frame(HEADERS, END_HEADERS | END_STREAM, stream)],
            lambda: [first, *data_of(stream, message(b"ab") + message(b"") + body, 16384, end=False)],
            lambda: [frame(PING, 0, 0, bytes(8)), frame(4, 0, 0), frame(8, 0, stream, bytes(4))],
            lambda: [first, *data_of(stream, body[:-1], most)],
        )
    )()


def conversation(rnd: random.Random) -> bytes:
    """All that a client sends: calls of several streams, their frames mixed, with something odd in some of them."""
    oddness = rnd.choice((0.0, 0.0, 0.05, 0.3))
    calls = [
        (_odd if rnd.random() < oddness else _honest)(rnd, rnd.choice((stream, stream, 1)))
        for stream in range(1, 2 * rnd.randint(1, 8), 2)
    ]
    preface = (
        PREFACE
        if rnd.random() < 0.97
        else rnd.choice((b"GET / HTTP/1.1\r\n\r\n", PREFACE[:9] + b"!", b"", PREFACE[:20]))
    )
    said = [preface, frame(4, 0, 0, struct.pack("!HI", 4, 65535))]
    while calls:
        call = rnd.choice(calls)
        said.append(call.pop(0))
        if not call:
            calls.remove(call)
    return b"".join(said)


def cut(rnd: random.Random, data: bytes) -> list[bytes]:
    """The same bytes, in pieces of random sizes."""
    pieces, at = [], 0
    most = rnd.choice((3, 60, 2000, 70_000))
    while at < len(data):
        size = rnd.randint(1, most if len(data) < 300 * most else len(data) // 100)
        pieces.append(data[at : at + size])
        at += size
    return pieces
