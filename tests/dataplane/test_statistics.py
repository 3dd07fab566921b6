"""What is counted of each batch, in numbers worked out by hand."""

from __future__ import annotations

import time

import pytest

from serinus.dataplane.batching.pending_request import DONE, RUNNING, Batch, BatchKey, PendingRequest
from serinus.dataplane.telemetry.histogram import LATENCY_BUCKETS_S, ROW_BUCKETS, Histogram
from serinus.dataplane.telemetry.statistics import ModelStatistics, added
from serinus.errors import Cancelled, InvalidInput, TimedOut
from serinus.model import Call
from serinus.protocol.types import InferRequest


def pending(arrived: float, rows: int = 1, state: int = RUNNING) -> PendingRequest:
    made = PendingRequest(
        InferRequest("m", ()), lambda _: None, arrived, None, None, BatchKey(None, (), Call()), (), rows, 0
    )
    made.state = state
    return made


def batch_of(*members: PendingRequest, started: float, infer: tuple[float, float], rows: int | None = None) -> Batch:
    batch = Batch(members, sum(m.rows for m in members) if rows is None else rows, started)
    batch.infer_from, batch.infer_to = infer
    return batch


def durations(statistics: ModelStatistics) -> dict[str, tuple[int, int]]:
    told = statistics.describe()["inference_stats"]
    return {name: (told[name]["count"], round(told[name]["ns"] / 1e6)) for name in told}


def test_each_stage_of_a_batch_counts_for_each_of_its_requests():
    statistics = ModelStatistics("m", "3")
    before = time.time_ns() // 1_000_000
    members = pending(1.0, rows=2), pending(1.5, rows=3)
    statistics.answered(batch_of(*members, started=2.0, infer=(2.25, 3.0)), 3.5)
    assert durations(statistics) == {
        "success": (2, 2500 + 2000),
        "fail": (0, 0),
        "queue": (2, 1000 + 500),
        "compute_input": (2, 2 * 250),
        "compute_infer": (2, 2 * 750),
        "compute_output": (2, 2 * 500),
        "cache_hit": (0, 0),
        "cache_miss": (0, 0),
    }
    told = statistics.describe()
    assert (told["name"], told["version"]) == ("m", "3")
    assert (told["inference_count"], told["execution_count"]) == (5, 1)
    assert before <= told["last_inference"] <= time.time_ns() // 1_000_000
    assert told["batch_stats"] == [
        {
            "batch_size": 5,
            "compute_input": {"count": 1, "ns": 250_000_000},
            "compute_infer": {"count": 1, "ns": 750_000_000},
            "compute_output": {"count": 1, "ns": 500_000_000},
        }
    ]
    assert statistics.batch_rows.total == 5


def test_a_member_that_was_given_up_counts_for_nothing_and_its_batch_still_ran():
    statistics = ModelStatistics("m", "")
    members = pending(1.0, state=DONE), pending(1.0, rows=4)
    statistics.answered(batch_of(*members, started=2.0, infer=(2.0, 3.0)), 3.0)
    assert (statistics.success_count, statistics.rows, statistics.executions) == (1, 4, 1)
    assert durations(statistics)["success"] == (1, 2000)
    assert durations(statistics)["compute_infer"] == (1, 1000)
    assert [row["batch_size"] for row in statistics.describe()["batch_stats"]] == [5]


def test_batches_of_one_size_add_up_and_sizes_are_in_order():
    statistics = ModelStatistics("m", "")
    for rows in (7, 2, 7):
        statistics.answered(batch_of(pending(0.0, rows=rows), started=0.0, infer=(0.5, 1.5)), 3.5)
    told = statistics.describe()["batch_stats"]
    assert [(row["batch_size"], row["compute_input"]["count"]) for row in told] == [(2, 1), (7, 2)]
    assert [row["compute_output"]["ns"] for row in told] == [2_000_000_000, 4_000_000_000]
    assert statistics.describe()["version"] == "1", "an unversioned model's is Triton's first"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(513, 1024), (1024, 1024), (1025, 2048), (5, 5), (512, 512)],
    ids=["rounded up", "a power of two", "beyond it", "one of the first", "the last of the first"],
)
def test_beyond_512_sizes_further_ones_are_rounded_up_to_a_power_of_two(rows: int, expected: int):
    statistics = ModelStatistics("m", "")
    for size in range(1, 513):
        statistics.answered(batch_of(pending(0.0, rows=size), started=0.0, infer=(0.0, 0.0)), 0.0)
    assert len(statistics.batches) == 512
    statistics.answered(batch_of(pending(0.0, rows=rows), started=0.0, infer=(0.0, 0.0)), 0.0)
    assert statistics.batches[expected][0] == (2 if expected <= 512 else 1)
    assert len(statistics.batches) == (512 if expected <= 512 else 513)


