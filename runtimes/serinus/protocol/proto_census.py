"""A look at a large ModelInferRequest before it is parsed: whether what it holds would cost more than a message of its size should.

Theory of operation. A parsed submessage takes a hundred bytes, whose text is of two, and protobuf parses in one call that holds the
interpreter. Messages are bounded by their bytes, and this bounds what they become. Raw tensors are passed over: they are parsed in
no time. The compiled kernel counts at a gigabyte a second without the interpreter's lock, and without it the same is done here, slowly.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, Final

from ..errors import TooLarge
from ..native import library

__all__ = ["MOST_FIELDS", "MOST_NUMBERS", "check_few_fields", "check_message", "is_laborious"]

MOST_FIELDS: Final = 1 << 20
"""Fields, and elements of BYTES that are typed: a million take 0.1 GB and a tenth of a second."""
MOST_NUMBERS: Final = 1 << 22
"""Typed integers, which are looked at one by one; as many as `json_census` lets values be."""

_QUICK: Final[_Most] = (1 << 10, 1 << 14, 1 << 18)
"""Fields, numbers, and bytes outside of raw tensors, that are read in a millisecond."""
_LIMITS: Final[_Most] = (MOST_FIELDS, MOST_NUMBERS, 1 << 62)
_FEW: Final[_Most] = (1 << 10, 1 << 14, 1 << 62)
_ENTRY, _INPUT, _OUTPUT, _VALUE, _CONTENTS, _REQUEST = range(1, 7)
_WITHIN: Final = {
    (_REQUEST, 4): _ENTRY,
    (_REQUEST, 5): _INPUT,
    (_REQUEST, 6): _OUTPUT,
    (_INPUT, 4): _ENTRY,
    (_INPUT, 5): _CONTENTS,
    (_OUTPUT, 2): _ENTRY,
    (_ENTRY, 2): _VALUE,
}
"""As the kernel's table: numbers of fields in open_inference.proto."""

_Most = tuple[int, int, int]


def is_laborious(message: bytes) -> bool:
    """Whether reading a message takes more than a millisecond or so, and belongs off the event loop."""
    return not _counter()(message, _QUICK)


def check_message(message: bytes) -> None:
    """Refuse a message that holds too much to be parsed.

    Args:
        message: of whatever kind; it is taken for a ModelInferRequest.

    Raises:
        TooLarge: with what there is too much of, and where such data belong.
    """
    if not _counter()(message, _LIMITS):
        raise TooLarge(
            f"the message holds more than {MOST_FIELDS} fields or typed values of BYTES, or more than {MOST_NUMBERS} typed integers; send "
            "several requests, or the tensors in 'raw_input_contents'"
        )


def check_few_fields(message: bytes) -> None:
    """Refuse a message of any other kind, which names and asks and holds few fields.

    Raises:
        TooLarge: it holds thousands.
    """
    if not _counter()(message, _FEW):
        raise TooLarge(f"the message holds more than {_FEW[0]} fields; no call but inference takes so many")


@functools.cache
def _counter() -> Callable[[bytes, _Most], bool]:
    native = library()
    if native is None:
        return lambda message, most: _walk(memoryview(message), _REQUEST, most, [0, 0, 0])
    census = native.long.serinus_proto_census
    census.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64 * 3, ctypes.c_int64 * 3)
    census.restype = ctypes.c_int32
    bounds: dict[_Most, Any] = {most: (ctypes.c_int64 * 3)(*most) for most in (_QUICK, _FEW, _LIMITS)}

    def count(message: bytes, most: _Most) -> bool:
        return bool(census(message, len(message), bounds[most], (ctypes.c_int64 * 3)()))

    return count


def _walk(message: memoryview, level: int, most: _Most, counts: list[int]) -> bool:
    at, end = 0, len(message)
    try:
        while at < end:
            counts[0] += 1
            if counts[0] > most[0]:
                return False
            tag, at = _varint(message, at)
            number, kind = tag >> 3, tag & 7
            if kind == 0:
                _, at = _varint(message, at)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            elif kind == 2:
                size, at = _varint(message, at)
                if size > end - at:
                    return True
                part = message[at : at + size]
                at += size
                if level == _REQUEST and number == 7:
                    continue
                within = _WITHIN.get((level, number), 0)
                if within and not _walk(part, within, most, counts):
                    return False
                if not within:
                    counts[2] += size
                if (level == _CONTENTS and 2 <= number <= 5) or (level == _INPUT and number == 3):
                    counts[1] += size - sum(part.tobytes().translate(_HIGH))
                if counts[1] > most[1] or counts[2] > most[2]:
                    return False
    except IndexError:  # damaged: whoever parses it says so
        return True
    return True


_HIGH: Final = bytes(byte >> 7 for byte in range(256))


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise IndexError("a varint is longer than ten bytes")
