"""Which limit binds: queue, compute or memory, from the server's own metrics; and what a pod needs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Observed", "Resources", "binding", "observe", "read_metrics", "resources"]

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+(\S+)")
_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A server during one trial."""

    queue_s: float
    """Mean wait of a request."""
    compute_s: float
    """Mean of stacking, predicting and cutting, of the batch that a request was in."""
    request_s: float
    """Mean in the data plane."""
    batch_rows: float
    """Mean rows of a predict."""
    cpus: float
    """Mean CPUs busy: the server's CPU time over the trial's time."""
    rss_bytes: float
    """Of all worker processes."""


def read_metrics(page: str) -> dict[str, float]:
    """Sum a Prometheus page over labels, by name; buckets are left out."""
    found: dict[str, float] = {}
    for line in page.splitlines():
        match = _LINE.match(line)
        if match and not match[1].endswith("_bucket"):
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


def observe(before: Mapping[str, float], after: Mapping[str, float], elapsed_s: float) -> Observed:
    """Turn two readings of the counters into means of the time between them."""

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    def mean(name: str) -> float:
        count = grown(f"{name}_count")
        return grown(f"{name}_sum") / count if count else 0.0

    parts = ("serinus_compute_input_seconds", "serinus_compute_infer_seconds", "serinus_compute_output_seconds")
    return Observed(
        queue_s=mean("serinus_queue_seconds"),
        compute_s=sum(mean(part) for part in parts),
        request_s=mean("serinus_request_seconds"),
        batch_rows=mean("serinus_batch_rows"),
        cpus=grown("process_cpu_seconds_total") / elapsed_s if elapsed_s > 0 else 0.0,
        rss_bytes=after.get("process_resident_memory_bytes", 0.0),
    )


def binding(observed: Observed, *, cpus: float, memory_bytes: float, mean_latency_s: float) -> tuple[str, str]:
    """Name the limit that binds, and the numbers behind it.

    Args:
        observed: at the first rate that broke the SLO, or the last that held.
        cpus: what the server may use.
        memory_bytes: likewise.
        mean_latency_s: as clients saw it, to tell time outside the data plane; infinite where most requests were lost, which
            tells nothing of it.

    Returns:
        "memory", "compute", "queue" or "transport", and a sentence.
    """
    if observed.rss_bytes > 0.9 * memory_bytes:
        held = f"{observed.rss_bytes / _MIB:,.0f} of {memory_bytes / _MIB:,.0f} MiB"
        return "memory", f"{held} are resident: fewer workers or instances, or more memory"
    wait, work = observed.queue_s * 1e3, observed.compute_s * 1e3
    split = f"a request waits {wait:.2f} ms and is computed for {work:.2f} ms, with {observed.cpus:.1f} of {cpus:g} CPUs busy"
    if observed.cpus >= 0.85 * cpus:
        return "compute", f"{split}: more CPUs, more replicas, or a faster form (serinus optimize)"
    if observed.queue_s > observed.compute_s:
        return "queue", f"{split}: predicts wait for one another while CPUs are idle; more workers or instances"
    outside = max(0.0, mean_latency_s - observed.request_s)
    if observed.request_s < outside < math.inf:
        return (
            "transport",
            f"{split}; {outside * 1e3:.2f} ms are spent outside the data plane: sockets, codec, or other processes of this machine",
        )
    return (
        "compute",
        f"{split}: one predict is as long as it is; a faster form (serinus optimize) or more native threads",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the InferenceService asks for."""

    cpu: float
    memory_mib: int
    min_replicas: int
    max_replicas: int
    container_concurrency: int


def resources(
    observed: Observed, *, capacity_per_s: float, rate_per_s: float | None, cpus: float, latency_s: float
) -> Resources:
    """Size the pods.

    Args:
        observed: at the capacity.
        capacity_per_s: highest rate of one replica that held the SLO.
        rate_per_s: the load to carry; None: that of one replica.
        cpus: that the server had.
        latency_s: the SLO's strictest bound.
    """
    headroom = 0.8
    """A replica at its very capacity has no room for the next burst, nor for one that restarts."""
    replicas = max(1, math.ceil(rate_per_s / (capacity_per_s * headroom))) if rate_per_s else 1
    # Little's law: more requests than this in one replica cannot all be answered within the bound.
    concurrency = max(1, math.ceil(capacity_per_s * latency_s))
    return Resources(
        cpu=cpus,
        memory_mib=math.ceil(observed.rss_bytes * 1.5 / _MIB / 128) * 128,
        min_replicas=replicas,
        max_replicas=replicas * 2,
        container_concurrency=concurrency,
    )
