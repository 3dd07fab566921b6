"""A look at a large JSON text before it is parsed: whether what it holds would cost more than a body of its size should.

Theory of operation. A parsed number takes 32 bytes, an array 80 and an object 190, whose text is of two and three bytes. The bytes of
a body are bounded, and this bounds what they become: memory, and the second or so that Python takes to look at millions of values, in
calls that hold the interpreter. Numbers that the compiled kernel takes (`json_kernel`) become no Python objects, and are not counted.
The kernel counts at a gigabyte a second without the interpreter's lock; without it, a pattern finds the strings.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from typing import Final

from ..errors import TooLarge
from ..native import library

__all__ = ["MOST_CONTAINERS", "MOST_VALUES", "check_census"]

MOST_VALUES: Final = 1 << 22
"""Commas. 4 million values take 0.13 GB and about half a second to parse and check: 27 images of 224 x 224 x 3 as V1 writes them."""
MOST_CONTAINERS: Final = 1 << 20
"""Arrays, and objects twice: a million rows take 0.1 GB, and a fifth of a second each time that they are looked at."""

_SMALL_BYTES: Final = 1 << 20
"""A body with less is not looked at: it cannot hold that many."""
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def check_census(body: bytes, what: str) -> None:
    """Refuse a text that holds too many values, arrays or objects to be parsed.

    Args:
        body: need not be JSON.
        what: its name in messages: "the request body".

    Raises:
        TooLarge: with what there is too much of, and where such data belong.
    """
    if len(body) <= _SMALL_BYTES:
        return
    containers, commas = _counter()(body)
    if containers > MOST_CONTAINERS:
        raise TooLarge(
            f"{what} holds more than {MOST_CONTAINERS} arrays, or half as many objects; send several requests, a flat array in V2, or "
            "binary tensor data"
        )
    if commas > MOST_VALUES:
        raise TooLarge(
            f"{what} holds more than {MOST_VALUES} values that have to be looked at one by one; send several requests, numbers in V2 "
            "with 'shape' and 'datatype', or binary tensor data"
        )


@functools.cache
def _counter() -> Callable[[bytes], tuple[int, int]]:
    native = library()
    if native is None:
        return _count
    census = native.long.serinus_json_census
    census.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64 * 2, ctypes.c_int64 * 2)
    census.restype = ctypes.c_int32
    most = (ctypes.c_int64 * 2)(MOST_CONTAINERS, MOST_VALUES)

    def count(body: bytes) -> tuple[int, int]:
        counts = (ctypes.c_int64 * 2)()
        census(body, len(body), most, counts)
        return counts[0], counts[1]

    return count


def _count(body: bytes) -> tuple[int, int]:
    plain = _STRINGS.sub(b"", body) if b'"' in body else body
    return plain.count(b"[") + 2 * plain.count(b"{"), plain.count(b",")
