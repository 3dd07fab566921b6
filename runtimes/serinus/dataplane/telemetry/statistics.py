"""Counters and histograms of one model version, kept as plain ints: written by the plane, read by /stats and /metrics.

One object serves both readers, so a request is observed once: two bisections and a few additions. The object outlives a
reload of its model, as Prometheus wants of counters.

Source: Triton, extension_statistics.md. Times of a failed request appear in `fail` only.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final

from ...errors import SerinusError
from ...settings import UNVERSIONED, ScoreSettings
from ..batching.pending_request import DONE, Batch, PendingRequest
from .histogram import ROW_BUCKETS, Histogram
from .request_records import RequestRecorder
from .scores import Scores

__all__ = ["ModelStatistics", "added"]

_EXACT_BATCH_SIZES: Final = 512
"""Batch sizes told apart in `batch_stats`; further ones are rounded up to a power of two, so that no client grows it."""


class ModelStatistics:
    """What happened to the requests of one model version since this process started."""

    __slots__ = (
        "batch_rows",
        "batches",
        "compute_infer",
        "compute_input",
        "compute_output",
        "executions",
        "fail_count",
        "fail_ns",
        "failures",
        "last_inference_ms",
        "load_s",
        "name",
        "queue",
        "recorder",
        "request",
        "rows",
        "score",
        "stages",
        "success_count",
        "version",
    )

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.success_count = 0
        self.fail_count = 0
        self.fail_ns = 0
        self.rows = 0
        """Rows predicted for successful requests: Triton's inference_count."""
        self.executions = 0
        self.last_inference_ms = 0
        """Wall clock, milliseconds since the epoch, as the extension wants it."""
        self.request = Histogram()
        self.queue = Histogram()
        self.compute_input = Histogram()
        self.compute_infer = Histogram()
        self.compute_output = Histogram()
        self.batch_rows = Histogram(ROW_BUCKETS)
        self.batches: dict[int, list[int]] = {}
        """Rows of a batch to [executions, input ns, infer ns, output ns]."""
        self.failures: dict[str, int] = {}
        """Our reason to count: rejected, timeout, cancelled, invalid, failed, other."""
        self.stages: dict[str, Histogram] = {}
        """preprocess, predict, postprocess, explain, as a hosted class reports them."""
        self.score: Scores | None = None
        """Set where the model's settings declare a score."""
        self.load_s = 0.0
        """How long the last load took, warm-up included."""
        self.recorder: RequestRecorder | None = None
        """Told of each request; None: nothing is logged or traced."""

    def answered(self, batch: Batch, finished: float) -> None:
        """Observe a batch that was answered; requests given up meanwhile were counted when they were.

        Args:
            batch: the batch, with its times.
            finished: when its responses were ready.
        """
        if self.recorder is not None:
            self.recorder.answered(self.name, self.version, batch, finished)
        started = batch.started
        queue, request = self.queue, self.request
        queue_counts, request_counts, bounds = queue.counts, request.counts, queue.bounds
        count = rows = 0
        waited = lasted = 0.0
        for pending in batch.members:
            if pending.state == DONE:
                continue
            seconds = started - pending.arrived
            waited += seconds
            queue_counts[bisect_left(bounds, seconds)] += 1
            seconds = finished - pending.arrived
            lasted += seconds
            request_counts[bisect_left(bounds, seconds)] += 1
            count += 1
            rows += pending.rows
        queue.total += waited
        request.total += lasted
        self.success_count += count
        self.rows += rows
        self.executions += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        before, within, after = batch.infer_from - started, batch.infer_to - batch.infer_from, finished - batch.infer_to
        self.compute_input.observe(before, count)
        self.compute_infer.observe(within, count)
        self.compute_output.observe(after, count)
        size = batch.rows
        self.batch_rows.observe(size)
        times = self.batches.get(size)
        if times is None:
            if len(self.batches) >= _EXACT_BATCH_SIZES:
                size = 1 << max(size - 1, 0).bit_length()
            times = self.batches.setdefault(size, [0, 0, 0, 0])
        times[0] += 1
        times[1] += int(before * 1e9)
        times[2] += int(within * 1e9)
        times[3] += int(after * 1e9)

    def failed(self, error: SerinusError, pending: PendingRequest | None, now: float) -> None:
        """Observe a request that was not answered with a result."""
        self.fail_count += 1
        if pending is not None:
            self.fail_ns += int((now - pending.arrived) * 1e9)
            if self.recorder is not None:
                self.recorder.failed(self.name, self.version, pending, error, now)
        reason = error.reason
        self.failures[reason] = self.failures.get(reason, 0) + 1

    def count_scores(self, settings: ScoreSettings | None) -> Scores | None:
        """Count the values of an output from now on, or of none; what was counted goes on where the settings are the same."""
        if settings is None:
            self.score = None
        elif self.score is None or self.score.settings != settings:
            self.score = Scores(settings, self.name)
        return self.score

    def stage(self, name: str, seconds: float) -> None:
        """Observe one stage of a hosted class: preprocess, predict, postprocess or explain."""
        histogram = self.stages.get(name)
        if histogram is None:
            histogram = self.stages[name] = Histogram()
        histogram.observe(seconds)

    def describe(self) -> dict[str, Any]:
        """Give the `$model_stat` object of the statistics extension.

        The extension wants a version, and perf_analyzer a number (`std::stoll`): an unversioned model's is "1", Triton's first.
        """
        success = self.success_count
        nothing = {"count": 0, "ns": 0}

        def duration(histogram: Histogram) -> dict[str, int]:
            return {"count": success, "ns": int(histogram.total * 1e9)}

        return {
            "name": self.name,
            "version": self.version or UNVERSIONED,
            "last_inference": self.last_inference_ms,
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": duration(self.request),
                "fail": {"count": self.fail_count, "ns": self.fail_ns},
                "queue": duration(self.queue),
                "compute_input": duration(self.compute_input),
                "compute_infer": duration(self.compute_infer),
                "compute_output": duration(self.compute_output),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": {"count": count, "ns": input_ns},
                    "compute_infer": {"count": count, "ns": infer_ns},
                    "compute_output": {"count": count, "ns": output_ns},
                }
                for size, (count, input_ns, infer_ns, output_ns) in sorted(self.batches.items())
            ],
            "memory_usage": [],
        }


def added(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Add up the `$model_stat` objects that two processes give of one model version."""
    rows = {row["batch_size"]: row for row in a["batch_stats"]}
    for row in b["batch_stats"]:
        size = row["batch_size"]
        rows[size] = {**_sum(rows.get(size, {}), row), "batch_size": size}
    return {
        **a,
        "last_inference": max(a["last_inference"], b["last_inference"]),
        **{name: _sum(a[name], b[name]) for name in ("inference_count", "execution_count", "inference_stats")},
        "response_stats": _sum(a["response_stats"], b["response_stats"]),
        "batch_stats": [rows[size] for size in sorted(rows)],
    }


def _sum(a: Any, b: Any) -> Any:
    """Add numbers, and objects of numbers name by name."""
    if isinstance(b, Mapping):
        return {**a, **{name: _sum(a[name], value) if name in a else value for name, value in b.items()}}
    return a + b