def test_a_batch_of_no_rows_has_its_place_when_sizes_are_rounded():
    statistics = ModelStatistics("m", "")
    for size in range(1, 513):
        statistics.answered(batch_of(pending(0.0, rows=size), started=0.0, infer=(0.0, 0.0)), 0.0)
    statistics.answered(batch_of(pending(0.0, rows=0), started=0.0, infer=(0.0, 0.0)), 0.0)
    assert statistics.batches[1][0] == 2


def test_failures_count_by_reason_and_with_the_time_that_they_took():
    statistics = ModelStatistics("m", "")
    statistics.failed(TimedOut("late"), pending(1.0), 1.5)
    statistics.failed(TimedOut("late"), pending(1.0), 1.25)
    statistics.failed(InvalidInput("x"), None, 9.0)
    statistics.failed(Cancelled("gone"), pending(2.0), 2.0)
    assert statistics.failures == {"timeout": 2, "invalid": 1, "cancelled": 1}
    assert durations(statistics)["fail"] == (4, 750)
    assert durations(statistics)["success"] == (0, 0)


@pytest.mark.parametrize("bounds", [LATENCY_BUCKETS_S, ROW_BUCKETS], ids=["seconds", "rows"])
def test_a_value_counts_in_the_first_bucket_that_holds_it_its_bound_included(bounds: tuple[float, ...]):
    assert list(bounds) == sorted(set(bounds))
    histogram = Histogram(bounds)
    for bound in bounds:
        histogram.observe(bound)
    assert histogram.counts == [1] * len(bounds) + [0]
    histogram.observe(bounds[-1] * 1.001)
    histogram.observe(0.0)
    assert (histogram.counts[-1], histogram.counts[0]) == (1, 2)
    weighted = Histogram(bounds)
    weighted.observe(bounds[2], 3)
    assert (weighted.counts[2], weighted.total) == (3, pytest.approx(3 * bounds[2]))


def test_queue_and_request_times_are_in_the_buckets_of_each_request():
    statistics = ModelStatistics("m", "")
    statistics.answered(batch_of(pending(0.0), pending(0.9), started=1.0, infer=(1.0, 1.0)), 2.0)
    queue = dict(zip((*LATENCY_BUCKETS_S, float("inf")), statistics.queue.counts, strict=True))
    request = dict(zip((*LATENCY_BUCKETS_S, float("inf")), statistics.request.counts, strict=True))
    assert (queue[1.0], queue[0.1] + queue[0.25]) == (1, 1)
    assert request[2.5] == 2


def test_stages_of_a_hosted_class_have_a_histogram_each():
    statistics = ModelStatistics("m", "")
    for name, seconds in (("predict", 1.0), ("predict", 2.0), ("explain", 4.0)):
        statistics.stage(name, seconds)
    assert {name: (sum(h.counts), h.total) for name, h in statistics.stages.items()} == {
        "predict": (2, 3.0),
        "explain": (1, 4.0),
    }


def test_two_processes_statistics_add_up_and_the_newest_inference_is_the_last():
    first, second = ModelStatistics("m", "1"), ModelStatistics("m", "1")
    for statistics, sizes in ((first, (1, 2)), (second, (2, 3, 3))):
        for size in sizes:
            statistics.answered(batch_of(pending(0.0, rows=size), started=0.5, infer=(0.5, 1.0)), 1.0)
    first.failed(TimedOut("late"), pending(0.0), 1.0)
    first.last_inference_ms, second.last_inference_ms = 50, 40
    total = added(first.describe(), second.describe())
    assert (total["inference_count"], total["execution_count"], total["last_inference"]) == (11, 5, 50)
    assert total["inference_stats"]["success"]["count"] == 5
    assert total["inference_stats"]["fail"] == {"count": 1, "ns": 1_000_000_000}
    assert [(row["batch_size"], row["compute_infer"]["count"]) for row in total["batch_stats"]] == [
        (1, 1),
        (2, 2),
        (3, 2),
    ]
    assert [row["compute_infer"]["ns"] for row in total["batch_stats"]] == [500_000_000, 1_000_000_000, 1_000_000_000]
    assert added(second.describe(), first.describe())["batch_stats"] == total["batch_stats"]
    assert total["name"] == "m"
    assert total["response_stats"] == {}
