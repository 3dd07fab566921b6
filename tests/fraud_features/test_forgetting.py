"""Whom the in-process store forgets, in which order, and what the first transaction looks like; worked out by hand."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

import fraud_support as support
from fraud_features.column_reader import parse
from fraud_features.features import FEATURE_NAMES, batch_of, compute
from fraud_features.schema import Labels
from fraud_features.store import AGGREGATES, DELAY_DAYS, KEEP_DAYS, Batch, MemoryStore
from fraud_support import NOW_S, START_S

DAY = 86_400
NOON = START_S // DAY * DAY + DAY // 2


def one(seconds: int, customer: str, *, terminal: str = "", id: str = "", cents: int = 1000) -> Batch:
    key = id or f"{customer}-{seconds}"
    return Batch(
        [key.encode()], [seconds], [customer.encode()], [(terminal or customer).encode()], [cents], [1.0], [2.0]
    )


def add(store: MemoryStore, seconds: int, customer: str, **fields: object) -> dict[str, float]:
    (row,) = store.update_now(one(seconds, customer, **fields))  # type: ignore[arg-type]
    return dict(zip(AGGREGATES, row, strict=True))


def held(store: MemoryStore) -> tuple[list[str], list[str], list[str]]:
    return tuple([key.decode() for key in kept] for kept in (store._customers, store._terminals, store._ids))  # type: ignore[return-value]


def label(store: MemoryStore, batch: Batch, fraud: int) -> bool:
    return store.record_labels_now(Labels(batch.ids, batch.seconds, batch.customers, batch.terminals, [fraud]))[0]


def evicted(store: MemoryStore) -> int:
    return asyncio.run(store.stats()).evicted


def test_beyond_the_number_the_least_recently_touched_go_and_the_newcomer_stays():
    store = MemoryStore(max_entities=3)
    for n, who in enumerate("abcad"):
        add(store, NOON + n, who)
    assert held(store)[:2] == (["c", "a", "d"], ["c", "a", "d"]), "b was touched least recently; a has come again"
    assert evicted(store) == 2, "one customer and one terminal"
    add(store, NOON + 9, "b")
    assert held(store)[0] == ["a", "d", "b"]
    assert add(store, NOON + 10, "c")["customer_count_30d"] == 1, "who was forgotten begins anew"
    assert add(store, NOON + 11, "b")["customer_count_30d"] == 2


def test_customers_and_terminals_are_counted_apart():
    store = MemoryStore(max_entities=2)
    for n, who in enumerate("abc"):
        add(store, NOON + n, who, terminal="T")
    assert held(store)[:2] == (["b", "c"], ["T"])
    assert add(store, NOON + 9, "d", terminal="T")["terminal_count_30d"] == 4


def test_a_single_entity_may_be_all_that_is_held():
    store = MemoryStore(max_entities=1)
    for n, who in enumerate("abb"):
        add(store, NOON + n, who)
    assert held(store)[:2] == (["b"], ["b"])
    assert add(store, NOON + 5, "b")["customer_count_1h"] == 3


def test_who_has_not_moved_for_as_long_as_any_window_looks_back_is_forgotten_by_two_for_each_newcomer():
    store = MemoryStore()
    for n, who in enumerate("abc"):
        add(store, NOON + n, who)
    add(store, NOON + KEEP_DAYS * DAY, "d")
    assert held(store)[0] == ["a", "b", "c", "d"], "the oldest day that is kept"
    add(store, NOON + (KEEP_DAYS + 1) * DAY, "e")
    assert held(store)[0] == ["c", "d", "e"], "two out for one in"
    add(store, NOON + (KEEP_DAYS + 1) * DAY, "d")
    assert held(store)[0] == ["c", "e", "d"], "one who is known makes no room"
    add(store, NOON + (KEEP_DAYS + 1) * DAY, "f")
    assert held(store)[0] == ["e", "d", "f"]
    assert evicted(store) >= 2 * 3


def test_ids_go_by_age_and_by_number_the_oldest_first():
    store = MemoryStore(max_ids=3, id_window_s=100)
    for n in range(4):
        add(store, NOON + n, "a", id=f"i{n}")
    assert held(store)[2] == ["i1", "i2", "i3"]
    add(store, NOON + 102, "a", id="i4")
    assert held(store)[2] == ["i2", "i3", "i4"], "100 seconds old is within the window"
    add(store, NOON + 103, "a", id="i5")
    assert held(store)[2] == ["i3", "i4", "i5"]
    add(store, NOON + 150, "a", id="i6")
    assert held(store)[2] == ["i4", "i5", "i6"]
    assert add(store, NOON + 103, "a", id="i5")["customer_count_1h"] == 6, "a repeat is answered as the first time"
    assert add(store, NOON + 151, "a", id="i0")["customer_count_1h"] == 8, "a forgotten id is counted again"


def test_frauds_go_by_age_and_by_number_and_a_forgotten_one_may_be_told_again():
    store = MemoryStore(max_ids=2)
    batches = [one(NOON + n, "a", id=f"i{n}") for n in range(4)]
    for batch in batches:
        store.update_now(batch)
        assert label(store, batch, 1)
    assert [key.decode() for key in store._labels] == ["i2", "i3"]
    far = one(NOON + (KEEP_DAYS + 1) * DAY + 2, "b")
    store.update_now(far)
    before = evicted(store)
    assert label(store, far, 1)
    assert [key.decode() for key in store._labels] == ["i3", "b-" + str(far.seconds[0])]
    assert evicted(store) == before + 1
    add(store, NOON + (KEEP_DAYS + 1) * DAY + 4, "b")
    assert not label(store, one(NOON, "nobody"), 1)
    assert list(store._labels) == [far.ids[0]], "older than 38 days"


@pytest.mark.parametrize("who", ["customer", "terminal"])
def test_a_label_counts_where_one_of_the_two_is_remembered(who: str):
    store = MemoryStore()
    batch = one(NOON, "a", terminal="T")
    store.update_now(batch)
    (store._terminals if who == "customer" else store._customers).clear()
    assert label(store, batch, 1)
    assert not label(store, batch, 1)
    got = add(store, NOON + DELAY_DAYS * DAY, "a", terminal="T")
    assert (got["customer_fraud_7d"], got["terminal_fraud_7d"]) == ((1, 0) if who == "customer" else (0, 1))
    assert label(store, batch, 0), "and may be taken back"
    assert not store._labels


def test_a_large_call_is_walked_in_time_order_whatever_the_slice():
    columns = support.values(60, seed=4)
    whole, sliced = MemoryStore(), MemoryStore(slice_rows=7)
    columns["datetime"] = list(reversed(columns["datetime"]))
    batch = support.batch(columns)
    np.testing.assert_array_equal(asyncio.run(sliced.update(batch)), whole.update_now(batch))


def test_an_order_that_is_given_is_kept():
    batch = Batch([b"x", b"y"], [NOON + 1, NOON], [b"c"] * 2, [b"t"] * 2, [100, 200], [0.0] * 2, [0.0] * 2)
    first, second = MemoryStore().update_now(batch, range(2))
    assert (first[0], second[0]) == (1, 2)
    first, second = MemoryStore().update_now(batch)
    assert (first[0], second[0]) == (2, 1)


def test_of_two_places_at_one_time_the_later_told_is_the_last():
    store = MemoryStore()
    store.update_now(Batch([b"x"], [NOON], [b"c"], [b"t"], [1], [10.0], [20.0]))
    store.update_now(Batch([b"y"], [NOON], [b"c"], [b"t"], [1], [11.0], [21.0]))
    (row,) = store.update_now(Batch([b"z"], [NOON + KEEP_DAYS * DAY], [b"c"], [b"t"], [1], [0.0], [0.0]))
    assert row[-3:] == (NOON, 11.0, 21.0), "37 days to the second are not too long"


FIRST = {
    "amount_to_customer_mean_7d": 1.0,
    "amount_to_customer_mean_30d": 1.0,
    "amount_to_terminal_mean_30d": 1.0,
    "customer_count_7d": 1.0,
    "customer_mean_7d": 25.0,
    "customer_risk_7d": 0.0,
    "terminal_mean_7d": 25.0,
    "terminal_risk_7d": 0.0,
}


@pytest.mark.parametrize("amount", [25.0, 0.0])
def test_the_first_transaction_is_as_usual_in_every_ratio(amount: float):
    columns = {name: values[:1] for name, values in support.values(1, seed=1).items()}
    columns["amount"] = [amount]
    transactions = parse(support.tensors(columns), NOW_S)
    batch = batch_of(transactions)
    (row,) = compute(transactions, batch, MemoryStore().update_now(batch))
    got = dict(zip(FEATURE_NAMES, row.tolist(), strict=True))
    expected = {name: amount if value == 25.0 else value for name, value in FIRST.items()}
    assert {name: got[name] for name in FIRST} == expected
    assert math.isnan(got["seconds_since_last"])


def test_ratios_compare_with_what_was_before_in_their_own_window():
    """10 eight days ago, 20 two days ago, now 90: 90/20 in a week, 90/15 in a month."""
    columns = {name: values[:1] * 3 for name, values in support.values(1, seed=1).items()}
    columns |= {
        "transaction_id": ["a", "b", "c"],
        "datetime": [NOON, NOON + 6 * DAY, NOON + 8 * DAY],
        "amount": [10.0, 20.0, 90.0],
        "terminal_id": ["T", "T", "U"],
    }
    transactions = parse(support.tensors(columns), NOW_S)
    batch = batch_of(transactions)
    got = compute(transactions, batch, MemoryStore().update_now(batch))[2]
    named = dict(zip(FEATURE_NAMES, got.tolist(), strict=True))
    assert named["amount_to_customer_mean_7d"] == pytest.approx(4.5)
    assert named["amount_to_customer_mean_30d"] == pytest.approx(6.0)
    assert named["amount_to_terminal_mean_30d"] == 1.0
    assert named["customer_mean_7d"] == 55.0
    assert named["customer_mean_30d"] == 40.0
