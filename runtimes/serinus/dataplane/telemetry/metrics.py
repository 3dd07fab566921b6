"""Every metric of a server process, read from the models' statistics when somebody asks.

Nothing is observed here on the hot path: `ModelStatistics` already holds the counts, and a scrape turns them into a
*snapshot*, a JSON-able dict. Snapshots of several worker processes add up to one (`merge`), and a snapshot becomes a
page (`render`).

Names: `serinus_*` are ours. `nv_inference_*` are Triton's (docs/user_guide/metrics.md), `request_*_seconds` KServe's
(kserve/metrics.py), with the same meaning, so that dashboards made for either work. Labels: model, version (KServe's:
model_name), and on every series the revision, where the server knows it. What of these a canary is judged by is in METRICS.md.
"""

from __future__ import annotations

import operator
import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...exposition import Page
from ...model import Family
from .events import Events
from .histogram import LATENCY_BUCKETS_S, ROW_BUCKETS, Histogram
from .request_records import RequestRecorder
from .statistics import ModelStatistics, added

__all__ = ["CONTENT_TYPE", "Family", "Metrics", "Snapshot"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Snapshot = dict[str, Any]
Gauges = Callable[[], Iterable[tuple[str, str, dict[str, float]]]]

_HISTOGRAMS: Final = {
    "request": "From the moment a request reached the data plane until its response was ready; successes only.",
    "queue": "Time that a request waited until its batch was taken.",
    "compute_input": "Time to stack the inputs of the batch that the request was in.",
    "compute_infer": "Time of the predict that answered the request.",
    "compute_output": "Time to check the outputs and cut them into responses.",
}
_SAME_EVERYWHERE: Final = frozenset({"serinus_model_digest_info", "serinus_tls_certificate_expiry_timestamp_seconds"})
"""Families whose values say one thing of the whole server: of several workers the least is told, and nothing is added up."""
_TRITON_REASONS: Final = {"rejected": "REJECTED", "timeout": "REJECTED", "cancelled": "CANCELED", "failed": "BACKEND"}
_STAGES: Final = {
    "preprocess": "compute_input",
    "predict": "compute_infer",
    "postprocess": "compute_output",
    "explain": "",
}
"""KServe's stages, and which of ours stands for one that the model does not report by itself."""
_REASONS: Final = ("rejected", "timeout", "cancelled", "invalid", "failed", "other")


class Metrics:
    """The metrics of one process. Made once per server and handed around; there is no global registry.

    Args:
        revision: label `revision` of every series; empty: there is no such label.
    """

    def __init__(self, revision: str = "") -> None:
        self._revision = revision
        self._models: dict[tuple[str, str], ModelStatistics] = {}
        self._gauges: list[Gauges] = []
        self._sources: list[Callable[[], Iterable[Family]]] = []
        self._errors: dict[tuple[str, int], int] = {}
        self.events = Events()
        """Rare events, counted by whoever sees them."""
        self._sources.append(self.events.families)
        self._started = time.time()
        self._recorder: RequestRecorder | None = None

    def statistics(self, name: str, version: str = "") -> ModelStatistics:
        """Give the statistics of a model version; the same object each time, so that a reload goes on counting."""
        found = self._models.get((name, version))
        if found is None:
            found = self._models[name, version] = ModelStatistics(name, version)
            found.recorder = self._recorder
        return found

    def record_requests(self, recorder: RequestRecorder) -> None:
        """Have a recorder told of each request from now on, of models that are there and that will be."""
        self._recorder = recorder
        for statistics in self._models.values():
            statistics.recorder = recorder

    def observe_gauges(self, read: Gauges) -> None:
        """Register what reads the models' gauges at a scrape: model, version, and values by name."""
        self._gauges.append(read)

    def observe_error(self, transport: str, status: int) -> None:
        """Count an error answer that no model's statistics hold: bytes that do not decode, an unknown path or model.

        Args:
            transport: "rest" or "grpc".
            status: HTTP's or gRPC's.
        """
        key = (transport, status)
        self._errors[key] = self._errors.get(key, 0) + 1

    def add_source(self, read: Callable[[], Iterable[Family]]) -> None:
        """Register further metrics: called at each scrape, on the loop's thread; be quick."""
        self._sources.append(read)

    def render(self) -> bytes:
        """Give this process's page (Prometheus text format 0.0.4)."""
        return self.render_merged([self.snapshot()])

    def snapshot(self) -> Snapshot:
        """Give everything as a JSON-able dict, to be merged with those of other workers."""
        gauges = {(name, version): values for read in self._gauges for name, version, values in read()}
        models = [_model(statistics, gauges.get(key, {})) for key, statistics in self._models.items()]
        return {
            "models": models,
            "errors": [[transport, status, count] for (transport, status), count in self._errors.items()],
            "families": [
                [family.name, family.help, family.kind, [[dict(labels), value] for labels, value in family.samples]]
                for read in self._sources
                for family in read()
            ],
            "process": _process(self._started),
            "revision": self._revision,
        }

    @staticmethod
    def retire(snapshot: Snapshot) -> Snapshot:
        """Keep of a dead worker's last snapshot what must not be lost: its counters; its gauges died with it."""
        return {
            "models": [{**model, "gauges": {}, "load_s": 0.0} for model in snapshot["models"]],
            "errors": snapshot["errors"],
            "families": [family for family in snapshot["families"] if family[2] != "gauge"],
            "process": {"cpu_s": snapshot["process"]["cpu_s"]},
            "revision": snapshot["revision"],
        }

    @staticmethod
    def merge(snapshots: Sequence[Snapshot]) -> Snapshot:
        """Add snapshots up: counters, histograms and most gauges; a model is ready where it is ready on every worker."""
        models: dict[tuple[str, str], dict[str, Any]] = {}
        errors: dict[tuple[str, int], int] = {}
        families: dict[str, list[Any]] = {}
        process: dict[str, float] = {}
        for snapshot in snapshots:
            for model in snapshot["models"]:
                key = (model["name"], model["version"])
                models[key] = _add_models(models[key], model) if key in models else model
            for transport, status, count in snapshot["errors"]:
                errors[transport, status] = errors.get((transport, status), 0) + count
            for name, text, kind, samples in snapshot["families"]:
                known = families.setdefault(name, [name, text, kind, []])
                known[3] = _add_samples(known[3], samples, add=min if name in _SAME_EVERYWHERE else operator.add)
            for name, value in snapshot["process"].items():
                first = min(process.get(name, value), value) if name in ("started_s", "max_fds") else None
                process[name] = process.get(name, 0.0) + value if first is None else first
        return {
            "models": list(models.values()),
            "errors": [[transport, status, count] for (transport, status), count in errors.items()],
            "families": list(families.values()),
            "process": process,
            "revision": next((snapshot["revision"] for snapshot in snapshots), ""),
        }

    @staticmethod
    def merged_statistics(snapshots: Sequence[Snapshot]) -> dict[tuple[str, str], dict[str, Any]]:
        """Give the `$model_stat` object of each name and version for several workers."""
        models = [model["statistics"] for model in Metrics.merge(snapshots)["models"]]
        return {(model["name"], model["version"]): model for model in models}

    @staticmethod
    def render_merged(snapshots: Sequence[Snapshot]) -> bytes:
        """Give one page for several workers."""
        merged = Metrics.merge(snapshots)
        page = Page({"revision": merged["revision"]} if merged["revision"] else {})
        _render_ours(page, merged["models"])
        _render_triton(page, merged["models"])
        _render_kserve(page, merged["models"])
        if merged["errors"]:
            page.family("serinus_transport_errors_total", "counter", "Error answers that reached no model.")
            for transport, status, count in sorted(merged["errors"]):
                page.sample("serinus_transport_errors_total", {"transport": transport, "code": str(status)}, count)
        for name, text, kind, samples in merged["families"]:
            page.family(name, kind, text)
            for labels, value in samples:
                own = {key: text for key, text in labels.items() if key != "__name__"}
                page.sample(labels.get("__name__", name), own, value)
        _render_process(page, merged["process"])
        return page.encode()


def _model(statistics: ModelStatistics, gauges: Mapping[str, float]) -> dict[str, Any]:
    return {
        "name": statistics.name,
        "version": statistics.version,
        "success": statistics.success_count,
        "failures": dict(statistics.failures),
        "rows": statistics.rows,
        "executions": statistics.executions,
        "load_s": statistics.load_s,
        "histograms": {name: _pack(getattr(statistics, name)) for name in _HISTOGRAMS},
        "batch_rows": _pack(statistics.batch_rows),
        "stages": {name: _pack(histogram) for name, histogram in statistics.stages.items()},
        "score": None if statistics.score is None else statistics.score.pack(),
        "gauges": dict(gauges),
        "statistics": statistics.describe(),
    }


def _pack(histogram: Histogram) -> list[Any]:
    return [list(histogram.counts), histogram.total]


def _add(a: Sequence[Any] | None, b: Sequence[Any]) -> list[Any]:
    if a is None:
        return list(b)
    return [[x + y for x, y in zip(a[0], b[0], strict=True)], a[1] + b[1]]


def _add_models(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    gauges = dict(a["gauges"])
    for name, value in b["gauges"].items():
        gauges[name] = gauges.get(name, 0.0) + value
    ready = [model["gauges"]["ready"] for model in (a, b) if "ready" in model["gauges"]]
    if ready:
        gauges["ready"] = min(ready)
    return {
        **a,
        **{name: a[name] + b[name] for name in ("success", "rows", "executions")},
        "load_s": max(a["load_s"], b["load_s"]),
        "failures": {
            reason: a["failures"].get(reason, 0) + b["failures"].get(reason, 0)
            for reason in {**a["failures"], **b["failures"]}
        },
        "histograms": {name: _add(a["histograms"][name], b["histograms"][name]) for name in a["histograms"]},
        "batch_rows": _add(a["batch_rows"], b["batch_rows"]),
        "stages": {
            name: _add(a["stages"].get(name), b["stages"][name]) if name in b["stages"] else a["stages"][name]
            for name in {**a["stages"], **b["stages"]}
        },
        "score": _add_scores(a["score"], b["score"]),
        "gauges": gauges,
        "statistics": added(a["statistics"], b["statistics"]),
    }


def _add_scores(a: list[Any] | None, b: list[Any] | None) -> list[Any] | None:
    """Add up the scores of one model on two workers; where a reload has changed the bins on one, its are the ones."""
    if a is None or b is None:
        return a or b
    if a[:2] != b[:2]:
        return b
    return [*a[:2], *_add(a[2:], b[2:])]


def _add_samples(known: list[Any], more: list[Any], *, add: Callable[[float, float], float]) -> list[Any]:
    values = {tuple(sorted(labels.items())): value for labels, value in known}
    for labels, value in more:
        key = tuple(sorted(labels.items()))
        values[key] = add(values[key], value) if key in values else value
    return [[dict(key), value] for key, value in values.items()]


def _labels(model: Mapping[str, Any]) -> dict[str, str]:
    return {"model": model["name"], "version": model["version"]}


def _render_ours(page: Page, models: Sequence[Mapping[str, Any]]) -> None:
    for key, text in _HISTOGRAMS.items():
        page.family(f"serinus_{key}_seconds", "histogram", text)
        for model in models:
            page.histogram(f"serinus_{key}_seconds", _labels(model), LATENCY_BUCKETS_S, *model["histograms"][key])
    page.family("serinus_batch_rows", "histogram", "Rows of the batches that were predicted.")
    for model in models:
        page.histogram("serinus_batch_rows", _labels(model), ROW_BUCKETS, *model["batch_rows"])
    page.family(
        "serinus_requests_total",
        "counter",
        "Requests by outcome: success, or why not (client's fault: invalid, cancelled).",
    )
    for model in models:
        page.sample("serinus_requests_total", {**_labels(model), "outcome": "success"}, model["success"])
        for reason in _REASONS:
            page.sample(
                "serinus_requests_total", {**_labels(model), "outcome": reason}, model["failures"].get(reason, 0)
            )
    counters = {"rows": "Rows predicted for successful requests.", "executions": "Predicts that answered requests."}
    for key, text in counters.items():
        name = f"serinus_{key}_total"
        page.family(name, "counter", text)
        for model in models:
            page.sample(name, _labels(model), model[key])
    gauges = {
        "ready": ("serinus_model_ready", "1 where the model answers requests."),
        "in_flight": ("serinus_requests_in_flight", "Requests that wait or are being predicted."),
        "queued": ("serinus_queue_requests", "Requests that wait."),
        "queued_rows": ("serinus_queue_rows", "Rows that wait."),
    }
    for key, (name, text) in gauges.items():
        page.family(name, "gauge", text)
        for model in models:
            if key in model["gauges"]:
                page.sample(name, _labels(model), model["gauges"][key])
    scored = [model for model in models if model["score"] is not None]
    if scored:
        page.family(
            "serinus_score", "histogram", "Values of the output that was declared as the model's score, one a row."
        )
        for model in scored:
            output, bins, counts, total = model["score"]
            page.histogram("serinus_score", {**_labels(model), "output": output}, bins, counts, total)
    page.family("serinus_model_load_seconds", "gauge", "How long the last load took, warm-up included.")
    for model in models:
        page.sample("serinus_model_load_seconds", _labels(model), model["load_s"])


def _render_triton(page: Page, models: Sequence[Mapping[str, Any]]) -> None:
    counters: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "nv_inference_request_success": lambda model: model["success"],
        "nv_inference_count": lambda model: model["rows"],
        "nv_inference_exec_count": lambda model: model["executions"],
    }
    for key in _HISTOGRAMS:
        counters[f"nv_inference_{key}_duration_us"] = lambda model, key=key: round(model["histograms"][key][1] * 1e6)
    for name, read in counters.items():
        page.family(name, "counter", "As Triton's metric of this name.")
        for model in models:
            page.sample(name, _labels(model), read(model))
    page.family("nv_inference_request_failure", "counter", "As Triton's metric of this name.")
    for model in models:
        reasons: dict[str, int] = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
        for reason, count in model["failures"].items():
            reasons[_TRITON_REASONS.get(reason, "OTHER")] += count
        for reason, count in reasons.items():
            page.sample("nv_inference_request_failure", {**_labels(model), "reason": reason}, count)
    page.family("nv_inference_pending_request_count", "gauge", "As Triton's metric of this name.")
    for model in models:
        page.sample("nv_inference_pending_request_count", _labels(model), model["gauges"].get("queued", 0))
    page.family("nv_model_load_duration_secs", "gauge", "As Triton's metric of this name.")
    for model in models:
        page.sample("nv_model_load_duration_secs", _labels(model), model["load_s"])


def _render_kserve(page: Page, models: Sequence[Mapping[str, Any]]) -> None:
    for stage, fallback in _STAGES.items():
        by_name: dict[str, list[Any]] = {}
        for model in models:
            packed = model["stages"].get(stage)
            if packed is None and fallback and not model["stages"]:
                packed = model["histograms"][fallback]
            if packed is not None:
                by_name[model["name"]] = _add(by_name.get(model["name"]), packed)
        if by_name:
            name = f"request_{stage}_seconds"
            page.family(name, "histogram", "As KServe's metric of this name.")
            for model_name, packed in by_name.items():
                page.histogram(name, {"model_name": model_name}, LATENCY_BUCKETS_S, *packed)


def _process(started: float) -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    values = {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "started_s": started,
        "max_fds": float(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    }
    try:
        pages = Path("/proc/self/statm").read_text().split()
        values["virtual_bytes"] = float(int(pages[0]) * resource.getpagesize())
        values["resident_bytes"] = float(int(pages[1]) * resource.getpagesize())
        values["open_fds"] = float(len(os.listdir("/proc/self/fd")))
    except OSError:  # no /proc: macOS
        values["resident_bytes"] = float(usage.ru_maxrss)
    return values


def _render_process(page: Page, process: Mapping[str, float]) -> None:
    names = {
        "cpu_s": ("process_cpu_seconds_total", "counter", "User and system CPU time."),
        "started_s": ("process_start_time_seconds", "gauge", "Start of the oldest process, seconds since the epoch."),
        "virtual_bytes": ("process_virtual_memory_bytes", "gauge", "Virtual memory."),
        "resident_bytes": ("process_resident_memory_bytes", "gauge", "Resident memory."),
        "open_fds": ("process_open_fds", "gauge", "Open file descriptors."),
        "max_fds": ("process_max_fds", "gauge", "Most file descriptors that a process may open."),
    }
    for key, (name, kind, text) in names.items():
        if key in process:
            page.family(
                name, kind, f"{text} Summed over worker processes." if kind == "gauge" and "byte" in key else text
            )
            page.sample(name, {}, process[key])
