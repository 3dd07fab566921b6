"""What models do per second, from two looks at a server's page of metrics. Pure: no socket, no clock.

Quantiles are those of `histogram_quantile` (Prometheus): a straight line inside the bucket, over the requests between the two looks. A counter that
is lower than before belongs to a process that has begun anew, so all of it is new.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..canary.sources.text_page import Sample, parse_page

__all__ = ["Look", "ModelRates", "ProcessState", "compare", "quantile", "read_look", "sparkline"]

_OURS: Final = ("failed", "other", "rejected", "timeout")
"""Outcomes that are the server's errors; `invalid` is the client's, `cancelled` nobody's (METRICS.md)."""
_HISTOGRAMS: Final = ("request", "queue", "compute_infer")
_PREFIXES: Final = ("serinus_", "process_")

_Key = tuple[str, str, str]
"""Model, version, revision."""


@dataclass(slots=True)
class _Counts:
    """Of one model: all since the process began."""

    outcomes: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, dict[float, float]] = field(default_factory=dict)
    """Name to upper bound to cumulative count."""
    sums: dict[str, float] = field(default_factory=dict)
    """Name to sum; also `rows` and `executions`."""
    gauges: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Look:
    """One page."""

    at_s: float
    """`time.monotonic()`."""
    models: dict[_Key, _Counts] = field(default_factory=dict)
    process: dict[str, float] = field(default_factory=dict)
    loop_lag: dict[float, float] = field(default_factory=dict)
    """Upper bound to cumulative count."""


@dataclass(frozen=True, slots=True)
class ModelRates:
    """One model between two looks. None: nothing of it happened, so there is no such number."""

    model: str
    version: str
    revision: str
    requests_per_s: float
    errors_per_s: float
    invalid_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    queue_ms: float | None
    """Mean wait for a place in a batch."""
    compute_ms: float | None
    """Mean of the predict."""
    batch_rows: float | None
    """Mean rows of a predict."""
    in_flight: int
    is_ready: bool

    @property
    def error_share(self) -> float:
        """Of its requests, 0 to 1."""
        return self.errors_per_s / self.requests_per_s if self.requests_per_s else 0.0


@dataclass(frozen=True, slots=True)
class ProcessState:
    """The processes behind one page."""

    memory_bytes: float | None
    cpu_cores: float
    """CPU seconds a second."""
    loop_lag_ms: float | None
    """99 % of the looks at the event loop found it no later than this; None: nobody looked."""
    refused_per_s: float
    """Error answers that reached no model."""


def read_look(text: str, at_s: float) -> Look:
    """Read a page.

    Raises:
        InvalidInput: it is no page of metrics.
    """
    look = Look(at_s)
    for prefix in _PREFIXES:
        for sample in parse_page(text, prefix):
            _enter(look, sample)
    return look


def _enter(look: Look, sample: Sample) -> None:
    name, labels, value = sample.name, sample.labels, sample.value
    if name == "serinus_event_loop_lag_seconds_bucket":
        look.loop_lag[float(labels["le"])] = value
        return
    if "model" not in labels:
        look.process[name] = look.process.get(name, 0.0) + value
        return
    key = (labels["model"], labels.get("version", ""), labels.get("revision", ""))
    counts = look.models.setdefault(key, _Counts())
    if name == "serinus_requests_total":
        counts.outcomes[labels["outcome"]] = value
    elif name in ("serinus_rows_total", "serinus_executions_total"):
        counts.sums[name[8:-6]] = value
    elif name in ("serinus_requests_in_flight", "serinus_model_ready"):
        counts.gauges[name] = value
    else:
        base, _, kind = name[8:].rpartition("_seconds_")
        if base in _HISTOGRAMS:
            if kind == "bucket":
                counts.histograms.setdefault(base, {})[float(labels["le"])] = value
            else:
                counts.sums[f"{base}_{kind}"] = value


def quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """Estimate a quantile of what is counted in cumulative buckets; None: nothing is."""
    total = buckets.get(math.inf, 0.0)
    if total <= 0:
        return None
    rank, below, low = share * total, 0.0, 0.0
    for bound in sorted(buckets):
        count = buckets[bound]
        if count >= rank and count > below:
            if bound == math.inf:
                return low
            return low + (bound - low) * (rank - below) / (count - below)
        below, low = count, bound
    return low


def compare(before: Look | None, now: Look) -> tuple[list[ModelRates], ProcessState]:
    """Tell what happened between two looks.

    Args:
        before: the earlier; None: there was none, and everything is 0 or None but what stands now.
        now: the later.
    """
    seconds = max(now.at_s - before.at_s, 1e-9) if before is not None else math.inf
    rates = [
        _rates(key, (before.models.get(key) or _Counts()) if before is not None else counts, counts, seconds)
        for key, counts in sorted(now.models.items())
    ]
    earlier = before.process if before is not None else now.process
    lag = _since(before.loop_lag if before is not None else {}, now.loop_lag)
    late = quantile(0.99, lag)
    return rates, ProcessState(
        now.process.get("process_resident_memory_bytes"),
        _grown(earlier, now.process, "process_cpu_seconds_total") / seconds,
        None if late is None else late * 1e3,
        _grown(earlier, now.process, "serinus_transport_errors_total") / seconds,
    )


def _rates(key: _Key, before: _Counts, now: _Counts, seconds: float) -> ModelRates:
    outcomes = {name: _grown(before.outcomes, now.outcomes, name) for name in now.outcomes}
    took = {
        name: _since(before.histograms.get(name, {}), buckets) if before is not now else {}
        for name, buckets in now.histograms.items()
    }
    executions = _grown(before.sums, now.sums, "executions")

    def mean_ms(name: str) -> float | None:
        count = _grown(before.sums, now.sums, f"{name}_count")
        return _grown(before.sums, now.sums, f"{name}_sum") / count * 1e3 if count else None

    def quantile_ms(share: float) -> float | None:
        found = quantile(share, took.get("request", {}))
        return None if found is None else found * 1e3

    model, version, revision = key
    return ModelRates(
        model,
        version,
        revision,
        sum(count for name, count in outcomes.items() if name != "cancelled") / seconds,
        _total(outcomes, _OURS) / seconds,
        outcomes.get("invalid", 0.0) / seconds,
        quantile_ms(0.5),
        quantile_ms(0.99),
        mean_ms("queue"),
        mean_ms("compute_infer"),
        _grown(before.sums, now.sums, "rows") / executions if executions else None,
        int(now.gauges.get("serinus_requests_in_flight", 0)),
        bool(now.gauges.get("serinus_model_ready", 0)),
    )


def _total(counts: Mapping[str, float], names: Iterable[str]) -> float:
    return sum(counts.get(name, 0.0) for name in names)


def _grown(before: Mapping[Any, float], now: Mapping[Any, float], name: Any) -> float:
    value, earlier = now.get(name, 0.0), before.get(name, 0.0)
    return value - earlier if value >= earlier else value


def _since(before: Mapping[float, float], now: Mapping[float, float]) -> dict[float, float]:
    """Cumulative buckets of what came in between."""
    if before.get(math.inf, 0.0) > now.get(math.inf, 0.0):
        return dict(now)
    return {bound: count - before.get(bound, 0.0) for bound, count in now.items()}


_BARS: Final = " ▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """Draw numbers as bars beside one another, the largest as a full one."""
    most = max(values, default=0.0)
    if most <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[math.ceil(value / most * (len(_BARS) - 1))] for value in values)
