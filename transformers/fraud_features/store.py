"""The online feature store: what is remembered of customers and terminals, and the in-process form of it.

Theory of operation. An entity (a customer or a terminal) is remembered as counts in calendar tiles: ten minutes, hours and
days. A window is a run of tiles that ends with the transaction's own: "1 h" the last 6 of ten minutes, "1 d" the last 24
hours, "7 d" and "30 d" the last days, so it covers up to one tile less than its name says. Tiles bound the memory of an
entity whatever its traffic (a terminal with a million transactions a day costs what one with ten does), and sums in whole cents
add exactly in any order, so that every implementation returns the same numbers to the last bit.

Risk looks at windows that end `DELAY_DAYS` before the transaction: outcomes are only known after a week or so, and a model
trained on fresher ones would expect in service what it cannot have there (Handbook, 3.5.3).

Rules that every implementation keeps, and `tests/fraud_features/test_store.py` holds them to:

- A transaction counts itself: every count is at least 1.
- An id is counted once. While it is remembered, a repeat returns the aggregates of the first time, bit by bit.
- Rows of one call see the rows before them, in time order; rows of equal time in the order they came.
- A late event (older than its entity's newest) is counted in its own tile, and sees the tiles up to its own; it does not move
  the last time and place. Older than `KEEP_DAYS` tiles before the newest it is not counted, and sees itself alone.
- The last time and place are forgotten after `KEEP_DAYS` days, and an entity that has not moved for longer may be forgotten
  whole: only an event that late could tell the difference.

`MemoryStore` runs on the event loop and never awaits inside one row, so it needs no lock; large batches let other requests
run between slices. It is bounded three ways: by tiles per entity, by event time (what every window has left is dropped,
a few entries for every row added, so no sweep ever stalls a request), and by `max_entities` and `max_ids`, beyond
which the least recently touched go.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

from .schema import Labels

__all__ = ["AGGREGATES", "DELAY_DAYS", "KEEP_DAYS", "Batch", "FeatureStore", "MemoryStore", "Row", "StoreStats"]

DELAY_DAYS: Final = 7
"""Days until an outcome is taken as known (the Handbook's delay)."""
KEEP_DAYS: Final = 30 + DELAY_DAYS
"""Day tiles of an entity: the longest window and the delay."""
_TENS: Final = 6
_HOURS: Final = 24

_PER_ENTITY: Final = (
    "count_1h", "count_1d", "count_7d", "count_30d", "cents_1d", "cents_7d", "cents_30d",
    "known_1d", "known_7d", "known_30d", "fraud_1d", "fraud_7d", "fraud_30d",
)  # fmt: skip
AGGREGATES: Final[tuple[str, ...]] = (
    *(f"customer_{name}" for name in _PER_ENTITY),
    *(f"terminal_{name}" for name in _PER_ENTITY),
    "last_seconds",
    "last_lat",
    "last_long",
)
"""One row of aggregates. Whole numbers, but for the last three: the customer's previous time and place, NaN if none."""

Row = tuple[float, ...]
"""Aggregates of one transaction, in the order of `AGGREGATES`."""

_NAN: Final = float("nan")
_NO_LAST: Final[Row] = (_NAN, _NAN, _NAN)


@dataclass(slots=True, eq=False)
class Batch:
    """Transactions as the store sees them: one list per column, all of one length, already checked."""

    ids: list[bytes]
    seconds: list[int]
    customers: list[bytes]
    terminals: list[bytes]
    cents: list[int]
    lats: list[float]
    """Of the place where the customer was or had it sent to; degrees, NaN: not known."""
    longs: list[float]

    def __len__(self) -> int:
        return len(self.ids)

    def order(self) -> list[int] | range:
        """Row numbers in time order; rows of equal time stay as they came."""
        seconds = self.seconds
        if len(seconds) == 1:
            return range(1)
        return sorted(range(len(seconds)), key=seconds.__getitem__)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds. -1: this store cannot tell."""

    kind: str
    customers: int
    terminals: int
    ids: int
    """Transaction ids remembered for retries."""
    labels: int
    """Confirmed frauds remembered."""
    repeated: int
    """Transactions that came again and were not counted again, since the start."""
    evicted: int
    """Entities and ids dropped since the start, by age or by number."""


class FeatureStore(Protocol):
    """What `FraudFeatures` needs of a store."""

    async def update(self, batch: Batch) -> list[Row]:
        """Count the transactions, and return the aggregates of each, in the order they came."""
        ...

    async def record_labels(self, labels: Labels) -> list[bool]:
        """Record outcomes; True for each that changed what is known.

        A label is counted once, and may be taken back (1, then 0). It is attached to the day of its transaction at its
        customer and terminal; where neither is remembered any more nothing changes.
        """
        ...

    async def stats(self) -> StoreStats:
        """Count what is held."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


class _Entity:
    """Tiles of one customer or terminal. Lists run from the oldest tile to the newest, which is the last element."""

    __slots__ = (
        "day", "day_cents", "day_count", "day_fraud", "hour", "hour_cents", "hour_count",
        "last_lat", "last_long", "last_seconds", "ten", "ten_count",
    )  # fmt: skip

    def __init__(self, seconds: int) -> None:
        self.ten = seconds // 600
        self.hour = seconds // 3600
        self.day = seconds // 86400
        self.ten_count = [0] * _TENS
        self.hour_count = [0] * _HOURS
        self.hour_cents = [0] * _HOURS
        self.day_count = [0] * KEEP_DAYS
        self.day_cents = [0] * KEEP_DAYS
        self.day_fraud = [0] * KEEP_DAYS
        self.last_seconds = -1
        self.last_lat = _NAN
        self.last_long = _NAN

    def add(self, seconds: int, cents: int) -> Row:
        """Count one transaction and return this entity's aggregates at its time (`_PER_ENTITY`)."""
        day, hour, ten = seconds // 86400, seconds // 3600, seconds // 600
        if ten > self.ten:
            self._advance(day, hour, ten)
        at = KEEP_DAYS - 1 - (self.day - day)
        if at < 0:
            return (1, 1, 1, 1, cents, cents, cents, 0, 0, 0, 0, 0, 0)
        count, money, fraud = self.day_count, self.day_cents, self.day_fraud
        count[at] += 1
        money[at] += cents
        week, month, end = max(0, at - 6), max(0, at - 29), at + 1

        hour_at = _HOURS - 1 - (self.hour - hour)
        if hour_at >= 0:
            self.hour_count[hour_at] += 1
            self.hour_cents[hour_at] += cents
            count_1d = sum(self.hour_count[: hour_at + 1])
            cents_1d = sum(self.hour_cents[: hour_at + 1])
        else:
            count_1d, cents_1d = 1, cents
        ten_at = _TENS - 1 - (self.ten - ten)
        if ten_at >= 0:
            self.ten_count[ten_at] += 1
            count_1h = sum(self.ten_count[: ten_at + 1])
        else:
            count_1h = 1

        known = end - DELAY_DAYS  # the delayed windows end before this index
        if known > 0:
            known_week, known_month = max(0, known - 7), max(0, known - 30)
            delayed = (
                count[known - 1],
                sum(count[known_week:known]),
                sum(count[known_month:known]),
                fraud[known - 1],
                sum(fraud[known_week:known]),
                sum(fraud[known_month:known]),
            )
        else:
            delayed = (0, 0, 0, 0, 0, 0)
        return (
            count_1h,
            count_1d,
            sum(count[week:end]),
            sum(count[month:end]),
            cents_1d,
            sum(money[week:end]),
            sum(money[month:end]),
            *delayed,
        )

    def last(self, seconds: int, lat: float, long: float) -> Row:
        """Return the previous time and place, and take over this one if it is newer."""
        previous = self.last_seconds
        forgotten = previous < 0 or seconds - previous > KEEP_DAYS * 86400
        known = _NO_LAST if forgotten else (previous, self.last_lat, self.last_long)
        if seconds >= previous:
            self.last_seconds, self.last_lat, self.last_long = seconds, lat, long
        return known

    def label(self, seconds: int, change: int) -> bool:
        """Add `change` to the frauds of that day; False where it is not remembered: frauds never outnumber transactions."""
        at = KEEP_DAYS - 1 - (self.day - seconds // 86400)
        if not 0 <= at < KEEP_DAYS or not 0 <= self.day_fraud[at] + change <= self.day_count[at]:
            return False
        self.day_fraud[at] += change
        return True

    def _advance(self, day: int, hour: int, ten: int) -> None:
        """Move the newest tiles on, dropping as many at the old end."""
        self._shift((self.ten_count,), ten - self.ten)
        self.ten = ten
        if hour > self.hour:
            self._shift((self.hour_count, self.hour_cents), hour - self.hour)
            self.hour = hour
        if day > self.day:
            self._shift((self.day_count, self.day_cents, self.day_fraud), day - self.day)
            self.day = day

    @staticmethod
    def _shift(rings: tuple[list[int], ...], tiles: int) -> None:
        for ring in rings:
            size = len(ring)
            if tiles < size:
                del ring[:tiles]
                ring.extend([0] * tiles)
            else:
                ring[:] = [0] * size


class MemoryStore:
    """The in-process store. One per process: several workers or replicas that must share counts need Redis."""

    def __init__(
        self,
        *,
        max_entities: int = 500_000,
        max_ids: int = 250_000,
        id_window_s: int = 2 * 86400,
        slice_rows: int = 256,
    ) -> None:
        """Set the bounds.

        Args:
            max_entities: customers and, apart from them, terminals; ~2.5 kB each, so at most ~2.5 GB by default.
            max_ids: transaction ids remembered for retries; ~0.5 kB each.
            id_window_s: event time after which an id is forgotten.
            slice_rows: rows after which a large batch lets other requests run (~3 ms).
        """
        self._max_entities = max_entities
        self._max_ids = max_ids
        self._id_window_s = id_window_s
        self._slice_rows = slice_rows
        # Least recently touched first. OrderedDict, because popping a dict's first key again and again is quadratic.
        self._customers: OrderedDict[bytes, _Entity] = OrderedDict()
        self._terminals: OrderedDict[bytes, _Entity] = OrderedDict()
        self._ids: OrderedDict[bytes, tuple[int, Row]] = OrderedDict()
        self._labels: OrderedDict[bytes, int] = OrderedDict()
        self._newest = 0
        """Latest event time seen: the clock of eviction, so that a replay of last year evicts as last year did."""
        self._repeated = 0
        self._evicted = 0

    async def update(self, batch: Batch) -> list[Row]:
        """Count and look up; see `FeatureStore`."""
        n = len(batch)
        if n <= self._slice_rows:
            return self.update_now(batch)
        rows: list[Row] = [()] * n
        order = batch.order()
        for start in range(0, n, self._slice_rows):
            self._walk(batch, order[start : start + self._slice_rows], rows)
            await asyncio.sleep(0)
        return rows

    def update_now(self, batch: Batch, order: list[int] | range | None = None) -> list[Row]:
        """`update` without giving way, in time order or the one given: for training, and for rows of several requests."""
        rows: list[Row] = [()] * len(batch)
        self._walk(batch, batch.order() if order is None else order, rows)
        return rows

    async def record_labels(self, labels: Labels) -> list[bool]:
        """Record outcomes; see `FeatureStore`."""
        return self.record_labels_now(labels)

    def record_labels_now(self, labels: Labels) -> list[bool]:
        """`record_labels` without an event loop."""
        known = self._labels
        changed: list[bool] = []
        for at, fraud in enumerate(labels.frauds):
            key, seconds = labels.ids[at], labels.seconds[at]
            if fraud < 0 or (fraud == 1) == (key in known):
                changed.append(False)
                continue
            change = 1 if fraud else -1
            customer = self._customers.get(labels.customers[at])
            terminal = self._terminals.get(labels.terminals[at])
            held = customer.label(seconds, change) if customer else False
            held = (terminal.label(seconds, change) if terminal else False) or held
            if held and fraud:
                known[key] = seconds
            elif held:
                del known[key]
            changed.append(held)
        horizon = self._newest - (KEEP_DAYS + 1) * 86400
        while known and (next(iter(known.values())) < horizon or len(known) > self._max_ids):
            known.popitem(last=False)
            self._evicted += 1
        return changed

    async def stats(self) -> StoreStats:
        """Count what is held."""
        return StoreStats(
            "memory",
            len(self._customers),
            len(self._terminals),
            len(self._ids),
            len(self._labels),
            self._repeated,
            self._evicted,
        )

    async def close(self) -> None:
        """Nothing to give back."""

    def _walk(self, batch: Batch, order: list[int] | range, rows: list[Row]) -> None:
        ids, customers, terminals = self._ids, self._customers, self._terminals
        for at in order:
            key = batch.ids[at]
            repeat = ids.get(key)
            if repeat is not None:
                self._repeated += 1
                rows[at] = repeat[1]
                continue
            seconds, cents = batch.seconds[at], batch.cents[at]
            if seconds > self._newest:
                self._newest = seconds
            customer = self._entity(customers, batch.customers[at], seconds)
            terminal = self._entity(terminals, batch.terminals[at], seconds)
            rows[at] = row = (
                *customer.add(seconds, cents),
                *terminal.add(seconds, cents),
                *customer.last(seconds, batch.lats[at], batch.longs[at]),
            )
            ids[key] = (seconds, row)
            self._evict_ids()

    def _entity(self, entities: OrderedDict[bytes, _Entity], key: bytes, seconds: int) -> _Entity:
        entity = entities.get(key)
        if entity is not None:
            entities.move_to_end(key)
            return entity
        entity = entities[key] = _Entity(seconds)
        # Two out for one in: what is out of date goes faster than it can come, without ever sweeping.
        oldest_day = self._newest // 86400 - KEEP_DAYS
        for _ in range(2):
            first = next(iter(entities.values()))
            if first is entity or (first.day >= oldest_day and len(entities) <= self._max_entities):
                break
            entities.popitem(last=False)
            self._evicted += 1
        return entity

    def _evict_ids(self) -> None:
        ids, horizon = self._ids, self._newest - self._id_window_s
        for _ in range(2):
            if next(iter(ids.values()))[0] >= horizon and len(ids) <= self._max_ids:
                break
            ids.popitem(last=False)
            self._evicted += 1
