"""What hosted classes count with `prometheus_client`, for the page of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from ..model import Family

__all__ = ["read_families"]

_COUNTED = ("counter", "histogram", "summary")


def read_families(collected: Iterable[Any], takes: Callable[[str, Mapping[str, str]], bool]) -> list[Family]:
    """Read what a `CollectorRegistry` collects, histograms and summaries as the counters they are made of.

    Args:
        collected: of `registry.collect()`.
        takes: told a sample's name and labels, says whether it is wanted.
    """
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    families: list[Family] = []
    for metric in collected:
        kind: Literal["counter", "gauge"] = "counter" if metric.type in _COUNTED else "gauge"
        for sample in metric.samples:
            if sample.name.endswith("_created") or not takes(sample.name, sample.labels):
                continue
            if sample.name not in samples:
                families.append(Family(sample.name, metric.documentation, kind, samples.setdefault(sample.name, [])))
            samples[sample.name].append((sample.labels, float(sample.value)))
    return families
