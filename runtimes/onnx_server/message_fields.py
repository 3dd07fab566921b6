"""The fields of a protobuf message (protobuf.dev/programming-guides/encoding), read where they lie: an ONNX file without the package onnx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["fields", "varint"]


def fields(body: Any, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Walk a protobuf message: each field's number, and where its value begins and ends.

    Raises:
        ValueError: it is none.
        IndexError: it is cut off.
    """
    while at < end:
        tag, at = varint(body, at)
        kind, start = tag & 7, at
        if kind == 0:
            _, at = varint(body, at)
        elif kind == 1:
            at += 8
        elif kind == 2:
            size, start = varint(body, at)
            at = start + size
        elif kind == 5:
            at += 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > end:
            raise ValueError("a field leads out of its message")
        yield tag >> 3, start, at


def varint(body: Any, at: int) -> tuple[int, int]:
    """Read a number, and give where the next value begins.

    Raises:
        ValueError: it is too long.
        IndexError: it is cut off.
    """
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
