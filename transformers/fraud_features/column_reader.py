"""The one place where the columns of a request are checked.

Theory of operation. `parse` turns named tensors (or the columns of V1 instances) into a `Transactions` value of plain
Python lists, in request order, or raises `BadTransactions` with every problem found, up to `MAX_PROBLEMS`. Nothing is
stored before a whole request has passed, so a refused request leaves no trace. Lists, because what follows walks the
rows one by one: for one row no NumPy call is made at all, for 100 000 rows a comprehension per column costs ~5 ms.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from difflib import get_close_matches
from typing import Any, Final

import numpy as np

from .schema import (
    COLUMNS,
    CURRENCIES,
    INTEGERS,
    LABEL_COLUMNS,
    MAX_AMOUNT,
    MAX_FUTURE_S,
    MAX_ID_BYTES,
    MAX_PROBLEMS,
    MAX_ROWS,
    MIN_SECONDS,
    NUMBERS,
    TYPES,
    BadTransactions,
    Column,
    Labels,
    RawTensor,
    Transactions,
)

__all__ = ["columns_of_instances", "decode_bytes", "parse", "parse_labels"]

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "FP64": np.dtype("<f8"),
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
    "INT32": np.dtype("<i4"),
    "INT16": np.dtype("<i2"),
    "INT8": np.dtype("i1"),
    "UINT64": np.dtype("<u8"),
    "UINT32": np.dtype("<u4"),
    "UINT16": np.dtype("<u2"),
    "UINT8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_ID_TYPES: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "BYTES": ((bytes, str), "text"),
    "INT64": ((int,), "an integer"),
    "": ((str, int), "text or an integer"),
}
_U32: Final = struct.Struct("<I")

_MISSING: Final = object()


class _Problems:
    """Collects problems up to the cap, and counts the rest."""

    __slots__ = ("texts", "total")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.total = 0

    def add(self, text: str) -> None:
        self.total += 1
        if len(self.texts) < MAX_PROBLEMS:
            self.texts.append(text)

    def rows(self, column: str, rows: Sequence[int], values: Sequence[Any], expected: str, mend: str) -> None:
        for row in rows[: MAX_PROBLEMS + 1]:
            self.add(f"column '{column}', row {row}: {_shown(values[row])} came, expected {expected}; {mend}")
        self.total += max(0, len(rows) - MAX_PROBLEMS - 1)

    def stop(self) -> None:
        if self.texts:
            raise BadTransactions(self.texts, self.total)


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def decode_bytes(raw: bytes, count: int) -> list[bytes]:
    """Split the raw form of a BYTES tensor: uint32 little-endian length, then the bytes, for each element.

    Raises:
        ValueError: the lengths do not add up, or there are not `count` elements.
    """
    values: list[bytes] = []
    at, end = 0, len(raw)
    while at < end:
        if at + 4 > end:
            raise ValueError(f"{end - at} bytes after element {len(values)}, too few for a length")
        stop = at + 4 + _U32.unpack_from(raw, at)[0]
        if stop > end:
            raise ValueError(f"element {len(values)} ends at byte {stop}, the data at {end}")
        values.append(bytes(raw[at + 4 : stop]))
        at = stop
    if len(values) != count:
        raise ValueError(f"{len(values)} elements, the shape says {count}")
    return values


def columns_of_instances(instances: Any) -> dict[str, RawTensor]:
    """Turn V1 `instances` (a list of objects) into columns; a key that an object lacks is told by `parse`.

    Raises:
        BadTransactions: it is not a list of objects.
    """
    if not isinstance(instances, list):
        raise BadTransactions([f"'instances': {type(instances).__name__} came, expected a list of objects"])
    problems = _Problems()
    names: dict[str, None] = {}
    for row, instance in enumerate(instances):
        if isinstance(instance, dict):
            names.update(dict.fromkeys(instance))
        else:
            problems.add(f"instance {row}: {_shown(instance)} came, expected an object with one key per column")
    problems.stop()
    return {
        name: RawTensor("", None, [instance.get(name, _MISSING) for instance in instances])
        for name in (names or dict.fromkeys(c.name for c in COLUMNS if c.required))
    }


def parse(tensors: Mapping[str, RawTensor], now_s: float, *, apart: bool = False) -> Transactions:
    """Check the columns of a scoring request.

    Args:
        tensors: one per column.
        now_s: this machine's time, epoch seconds.
        apart: each row is a request of its own, so that ids may repeat.

    Raises:
        BadTransactions: with all problems.
    """
    problems = _Problems()
    rows = _rows(tensors, COLUMNS, problems)
    read = _Reader(tensors, rows, problems)
    ids = read.ids("transaction_id")
    transactions = Transactions(
        ids=ids,
        seconds=read.seconds(now_s),
        customers=read.ids("customer_id"),
        terminals=read.ids("terminal_id"),
        amounts=read.amounts(),
        card_present=[1 if v == b"CP" else 0 for v in read.choices("type", TYPES)],
        shipping_lat=read.degrees("shipping_lat", 90.0),
        shipping_long=read.degrees("shipping_long", 180.0),
        billing_lat=read.degrees("billing_lat", 90.0),
        billing_long=read.degrees("billing_long", 180.0),
        terminal_lat=read.degrees("terminal_lat", 90.0),
        terminal_long=read.degrees("terminal_long", 180.0),
        frauds=read.frauds() if "fraud" in tensors else None,
        integer_ids=read.integer_ids,
    )
    if "currency" in tensors:
        read.choices("currency", CURRENCIES)
    if not apart:
        read.no_repeats(ids)
    problems.stop()
    return transactions


def parse_labels(tensors: Mapping[str, RawTensor], now_s: float) -> Labels:
    """Check the columns of a `record_labels` request; arguments and errors as for `parse`."""
    problems = _Problems()
    rows = _rows(tensors, LABEL_COLUMNS, problems)
    read = _Reader(tensors, rows, problems)
    ids = read.ids("transaction_id")
    labels = Labels(
        ids=ids,
        seconds=read.seconds(now_s),
        customers=read.ids("customer_id"),
        terminals=read.ids("terminal_id"),
        frauds=read.frauds(),
        integer_ids=read.integer_ids,
    )
    read.no_repeats(ids)
    problems.stop()
    return labels


def _rows(tensors: Mapping[str, RawTensor], columns: Sequence[Column], problems: _Problems) -> int:
    """Check names, shapes and row counts; stop where there are no rows to speak of, or too many."""
    known = {column.name for column in columns}
    for column in columns:
        if column.required and column.name not in tensors:
            problems.add(
                f"column '{column.name}': missing, expected {' or '.join(column.datatypes[:2])} [rows]; "
                f"add it ({column.meaning})"
            )
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"the columns are {', '.join(c.name for c in columns)}"
            problems.add(f"column '{name}': not known; {hint}")
            continue
        shape = tensor.shape
        if shape is None:
            counts[name] = len(tensor.data)
        elif len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
            counts[name] = shape[0]
        else:
            problems.add(f"column '{name}': shape {list(shape)} came, expected [rows]; send one value per row")
    if not counts:
        problems.stop()
        raise BadTransactions(["no columns came, expected one tensor per column: see the model's metadata"])
    rows = max(counts.values()) if len(set(counts.values())) == 1 else _commonest(counts, problems)
    if rows == 0:
        problems.add("0 rows came, expected at least 1; leave the request out when there is nothing to score")
    if rows > MAX_ROWS:
        problems.add(f"{rows} rows came, expected at most {MAX_ROWS}; split the request")
    if rows == 0 or rows > MAX_ROWS or len(set(counts.values())) > 1:
        problems.stop()
    return rows


def _commonest(counts: Mapping[str, int], problems: _Problems) -> int:
    values = list(counts.values())
    rows = max(set(values), key=values.count)
    for name, count in counts.items():
        if count != rows:
            problems.add(
                f"column '{name}': {count} rows came, expected {rows} as in the other columns; columns must match"
            )
    return rows


class _Reader:
    """Reads one column after another; a column that cannot be read is filled up, so that the others are checked too."""

    __slots__ = ("integer_ids", "problems", "rows", "tensors")

    def __init__(self, tensors: Mapping[str, RawTensor], rows: int, problems: _Problems) -> None:
        self.tensors = tensors
        self.rows = rows
        self.problems = problems
        self.integer_ids = False

    def ids(self, name: str) -> list[bytes]:
        values, exact = self._values(name, ("BYTES", "INT64"))
        if not exact:
            types, expected = _ID_TYPES[self.tensors[name].datatype]
            bad = [r for r, v in enumerate(values) if type(v) not in types]
            if bad:
                self.problems.rows(name, bad, values, expected, "an id is text or an integer")
                return []
        if values and name == "transaction_id" and all([type(v) is int for v in values]):  # noqa: C419 # a list is quicker for one row
            self.integer_ids = True
        ids = [v if type(v) is bytes else v.encode() if type(v) is str else b"%d" % v for v in values]
        bad = [r for r, v in enumerate(ids) if not 0 < len(v) <= MAX_ID_BYTES or not (v.isascii() or _is_utf8(v))]
        if bad:
            self.problems.rows(name, bad, ids, f"1 to {MAX_ID_BYTES} bytes of UTF-8 text", "every row needs an id")
        return ids

    def seconds(self, now_s: float) -> list[int]:
        values, exact = self._values("datetime", ("INT64", "BYTES"))
        seconds: list[int] = []
        mend = "send epoch seconds or ISO 8601 such as 2025-03-01T12:30:00Z"
        if exact:
            seconds = values
        else:
            for row, value in enumerate(values):
                moment = _epoch(value)
                if moment is None:
                    self.problems.rows("datetime", [row], values, "a time", mend)
                    moment = MIN_SECONDS
                seconds.append(moment)
        latest = int(now_s) + MAX_FUTURE_S
        bad = [r for r, v in enumerate(seconds) if not MIN_SECONDS <= v <= latest]
        if bad:
            if seconds[bad[0]] > 100_000_000_000:
                mend = "it looks like milliseconds: divide by 1000"
            expected = f"a time from 2000-01-01 to one day from now ({_iso(latest)})"
            self.problems.rows("datetime", bad, values, expected, mend)
        return seconds

    def amounts(self) -> list[float]:
        values = self._numbers("amount")
        bad = [r for r, v in enumerate(values) if not 0.0 <= v <= MAX_AMOUNT]
        if bad:
            mend = "send the amount charged; refunds are not scored"
            self.problems.rows("amount", bad, values, f"a number from 0 to {MAX_AMOUNT:.0f}", mend)
        return values

    def degrees(self, name: str, limit: float) -> list[float]:
        values = self._numbers(name, null=math.nan)
        bad = [r for r, v in enumerate(values) if not -limit <= v <= limit and v == v]  # v != v is NaN
        if bad:
            mend = "send degrees; NaN says not known"
            self.problems.rows(name, bad, values, f"degrees from {-limit:.0f} to {limit:.0f}", mend)
        return values

    def choices(self, name: str, allowed: frozenset[bytes]) -> list[bytes]:
        values, exact = self._values(name, ("BYTES",))
        if not exact:
            values = [v.encode() if type(v) is str else v for v in values]
        bad = [r for r, v in enumerate(values) if type(v) is not bytes or v not in allowed]
        if bad:
            expected = " or ".join(sorted(v.decode() for v in allowed))
            self.problems.rows(name, bad, values, expected, "spelled so, in capitals")
        return values

    def frauds(self) -> list[int]:
        values, exact = self._values("fraud", (*INTEGERS, "BOOL"))
        bad = [r for r, v in enumerate(values) if type(v) not in (int, bool) or v not in (-1, 0, 1)]
        if bad:
            self.problems.rows("fraud", bad, values, "1 (fraud), 0 (not fraud) or -1 (not known)", "send an integer")
            return []
        return values if exact else [int(v) for v in values]

    def no_repeats(self, ids: list[bytes]) -> None:
        if len(set(ids)) == len(ids):
            return
        first: dict[bytes, int] = {}
        for row, value in enumerate(ids):
            if first.setdefault(value, row) != row:
                mend = "send each transaction once per request"
                self.problems.rows("transaction_id", [row], ids, f"an id other than row {first[value]}'s", mend)

    def _numbers(self, name: str, null: float | None = None) -> list[float]:
        values, exact = self._values(name, NUMBERS)
        if exact:
            return values if not values or type(values[0]) is float else [float(v) for v in values]
        if null is not None:
            values = [null if v is None else v for v in values]
        bad = [r for r, v in enumerate(values) if type(v) is not float and type(v) is not int]
        if bad:
            self.problems.rows(name, bad, values, "a number", "send it without quotes")
            return []
        try:
            return [float(v) for v in values]
        except OverflowError:
            self.problems.add(f"column '{name}': an integer too large for FP64 came, expected a number")
            return []

    def _values(self, name: str, datatypes: tuple[str, ...]) -> tuple[list[Any], bool]:
        """The column's values, and whether their Python type is certain (raw or array data of a fixed-width datatype)."""
        tensor = self.tensors.get(name)
        if tensor is None:  # told by _rows
            return [], True
        datatype, _, data = tensor
        if datatype and datatype not in datatypes:
            expected = " or ".join(datatypes)
            self.problems.add(
                f"column '{name}': datatype {datatype} came, expected {expected}; convert it before sending"
            )
            return [], True
        kind = type(data)
        exact = False
        if kind is list:
            values = data if not data or type(data[0]) is not list else _flat(data)
        elif isinstance(data, np.ndarray):
            values = data.ravel().tolist()
            exact = datatype != "BYTES" and data.dtype.kind in "iufb"
        else:
            try:
                if datatype == "BYTES":
                    values = decode_bytes(data, self.rows)
                    # Only ids and choices may take these as they are; for datetime they are text still.
                else:
                    values = np.frombuffer(data, _DTYPES[datatype]).tolist()
                    exact = True
            except ValueError as error:
                self.problems.add(f"column '{name}': raw data does not decode: {error}; expected {self.rows} elements")
                return [], True
        if len(values) != self.rows:
            self.problems.add(f"column '{name}': {len(values)} values came, expected {self.rows} by its shape")
            return [], True
        return values, exact


def _flat(data: list[Any]) -> list[Any]:
    flat: list[Any] = []
    for value in data:
        if type(value) is list:
            flat.extend(_flat(value))
        else:
            flat.append(value)
    return flat


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _epoch(value: Any) -> int | None:
    """Epoch seconds of an integer or of ISO 8601 text, fractions cut; None where it is neither."""
    if type(value) is int:
        return value
    try:
        text = value.decode() if type(value) is bytes else value
        # Python 3.10's fromisoformat takes +00:00 but not Z.
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return math.floor(moment.timestamp())
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None
