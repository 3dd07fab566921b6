"""A look at a large JSON text before it is parsed: whether what it holds would cost more than a body of its size should.

Theory of operation. A parsed number takes 32 bytes, a string 56 and its text, an array 80 and an object 216, whose text may be of two bytes;
keys that repeat, numbers of two digits and empty strings are kept once. The bytes of a body are bounded, and this bounds what they
become: memory (`MOST_TIMES`), and the second or so that Python takes to look at millions of values, in calls that hold the interpreter.
Numbers that the compiled kernel takes (`json_kernel`) become no Python objects, and are not counted.
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
MOST_TIMES: Final = 20
"""What a body may take in memory, in its own sizes, beside the text itself."""

_FLOOR_BYTES: Final = 1 << 25
"""What may always be taken: nothing that is not looked at takes more."""
_ARRAY, _OBJECT, _PLACE, _PAIR, _NUMBER, _STRING = 80, 216, 8, 16, 32, 56
"""As in the kernel: bytes of CPython 3.11's objects, measured with `sys.getsizeof`, and the collector's 16."""
_SMALL_BYTES: Final = 1 << 20
"""A body with less is not looked at: it cannot hold that many."""
_NUMBERS: Final = re.compile(rb"-?[0-9][0-9.eE+-]{2}")
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
    containers, commas, weight = _counter()(body)
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
    if weight > max(MOST_TIMES * len(body), _FLOOR_BYTES):
        raise TooLarge(
            f"{what} of {len(body)} bytes would take {weight} bytes in memory, more than {MOST_TIMES} times its size: it is made of tiny arrays "
            "or objects; send several requests, a flat array in V2, or binary tensor data"
        )


@functools.cache
def _counter() -> Callable[[bytes], tuple[int, int, int]]:
    native = library()
    if native is None:
        return _count
    census = native.long.serinus_json_census
    census.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64 * 2, ctypes.c_int64 * 3)
    census.restype = ctypes.c_int32
    most = (ctypes.c_int64 * 2)(MOST_CONTAINERS, MOST_VALUES)

    def count(body: bytes) -> tuple[int, int, int]:
        counts = (ctypes.c_int64 * 3)()
        census(body, len(body), most, counts)
        return counts[0], counts[1], counts[2]

    return count


def _count(body: bytes) -> tuple[int, int, int]:
    """As the kernel, but that every key is taken for one that repeats."""
    keys = texts = 0
    plain = body
    if b'"' in body:
        plain = _STRINGS.sub(b'"', body)
        keys = plain.count(b":")
        texts = max(0, plain.count(b'"') - keys - body.count(b'""'))
    arrays, objects, commas = plain.count(b"["), plain.count(b"{"), plain.count(b",")
    weight = _ARRAY * arrays + _OBJECT * objects + _PLACE * commas + _PAIR * keys + _STRING * texts
    if texts:
        weight += len(body) - len(plain)
    return arrays + 2 * objects, commas, weight + _NUMBER * len(_NUMBERS.findall(plain))
