"""The metrics page and the statistics extension tell what happened."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dataplane_support import Doubler, outcomes, rows_of, serving
from serinus import ModelSettings, RequestModel
from serinus.dataplane.batching.pending_request import Batch
from serinus.dataplane.telemetry.metrics import Family, Metrics
from serinus.dataplane.telemetry.statistics import ModelStatistics
from serinus.errors import Overloaded


def parsed(page: bytes) -> dict[tuple[str, frozenset[Any]], float]:
    """Samples by name and labels; the parser refuses a page that is not well formed."""
    samples: dict[Any, float] = {}
    for family in text_string_to_metric_families(page.decode()):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return samples


def value(samples: dict[Any, float], name: str, **labels: str) -> float:
    # The parser adds "_total" to counters that were named before that became the custom.
    found = samples.get((name, frozenset(labels.items())))
    return samples[f"{name}_total", frozenset(labels.items())] if found is None else found


async def busy_page() -> tuple[bytes, Any, dict[str, Any]]:
    """A page, its snapshot and its statistics after 4 good requests (7 rows) in one batch, one bad and one misfit."""
    async with serving(Doubler, ModelSettings(name="m", version="1")) as plane:
        await outcomes(plane, rows_of(1, 2), rows_of(2, 1), rows_of(3, 3), rows_of(4, 1))
        await outcomes(plane, rows_of(13))
        bad = rows_of(1)
        bad.inputs[0].name = "z"
        await outcomes(plane, bad)
        return plane.metrics.render(), plane.metrics.snapshot(), plane.statistics("m")[0]


async def test_the_page_parses_and_counts_under_every_name():
    page, _, _ = await busy_page()
    samples = parsed(page)
    model = {"model": "m", "version": "1"}
    assert b'\nnv_inference_count{model="m",version="1"} 7\n' in page
    assert value(samples, "serinus_requests_total", **model, outcome="success") == 4
    assert value(samples, "serinus_requests_total", **model, outcome="failed") == 1
    assert value(samples, "serinus_requests_total", **model, outcome="invalid") == 1
    assert value(samples, "serinus_requests_total", **model, outcome="timeout") == 0
    assert value(samples, "serinus_batch_rows_sum", **model) == 7
    assert value(samples, "serinus_batch_rows_count", **model) == 1
    assert value(samples, "serinus_model_ready", **model) == 1
    assert value(samples, "serinus_requests_in_flight", **model) == 0
    assert value(samples, "serinus_model_load_seconds", **model) > 0
    assert value(samples, "nv_inference_request_success", **model) == 4
    assert value(samples, "nv_inference_request_failure", **model, reason="BACKEND") == 1
    assert value(samples, "nv_inference_request_failure", **model, reason="OTHER") == 1
    assert value(samples, "nv_inference_count", **model) == 7
    assert value(samples, "nv_inference_exec_count", **model) == 1
    assert value(samples, "nv_inference_request_duration_us", **model) > 0
    assert value(samples, "request_predict_seconds_count", model_name="m") == 4
    for name in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert value(samples, f"serinus_{name}_seconds_count", **model) == 4
        assert value(samples, f"serinus_{name}_seconds_bucket", **model, le="+Inf") == 4
        assert value(samples, f"serinus_{name}_seconds_sum", **model) > 0
    assert value(samples, "process_resident_memory_bytes") > 1e6
    assert value(samples, "process_open_fds") > 2


async def test_histogram_buckets_are_cumulative():
    page, _, _ = await busy_page()
    for family in text_string_to_metric_families(page.decode()):
        if family.type == "histogram":
            counts = [s.value for s in family.samples if s.name.endswith("_bucket") and "+Inf" not in s.labels["le"]]
            assert counts == sorted(counts), family.name


async def test_statistics_of_several_workers_add_up():
    _, snapshot, one = await busy_page()
    async with serving(Doubler, ModelSettings(name="m", version="1")) as plane:
        await outcomes(plane, rows_of(1, rows=4))
        other, two = plane.metrics.snapshot(), plane.statistics("m")[0]
    sent = json.loads(json.dumps([snapshot, other, Metrics.retire(snapshot)]))
    merged = Metrics.merged_statistics(sent)["m", "1"]
    assert merged.keys() == one.keys()
    assert (merged["inference_count"], merged["execution_count"]) == (7 + 4 + 7, 3)
    assert merged["last_inference"] == two["last_inference"]
    for stage, duration in merged["inference_stats"].items():
        for key in ("count", "ns"):
            assert duration[key] == 2 * one["inference_stats"][stage][key] + two["inference_stats"][stage][key]
    assert [row["batch_size"] for row in merged["batch_stats"]] == [4, 7]
    assert [row["compute_infer"]["count"] for row in merged["batch_stats"]] == [1, 2]


async def test_statistics_are_those_that_the_extension_names():
    _, _, statistics = await busy_page()
    assert statistics["name"] == "m"
    assert statistics["version"] == "1"
    assert statistics["inference_count"] == 7
    assert statistics["execution_count"] == 1
    assert statistics["last_inference"] > 1.6e12  # milliseconds, not seconds
    durations = statistics["inference_stats"]
    assert {key: duration["count"] for key, duration in durations.items()} == {
        "success": 4,
        "fail": 2,
        "queue": 4,
        "compute_input": 4,
        "compute_infer": 4,
        "compute_output": 4,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    assert all(isinstance(duration["ns"], int) for duration in durations.values())
    parts = sum(durations[key]["ns"] for key in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert parts == pytest.approx(durations["success"]["ns"], rel=0.001)
    assert [batch["batch_size"] for batch in statistics["batch_stats"]] == [7]
    assert statistics["batch_stats"][0]["compute_infer"]["count"] == 1
    assert json.loads(json.dumps(statistics)) == statistics


async def test_snapshots_of_several_workers_add_up_to_one_page():
    page, snapshot, _ = await busy_page()
    snapshot = json.loads(json.dumps(snapshot))
    merged = parsed(Metrics.render_merged([snapshot, snapshot, snapshot]))
    for (name, labels), one in parsed(page).items():
        if name in ("serinus_model_ready", "process_start_time_seconds", "process_max_fds") or "load" in name:
            assert merged[name, labels] == one, name
        elif not name.startswith("process_"):
            assert merged[name, labels] == pytest.approx(3 * one, abs=3 if "_us" in name else None), name
    again = parsed(Metrics.render_merged([Metrics.merge([snapshot, snapshot]), snapshot]))
    assert again.keys() == merged.keys()
    for key, number in merged.items():
        assert again[key] == pytest.approx(number), key


async def test_a_dead_workers_counters_stay_and_its_gauges_go():
    page, snapshot, _ = await busy_page()
    samples = parsed(Metrics.render_merged([snapshot, Metrics.retire(snapshot)]))
    alone = parsed(page)
    model = {"model": "m", "version": "1"}
    assert value(samples, "nv_inference_count", **model) == 14
    assert value(samples, "serinus_model_ready", **model) == 1
    assert value(samples, "process_resident_memory_bytes") == snapshot["process"]["resident_bytes"]
    assert samples.keys() == alone.keys()


async def test_a_model_is_ready_only_where_every_worker_says_so():
    _, snapshot, _ = await busy_page()
    other = json.loads(json.dumps(snapshot))
    other["models"][0]["gauges"]["ready"] = 0.0
    samples = parsed(Metrics.render_merged([snapshot, other]))
    assert value(samples, "serinus_model_ready", model="m", version="1") == 0


async def test_versions_of_one_name_share_the_series_that_has_no_version():
    async with serving(Doubler, *(ModelSettings(name="m", version=v) for v in "12")) as plane:
        await outcomes(plane, rows_of(1, model_version="1"), rows_of(1, model_version="2"))
        samples = parsed(plane.metrics.render())
    assert value(samples, "request_predict_seconds_count", model_name="m") == 2


async def test_a_hosted_classs_own_stages_are_shown_as_kserve_shows_them():
    class Staged(RequestModel):
        async def infer(self, request):
            self.observe_stage("preprocess", 0.5)
            from serinus import InferResponse

            return InferResponse("m", [])

    async with serving(Staged) as plane:
        await outcomes(plane, rows_of(1))
        samples = parsed(plane.metrics.render())
    assert value(samples, "request_preprocess_seconds_sum", model_name="m") == 0.5


def test_labels_are_escaped():
    metrics = Metrics()
    metrics.statistics('a"b\\c\nd').failed(Overloaded("full"), None, 0.0)
    samples = parsed(metrics.render())
    assert value(samples, "serinus_requests_total", model='a"b\\c\nd', version="", outcome="rejected") == 1


def test_further_sources_and_transport_errors_are_on_the_page_and_merge():
    metrics = Metrics()
    metrics.observe_error("rest", 400)
    metrics.observe_error("rest", 400)
    metrics.add_source(
        lambda: [
            Family("gpu_bytes", "GPU memory.", "gauge", [({"gpu": "0"}, 5.0), ({"gpu": "1"}, 7.0)]),
            Family("blocked_total", "Blocked.", "counter", [({}, 3.0)]),
        ]
    )
    samples = parsed(Metrics.render_merged([metrics.snapshot(), metrics.snapshot()]))
    assert value(samples, "serinus_transport_errors_total", transport="rest", code="400") == 4
    assert value(samples, "gpu_bytes", gpu="1") == 14
    assert value(samples, "blocked_total") == 6


def test_a_client_cannot_grow_the_batch_statistics_without_bound():
    statistics = ModelStatistics("m", "")
    for rows in range(5000):
        statistics.answered(Batch((), rows, 0.0), 0.0)
    assert len(statistics.batches) <= 512 + 14
    assert sum(batch[0] for batch in statistics.batches.values()) == 5000
