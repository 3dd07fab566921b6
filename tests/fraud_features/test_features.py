"""One function computes the features, for one row and for many, for training and for serving, with the same bits."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fraud_support as support
from deferred import Deferred
from fraud_features import features
from fraud_features.column_reader import parse
from fraud_features.evaluation import average_precision, recall_at_review_rate
from fraud_features.features import FEATURE_NAMES, batch_of, chord_km, compute
from fraud_features.sample import Sample, load_history, load_sample, raw_tensors, save_history, save_sample
from fraud_features.schema import Labels, Transactions
from fraud_features.store import FeatureStore, MemoryStore, Row
from fraud_features.stream import replay
from fraud_support import NOW_S, SERVICE
from representative import every

RedisStore = Deferred("fraud_features.redis_store", "RedisStore")


def bits(array: np.ndarray) -> np.ndarray:
    assert array.dtype == np.float32
    return array.view(np.uint32)


def computed(transactions: Transactions, rows: Sequence[Row]) -> np.ndarray:
    return compute(transactions, batch_of(transactions), rows)


async def served(store: FeatureStore, sample: Sample, rows: int) -> np.ndarray:
    """As the transformer does, with outcomes reported after each request."""
    parts = []
    for part in sample.batches(rows):
        transactions = parse(raw_tensors(part), NOW_S)
        parts.append(computed(transactions, await store.update(batch_of(transactions))))
        t = transactions
        await store.record_labels(Labels(t.ids, t.seconds, t.customers, t.terminals, part.labels.tolist()))
    return np.concatenate(parts)


def test_scalars_and_arrays_give_the_same_bits(monkeypatch: pytest.MonkeyPatch):
    columns = support.values(800, seed=3, step_s=8_000)
    columns["shipping_lat"][5] = columns["terminal_long"][9] = math.nan
    columns["amount"][0] = 0.0
    columns["datetime"][50] -= 500_000  # late
    transactions = parse(support.tensors(columns), NOW_S)
    rows = MemoryStore().update_now(batch_of(transactions))
    monkeypatch.setattr(features, "_SCALAR_ROWS", 0)
    arrays = computed(transactions, rows)
    monkeypatch.setattr(features, "_SCALAR_ROWS", 1000)
    scalars = computed(transactions, rows)
    assert np.array_equal(bits(arrays), bits(scalars))
    assert np.isnan(arrays).any()
    assert not np.isinf(arrays).any()


def test_a_transaction_worked_out_by_hand():
    columns = {
        "transaction_id": ["a", "b"],
        # Friday 2025-02-28 23:00 UTC and Saturday 05:00, six hours on.
        "datetime": [1_740_783_600, 1_740_805_200],
        "customer_id": ["C", "C"],
        "terminal_id": ["T", "U"],
        "amount": [10.0, 50.0],
        "type": ["CP", "CNP"],
        "shipping_lat": [0.0, 0.0],
        "shipping_long": [0.0, 1.0],
        "billing_lat": [0.0, 0.0],
        "billing_long": [0.0, 0.0],
        "terminal_lat": [0.0, 3.0],
        "terminal_long": [0.0, 0.0],
    }
    transactions = parse(support.tensors(columns), NOW_S)
    got = computed(transactions, MemoryStore().update_now(batch_of(transactions)))
    first, second = (dict(zip(FEATURE_NAMES, row.tolist(), strict=True)) for row in got)
    km = 111.195  # one degree of a great circle
    assert first["card_present"] == 1
    assert (first["is_night"], first["is_weekend"]) == (0, 0)
    assert math.isnan(first["seconds_since_last"])
    assert first["amount_to_customer_mean_30d"] == 1
    assert second["amount"] == 50
    assert second["amount_to_customer_mean_7d"] == second["amount_to_customer_mean_30d"] == 5
    assert second["amount_to_terminal_mean_30d"] == 1
    assert second["card_present"] == 0
    assert (second["is_night"], second["is_weekend"]) == (1, 1)
    assert second["hour_sin"] == pytest.approx(math.sin(2 * math.pi * 5 / 24))
    assert second["weekday_cos"] == pytest.approx(math.cos(2 * math.pi * 5 / 7))
    assert second["seconds_since_last"] == 6 * 3600
    assert second["last_place_km"] == second["shipping_home_km"] == pytest.approx(km, rel=1e-4)
    assert second["last_place_kmh"] == pytest.approx(km / 6, rel=1e-4)
    assert second["terminal_home_km"] == pytest.approx(3 * km, rel=1e-3)
    assert second["customer_count_1h"] == 1
    assert second["customer_count_1d"] == 2
    assert second["customer_mean_1d"] == 30
    assert second["terminal_count_30d"] == 1


def test_distance_is_the_haversine_chord():
    r = np.random.default_rng(0)
    for lat1, long1, lat2, long2 in r.uniform([-90, -180] * 2, [90, 180] * 2, (2000, 4)):
        p, q = math.radians(lat1), math.radians(lat2)
        h = math.sin((q - p) / 2) ** 2 + math.cos(p) * math.cos(q) * math.sin(math.radians(long2 - long1) / 2) ** 2
        assert chord_km(lat1, long1, lat2, long2) == pytest.approx(2 * 6371.0088 * math.sqrt(h), rel=1e-7, abs=1e-6)
    assert math.isnan(chord_km(math.nan, 0.0, 0.0, 0.0))
    assert chord_km(10.0, 179.9, 10.0, -179.9) < 30


def test_the_ensemble_and_the_readme_name_the_features_in_order():
    spec = yaml.safe_load((SERVICE / "model" / "ensemble.yaml").read_text())
    assert spec["inputs"][0]["columns"] == list(FEATURE_NAMES)
    assert spec["inputs"][0]["shape"] == [-1, len(FEATURE_NAMES)]
    readme = (support.ROOT / "transformers" / "fraud_features" / "README.md").read_text()
    places = [readme.index(f"`{name}`") for name in FEATURE_NAMES]
    assert places == sorted(places)


@functools.cache
def _replayed() -> tuple[Any, Any]:
    stream = load_history(SERVICE / "data").part(0, 4000)
    return stream, replay(stream, MemoryStore())


@pytest.mark.parametrize("rows", every(3, [7, 1, 4000]))
async def test_training_and_serving_compute_the_same_bits(rows: int):
    """The skew test: the trainer's replay of a stream, and the service's way, one by one and in batches."""
    stream, offline = _replayed()
    assert np.array_equal(bits(await served(MemoryStore(), stream, rows)), bits(offline))


@pytest.mark.redis
@pytest.mark.slow
async def test_redis_serves_the_bits_of_training(tmp_path: Path):
    stream = load_history(SERVICE / "data").part(0, 3000)
    offline = replay(stream, MemoryStore())
    with support.redis_server(tmp_path) as url:
        for rows, upto in ((3000, 3000), (1, 400)):
            store = RedisStore(url, prefix=f"r{rows}")
            online = await served(store, stream.part(0, upto), rows)
            assert np.array_equal(bits(online), bits(offline[:upto]))
            await store.close()


def test_committed_transactions_survive_writing_and_reading(tmp_path: Path):
    sample, history = load_sample(SERVICE / "data"), load_history(SERVICE / "data").part(100, 3100)
    assert len(sample) > 1900
    assert sample.labels.sum() > 50
    save_sample(tmp_path / "transactions.csv.gz", sample)
    save_history(tmp_path / "history.npz", history)
    for saved, back in ((sample, load_sample(tmp_path)), (history, load_history(tmp_path))):
        assert np.array_equal(saved.labels, back.labels)
        for name in saved.columns:
            assert np.array_equal(saved.columns[name], back.columns[name]), name
    assert (tmp_path / "transactions.csv.gz").read_bytes() == (SERVICE / "data" / "transactions.csv.gz").read_bytes()


def test_the_history_ends_before_the_sample_begins_and_shares_no_id():
    sample, history = load_sample(SERVICE / "data"), load_history(SERVICE / "data")
    assert history.columns["datetime"][-1] < sample.columns["datetime"][0]
    assert not set(history.columns["transaction_id"]) & set(sample.columns["transaction_id"])


def test_average_precision_is_the_step_wise_area():
    labels = np.array([1, 0, 1, 1, 0, 0])
    scores = np.array([0.9, 0.8, 0.7, 0.7, 0.2, 0.1])
    # Steps: 1 of 1 at 0.9; 3 of 4 at 0.7 (two equal scores are one step).
    assert average_precision(labels, scores) == pytest.approx(1 / 3 * 1 + 2 / 3 * 3 / 4)
    # From the other end: 2 of 4 frauds in at -0.7, and the last at the very end, 3 of 6.
    assert average_precision(labels, -scores) == pytest.approx(2 / 3 * 2 / 4 + 1 / 3 * 3 / 6)
    assert math.isnan(average_precision(np.zeros(3), scores[:3]))
    assert recall_at_review_rate(labels, scores, 1 / 6) == pytest.approx(1 / 3)
