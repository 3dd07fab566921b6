"""The columns of a raw transaction: what there is, what it means, within which bounds, and the values that come out.

The columns are those of the Fraud Detection Handbook's simulator with places, as package `synccfd` writes them. `column_reader` is the
one place where a request's are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

__all__ = [
    "COLUMNS",
    "CURRENCIES",
    "INTEGERS",
    "LABEL_COLUMNS",
    "MAX_AMOUNT",
    "MAX_FUTURE_S",
    "MAX_ID_BYTES",
    "MAX_PROBLEMS",
    "MAX_ROWS",
    "MIN_SECONDS",
    "NUMBERS",
    "TYPES",
    "BadTransactions",
    "Column",
    "Labels",
    "RawTensor",
    "Transactions",
]

MAX_ROWS: Final = 100_000
"""Most rows of one request. ~1.5 s of work, done in slices so that other requests are answered meanwhile."""
MAX_AMOUNT: Final = 1e8
"""Largest amount. Keeps 30 days of sums in cents below 2**53, so that every store adds exactly."""
MIN_SECONDS: Final = 946_684_800
"""2000-01-01: before it a timestamp is a unit mix-up or an unset clock."""
MAX_FUTURE_S: Final = 86_400
"""How far ahead of this machine's clock a transaction may lie: a day covers time zones taken for UTC."""
MAX_ID_BYTES: Final = 128
MAX_PROBLEMS: Final = 20
"""Problems told in one answer; the rest are counted."""
TYPES: Final[frozenset[bytes]] = frozenset({b"CP", b"CNP"})
CURRENCIES: Final[frozenset[bytes]] = frozenset({b"BRL"})
"""Amounts are compared with each other, so one service takes one currency: the one its model was trained in."""

NUMBERS: Final = ("FP64", "FP32", "INT64", "INT32")
INTEGERS: Final = ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the request: its name, the datatypes it may come in (the first is the advertised one), what it means."""

    name: str
    datatypes: tuple[str, ...]
    meaning: str
    required: bool = True


COLUMNS: Final[tuple[Column, ...]] = (
    Column("transaction_id", ("BYTES", "INT64"), "unique id; a retry repeats it and is counted once"),
    Column("datetime", ("INT64", "BYTES"), "epoch seconds UTC, or ISO 8601 text (no offset: UTC)"),
    Column("customer_id", ("BYTES", "INT64"), "whose card"),
    Column("terminal_id", ("BYTES", "INT64"), "where: a terminal or a web shop"),
    Column("amount", NUMBERS, f"0 to {MAX_AMOUNT:.0f}, in units of the currency"),
    Column("type", ("BYTES",), "CP (card present) or CNP (card not present)"),
    Column("shipping_lat", NUMBERS, "where the goods go, degrees; NaN: not known"),
    Column("shipping_long", NUMBERS, "degrees east"),
    Column("billing_lat", NUMBERS, "the customer's home, degrees; NaN: not known"),
    Column("billing_long", NUMBERS, "degrees east"),
    Column("terminal_lat", NUMBERS, "the terminal's place, degrees; NaN: not known"),
    Column("terminal_long", NUMBERS, "degrees east"),
    Column("currency", ("BYTES",), "BRL; left out: BRL", required=False),
    Column("fraud", (*INTEGERS, "BOOL"), "known outcome: 1 fraud, 0 not, -1 unknown", required=False),
)
"""Every column of a scoring request."""

LABEL_COLUMNS: Final[tuple[Column, ...]] = tuple(
    Column(c.name, c.datatypes, c.meaning)
    for c in COLUMNS
    if c.name in ("transaction_id", "datetime", "customer_id", "terminal_id", "fraud")
)
"""The columns of a request with `operation: record_labels`."""


class BadTransactions(ValueError):
    """The client's columns are wrong; `problems` names column, row, what came, what was expected and the mend."""

    def __init__(self, problems: Sequence[str], total: int | None = None) -> None:
        self.problems = tuple(problems)
        self.total = len(self.problems) if total is None else total
        more = f"; and {self.total - len(problems)} more" if self.total > len(problems) else ""
        head = f"{self.total} problems: " if self.total > 1 else ""
        super().__init__(head + "; ".join(problems) + more)


class RawTensor(NamedTuple):
    """A column as it came."""

    datatype: str
    """Protocol datatype; empty for V1 instances, whose JSON values carry their own type."""
    shape: Sequence[int] | None
    """None: one-dimensional, as long as the data."""
    data: Any
    """`bytes` in the protocol's raw form, a NumPy array, or a (nested) list."""


@dataclass(slots=True, eq=False)
class Transactions:
    """Checked transactions, one list per column, in request order."""

    ids: list[bytes]
    seconds: list[int]
    customers: list[bytes]
    terminals: list[bytes]
    amounts: list[float]
    card_present: list[int]
    """1 for CP, 0 for CNP."""
    shipping_lat: list[float]
    shipping_long: list[float]
    billing_lat: list[float]
    billing_long: list[float]
    terminal_lat: list[float]
    terminal_long: list[float]
    frauds: list[int] | None
    """1, 0 or -1 (not known); None: the column was not there."""
    integer_ids: bool
    """The ids came as integers, and go back as integers."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True, eq=False)
class Labels:
    """Outcomes of transactions: `frauds` holds 1 (confirmed fraud), 0 (not fraud) or -1 (not known; ignored)."""

    ids: list[bytes]
    seconds: list[int]
    customers: list[bytes]
    terminals: list[bytes]
    frauds: list[int]
    integer_ids: bool = False

    def __len__(self) -> int:
        return len(self.ids)
