"""The feature store's rules, held against brute force, for the in-process store and for a real Redis alike."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

import fraud_support as support
from deferred import Deferred
from fraud_features.schema import Labels
from fraud_features.store import AGGREGATES, DELAY_DAYS, KEEP_DAYS, Batch, FeatureStore, MemoryStore
from fraud_support import START_S, Oracle
from representative import every

RedisStore = Deferred("fraud_features.redis_store", "RedisStore")
redis_store = Deferred("fraud_features.redis_store")

DAY = 86400
NOON = START_S // DAY * DAY + 12 * 3600


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with support.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


_prefixes = iter(range(10**6))


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[FeatureStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    opened = RedisStore(request.getfixturevalue("redis_url"), prefix=f"p{next(_prefixes)}")
    yield opened
    await opened.close()


def one(seconds: int, *, id: str = "", customer: str = "C", terminal: str = "T", cents: int = 1000) -> Batch:
    key = id or f"{seconds}-{customer}-{terminal}"
    return Batch([key.encode()], [seconds], [customer.encode()], [terminal.encode()], [cents], [1.5], [-2.25])


def named(row: Any) -> dict[str, float]:
    return dict(zip(AGGREGATES, row, strict=True))


def labels(batch: Batch, frauds: list[int]) -> Labels:
    return Labels(batch.ids, batch.seconds, batch.customers, batch.terminals, frauds)


async def test_the_first_transaction_sees_itself_alone(store: FeatureStore):
    got = named((await store.update(one(NOON)))[0])
    for who in ("customer", "terminal"):
        assert [got[f"{who}_count_{w}"] for w in ("1h", "1d", "7d", "30d")] == [1, 1, 1, 1]
        assert [got[f"{who}_cents_{w}"] for w in ("1d", "7d", "30d")] == [1000] * 3
        assert [got[f"{who}_known_{w}"] for w in ("1d", "7d", "30d")] == [0] * 3
    assert all(math.isnan(got[name]) for name in ("last_seconds", "last_lat", "last_long"))


async def test_the_next_one_sees_the_last_time_and_place(store: FeatureStore):
    await store.update(one(NOON))
    got = named((await store.update(one(NOON + 60)))[0])
    assert (got["last_seconds"], got["last_lat"], got["last_long"]) == (NOON, 1.5, -2.25)
    assert got["customer_count_1h"] == 2


async def test_an_id_is_counted_once_and_answered_alike(store: FeatureStore):
    first = await store.update(one(NOON, id="a"))
    await store.update(one(NOON + 5, id="b"))
    again = await store.update(one(NOON, id="a"))
    assert np.array_equal(first, again, equal_nan=True)
    assert named((await store.update(one(NOON + 9, id="c")))[0])["customer_count_1d"] == 3
    assert (await store.stats()).repeated == 1


async def test_rows_of_one_call_see_the_earlier_ones_in_time_order(store: FeatureStore):
    rows = [one(NOON + s, id=str(s)) for s in (120, 0, 60)]
    joined = Batch(*([r.__getattribute__(f)[0] for r in rows] for f in Batch.__slots__))
    got = await store.update(joined)
    assert [named(row)["customer_count_1h"] for row in got] == [3, 1, 2]


async def test_windows_forget_tile_by_tile(store: FeatureStore):
    await store.update(one(NOON))
    for later, window, count in [
        (3000, "1h", 2), (3600, "1h", 2), (23 * 3600, "1d", 4), (24 * 3600, "1d", 3), (6 * DAY, "7d", 6), (7 * DAY, "7d", 4),
    ]:  # fmt: skip
        got = named((await store.update(one(NOON + later)))[0])
        assert got[f"customer_count_{window}"] == count, later


async def test_a_late_event_counts_in_its_own_tile_and_leaves_the_last_place(store: FeatureStore):
    await store.update(one(NOON))
    await store.update(one(NOON + 2 * DAY))
    late = named((await store.update(one(NOON + DAY)))[0])
    assert late["customer_count_7d"] == 2
    assert late["customer_count_1d"] == 1
    assert late["last_seconds"] == NOON + 2 * DAY
    after = named((await store.update(one(NOON + 2 * DAY + 60)))[0])
    assert after["customer_count_7d"] == 4
    assert after["last_seconds"] == NOON + 2 * DAY


async def test_an_event_older_than_all_tiles_sees_itself_and_is_not_counted(store: FeatureStore):
    await store.update(one(NOON + KEEP_DAYS * DAY))
    old = named((await store.update(one(NOON, cents=7)))[0])
    assert (old["customer_count_30d"], old["customer_cents_30d"]) == (1, 7)
    assert named((await store.update(one(NOON + KEEP_DAYS * DAY + 1)))[0])["customer_count_30d"] == 2


async def test_the_last_place_is_forgotten_after_all_windows(store: FeatureStore):
    await store.update(one(NOON))
    assert math.isnan(named((await store.update(one(NOON + KEEP_DAYS * DAY + 1)))[0])["last_seconds"])


async def test_risk_is_seen_a_week_later_and_never_before(store: FeatureStore):
    fraud = one(NOON, id="bad")
    await store.update(fraud)
    await store.update(one(NOON + 60, id="good"))
    assert await store.record_labels(labels(fraud, [1])) == [True]
    for days, known, frauds in [(1, 0, 0), (DELAY_DAYS - 1, 0, 0), (DELAY_DAYS, 2, 1)]:
        got = named((await store.update(one(NOON + days * DAY)))[0])
        for who in ("customer", "terminal"):
            assert (got[f"{who}_known_1d"], got[f"{who}_fraud_1d"]) == (known, frauds), days
    month = named((await store.update(one(NOON + (DELAY_DAYS + 29) * DAY)))[0])
    assert month["terminal_fraud_30d"] == 1
    assert named((await store.update(one(NOON + (DELAY_DAYS + 30) * DAY)))[0])["terminal_fraud_30d"] == 0


async def test_a_label_counts_once_and_may_be_taken_back(store: FeatureStore):
    fraud = one(NOON)
    await store.update(fraud)
    answers = [(await store.record_labels(labels(fraud, [v])))[0] for v in (1, 1, -1, 0, 0, 1)]
    assert answers == [True, False, False, True, False, True]
    assert named((await store.update(one(NOON + DELAY_DAYS * DAY)))[0])["terminal_fraud_7d"] == 1


async def test_a_label_of_what_is_not_remembered_changes_nothing(store: FeatureStore):
    await store.update(one(NOON))
    assert await store.record_labels(labels(one(NOON, customer="X", terminal="Y"), [1])) == [False]
    assert await store.record_labels(labels(one(NOON - 3 * DAY), [1])) == [False]
    assert await store.record_labels(labels(one(NOON + 3 * DAY), [1])) == [False]
    assert await store.record_labels(labels(one(NOON, id="a"), [1])) == [True]
    assert await store.record_labels(labels(one(NOON, id="b"), [1])) == [False], "frauds may not outnumber transactions"


async def test_stats_count_what_is_held(store: FeatureStore):
    await store.update(support.batch(support.values(50, customers=7, terminals=3)))
    await store.update(one(NOON))
    await store.record_labels(labels(one(NOON), [1]))
    stats = await store.stats()
    assert (stats.customers, stats.terminals, stats.ids, stats.labels) == (8, 4, 51, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", every(2, range(4)))
async def test_it_agrees_with_brute_force_also_out_of_order(store: FeatureStore, seed: int):
    oracle, r = Oracle(), np.random.default_rng(seed)
    for call in range(12):
        batch = support.batch(support.values(int(r.choice([1, 3, 40, 300])), seed * 100 + call, step_s=20_000))
        late = r.choice([0, 0, 0, 500, 4000, 90_000, 10 * DAY, 36 * DAY], len(batch))
        batch.seconds = [s - int(v) for s, v in zip(batch.seconds, late, strict=True)]
        got = await store.update(batch)
        order = batch.order()
        want: list[Any] = [None] * len(batch)
        for at in order:
            want[at] = oracle.add(batch, at)
        assert np.array_equal(np.array(got, float), np.array(want, float), equal_nan=True)
        frauds = (r.random(len(batch)) < 0.2).astype(int).tolist()
        changed = await store.record_labels(labels(batch, frauds))
        for at, held in enumerate(changed):
            if held:
                oracle.label(batch.customers[at], batch.terminals[at], batch.seconds[at])


async def test_a_large_batch_lets_others_run_between_slices():
    store, turns = MemoryStore(slice_rows=10), 0
    task = asyncio.ensure_future(store.update(support.batch(support.values(100))))
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 10
    assert len(await task) == 100


async def test_memory_is_bounded_by_number():
    store = MemoryStore(max_entities=10, max_ids=20)
    await store.update(support.batch(support.values(500, customers=100, terminals=100)))
    stats = await store.stats()
    assert (stats.customers, stats.terminals, stats.ids) == (10, 10, 20)
    assert stats.evicted > 0


async def test_memory_is_bounded_by_event_time():
    store = MemoryStore(id_window_s=2 * DAY)
    for day in range(120):
        for n in range(5):
            await store.update(one(NOON + day * DAY + n, customer=f"C{day}-{n}", terminal=f"T{day}-{n}"))
    stats = await store.stats()
    assert stats.customers <= 5 * (KEEP_DAYS + 1)
    assert stats.terminals <= 5 * (KEEP_DAYS + 1)
    assert stats.ids <= 5 * 3


@pytest.mark.redis
async def test_two_replicas_share_one_redis_and_lose_no_update(redis_url: str):
    stores = [RedisStore(redis_url, prefix="shared") for _ in range(2)]
    await asyncio.gather(*(s.update(one(NOON, id=f"{k}-{n}")) for n in range(40) for k, s in enumerate(stores)))
    got = await asyncio.gather(*(s.update(one(NOON + 1, id="same")) for s in stores))
    assert named(got[0][0])["customer_count_1h"] == 81
    assert got[0] == got[1], "a retry at another replica is the same transaction"
    for s in stores:
        await s.close()


@pytest.mark.redis
async def test_redis_forgets_by_expiry_and_knows_its_script_again_after_a_flush(redis_url: str):
    import redis.asyncio as redis

    store, client = RedisStore(redis_url, prefix="expiry", id_window_s=100), redis.from_url(redis_url)
    await store.update(one(NOON))
    await store.record_labels(labels(one(NOON), [1]))
    ttls = {k.split(b":")[1]: await client.ttl(k) async for k in client.scan_iter(match="{expiry}:*")}
    assert ttls.keys() == {b"c", b"t", b"i", b"l"}
    assert 0 < ttls[b"i"] <= 100
    assert all(0 < ttls[k] <= (KEEP_DAYS + 1) * DAY for k in (b"c", b"t", b"l"))
    await client.script_flush()
    assert named((await store.update(one(NOON + 1)))[0])["customer_count_1h"] == 2
    await client.script_flush()
    many = await store.update(support.batch(support.values(700)))
    assert len(many) == 700
    await client.aclose()
    await store.close()


async def test_a_redis_that_does_not_answer_is_named_without_its_password():
    store = RedisStore("redis://:secret@127.0.0.1:1/0", timeout_s=0.5)
    for call in (store.update(one(NOON)), store.record_labels(labels(one(NOON), [1])), store.stats()):
        with pytest.raises(redis_store.StoreUnavailable) as caught:
            await call
        assert "127.0.0.1:1/0 does not answer" in str(caught.value)
        assert "secret" not in str(caught.value)
    await store.close()
