"""What hosted classes count with `prometheus_client`, for the page of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from ..model import Family

__all__ = ["read_families"]

_OF_SEVERAL = ("histogram", "summary")
"""Kinds whose samples have names of their own, below the family's."""


def read_families(collected: Iterable[Any], takes: Callable[[str, Mapping[str, str]], bool]) -> list[Family]:
    """Read what a `CollectorRegistry` collects.

    Args:
        collected: of `registry.collect()`.
        takes: told a sample's name and labels, says whether it is wanted.
    """
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    families: list[Family] = []
    for metric in collected:
        several = metric.type in _OF_SEVERAL
        kind: Literal["counter", "gauge", "histogram", "summary"]
        kind = metric.type if several or metric.type == "counter" else "gauge"
        for sample in metric.samples:
            if sample.name.endswith("_created") or not takes(sample.name, sample.labels):
                continue
            name = metric.name if several else sample.name
            labels = {"__name__": sample.name, **sample.labels} if several and sample.name != name else sample.labels
            if name not in samples:
                families.append(Family(name, metric.documentation, kind, samples.setdefault(name, [])))
            samples[name].append((labels, float(sample.value)))
    return families
