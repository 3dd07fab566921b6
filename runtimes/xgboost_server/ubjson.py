"""Decode UBJSON (Draft 12) as XGBoost writes it: typed arrays become NumPy arrays without a Python object per element.

Source: https://ubjson.org, "Value Types" and "Container Types"; numbers are big-endian. XGBoost writes strings' and containers'
lengths as `L` (int64); any integer type is read here.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np

__all__ = ["UbjsonError", "decode"]

_DEPTH: Final = 64
"""Deepest nesting taken; a model file has 8."""
_NUMBERS: Final[dict[int, struct.Struct]] = {
    ord("i"): struct.Struct(">b"),
    ord("U"): struct.Struct(">B"),
    ord("I"): struct.Struct(">h"),
    ord("l"): struct.Struct(">i"),
    ord("L"): struct.Struct(">q"),
    ord("d"): struct.Struct(">f"),
    ord("D"): struct.Struct(">d"),
}
_ARRAYS: Final[dict[int, np.dtype]] = {
    ord("i"): np.dtype(">i1"),
    ord("U"): np.dtype(">u1"),
    ord("I"): np.dtype(">i2"),
    ord("l"): np.dtype(">i4"),
    ord("L"): np.dtype(">i8"),
    ord("d"): np.dtype(">f4"),
    ord("D"): np.dtype(">f8"),
}
_INTEGERS: Final = frozenset(b"iUIlL")
_CONSTANTS: Final[dict[int, Any]] = {ord("Z"): None, ord("T"): True, ord("F"): False}


class UbjsonError(ValueError):
    """The bytes are not UBJSON, or end too early; the message names the offset."""


def decode(data: bytes) -> Any:
    """Decode one value; typed arrays are NumPy arrays in native byte order, all else is as in JSON.

    Raises:
        UbjsonError: malformed, truncated or too deep.
    """
    reader = _Reader(data)
    try:
        value = reader.value(reader.byte(), 0)
    except (IndexError, struct.error):
        raise UbjsonError(f"the file ends within a value, at byte {len(data)}") from None
    except UnicodeDecodeError as error:
        raise UbjsonError(f"a string is not UTF-8: {error}") from None
    return value


class _Reader:
    """A cursor over the bytes."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        marker = self.data[self.at]
        self.at += 1
        while marker == 0x4E:  # "N": no-op
            marker = self.data[self.at]
            self.at += 1
        return marker

    def length(self) -> int:
        marker = self.byte()
        if marker not in _INTEGERS:
            raise UbjsonError(f"byte {self.at - 1}: a length must be an integer, not type {chr(marker)!r}")
        number = self.number(marker)
        if number < 0:
            raise UbjsonError(f"byte {self.at}: negative length {number}")
        return number

    def number(self, marker: int) -> Any:
        form = _NUMBERS[marker]
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def text(self) -> str:
        size = self.length()
        if size > len(self.data) - self.at:
            raise UbjsonError(f"byte {self.at}: a string of {size} bytes, {len(self.data) - self.at} are left")
        start, self.at = self.at, self.at + size
        return self.data[start : self.at].decode()

    def value(self, marker: int, depth: int) -> Any:
        if depth > _DEPTH:
            raise UbjsonError(f"byte {self.at}: nested deeper than {_DEPTH}")
        if marker in _NUMBERS:
            return self.number(marker)
        if marker == ord("{"):
            return self.object(depth + 1)
        if marker == ord("["):
            return self.array(depth + 1)
        if marker in (ord("S"), ord("H")):  # H: a number too large for the other types, as text
            return self.text()
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if marker == ord("C"):
            return chr(self.byte())
        raise UbjsonError(f"byte {self.at - 1}: unknown type {chr(marker)!r}")

    def object(self, depth: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        kind, count = self.header()
        while count is None or len(members) < count:
            if count is None and self.data[self.at] == ord("}"):
                self.at += 1
                break
            name = self.text()
            if name in members:
                raise UbjsonError(f"byte {self.at}: member {name!r} is there twice")
            members[name] = self.value(self.byte() if kind is None else kind, depth)
        return members

    def array(self, depth: int) -> Any:
        kind, count = self.header()
        if kind is not None and count is not None:
            if kind in _ARRAYS:
                return self.typed(_ARRAYS[kind], count)
            if kind in _CONSTANTS:
                raise UbjsonError(f"byte {self.at}: an array typed {chr(kind)!r} holds nothing")
        items: list[Any] = []
        while count is None or len(items) < count:
            marker = self.byte() if kind is None else kind
            if count is None and marker == ord("]"):
                break
            items.append(self.value(marker, depth))
        return items

    def header(self) -> tuple[int | None, int | None]:
        """Read the optional `$type` and `#count` of a container."""
        kind: int | None = None
        if self.data[self.at] == ord("$"):
            kind = self.data[self.at + 1]
            self.at += 2
            if self.data[self.at] != ord("#"):
                raise UbjsonError(f"byte {self.at}: a typed container needs a count")
        if self.data[self.at] == ord("#"):
            self.at += 1
            return kind, self.length()
        return kind, None

    def typed(self, dtype: np.dtype, count: int) -> np.ndarray:
        size = count * dtype.itemsize
        if size > len(self.data) - self.at:
            raise UbjsonError(f"byte {self.at}: an array of {size} bytes, {len(self.data) - self.at} are left")
        array = np.frombuffer(self.data, dtype, count, self.at).astype(dtype.newbyteorder("="))
        self.at += size
        return array
