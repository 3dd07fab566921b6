"""Tables of a FlatBuffer, each offset held to the bytes that there are.

Source: FlatBuffers, "FlatBuffers internals": a table begins with the signed distance back to its vtable of 16-bit field places; vectors and
texts are 32-bit offsets ahead to a 32-bit count.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Table", "root"]


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a buffer; reading a field that is not there gives its default.

    Raises:
        ValueError: (all methods) an offset leads out of the buffer.
    """

    data: bytes
    at: int

    def number(self, field: int, form: str, default: float = 0) -> float:
        """Read a scalar; form: of `struct`, "i", "d", "b"."""
        place = self._place(field)
        return default if place is None else _unpack(self.data, "<" + form, place)

    def array(self, field: int, dtype: str) -> np.ndarray:
        """Read a vector of numbers; empty where there is none."""
        start, count = self._vector(field)
        kind = np.dtype(dtype)
        if count * kind.itemsize > len(self.data) - start:
            raise ValueError(f"a vector of {count} leads out of the file")
        return np.frombuffer(self.data, kind, count, start)

    def text(self, field: int) -> str:
        """Read a text; empty where there is none."""
        start, count = self._vector(field)
        if count > len(self.data) - start:
            raise ValueError("a text leads out of the file")
        return self.data[start : start + count].decode(errors="replace")

    def table(self, field: int) -> Table | None:
        """Read a table."""
        place = self._place(field)
        return None if place is None else Table(self.data, place + int(_unpack(self.data, "<I", place)))

    def tables(self, field: int) -> Iterator[Table]:
        """Read a vector of tables."""
        start, count = self._vector(field)
        if 4 * count > len(self.data) - start:
            raise ValueError(f"a vector of {count} leads out of the file")
        for place in range(start, start + 4 * count, 4):
            yield Table(self.data, place + int(_unpack(self.data, "<I", place)))

    def _place(self, field: int) -> int | None:
        table = self.at - int(_unpack(self.data, "<i", self.at))
        if 4 + 2 * field >= int(_unpack(self.data, "<H", table)):
            return None
        offset = int(_unpack(self.data, "<H", table + 4 + 2 * field))
        return self.at + offset if offset else None

    def _vector(self, field: int) -> tuple[int, int]:
        place = self._place(field)
        if place is None:
            return 0, 0
        start = place + int(_unpack(self.data, "<I", place))
        return start + 4, int(_unpack(self.data, "<I", start))


def root(data: bytes) -> Table:
    """Give the table that a buffer begins with."""
    return Table(data, int(_unpack(data, "<I", 0)))


def _unpack(data: bytes, form: str, at: int) -> float:
    if at < 0:
        raise ValueError("an offset leads out of the file")
    try:
        return struct.unpack_from(form, data, at)[0]
    except struct.error:
        raise ValueError("an offset leads out of the file") from None
