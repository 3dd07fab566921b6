"""Prometheus' text format, version 0.0.4.

Source: prometheus.io/docs/instrumenting/exposition_formats, "Text-based format".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

__all__ = ["Page"]

NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


class Page:
    """A page under construction: each family's header once, then its samples.

    Args:
        shared: labels of every sample; a sample's own go before them.
    """

    def __init__(self, shared: Mapping[str, str] = NO_LABELS) -> None:
        self._lines: list[str] = []
        self._shared = shared

    def family(self, name: str, kind: str, text: str) -> None:
        """Begin a family; `kind` is counter, gauge or histogram."""
        text = text.replace("\\", r"\\").replace("\n", r"\n")
        self._lines.append(f"# HELP {name} {text}")
        self._lines.append(f"# TYPE {name} {kind}")

    def sample(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Add one value."""
        if self._shared:
            labels = {**labels, **{key: text for key, text in self._shared.items() if key not in labels}}
        inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        self._lines.append(f"{name}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}")

    def histogram(
        self, name: str, labels: Mapping[str, str], bounds: Sequence[float], counts: Sequence[int], total: float
    ) -> None:
        """Add a histogram; `counts` are per bucket, the last one beyond all bounds."""
        running = 0
        for bound, count in zip((*bounds, math.inf), counts, strict=True):
            running += count
            self.sample(f"{name}_bucket", {**labels, "le": _number(bound)}, running)
        self.sample(f"{name}_sum", labels, total)
        self.sample(f"{name}_count", labels, running)

    def encode(self) -> bytes:
        """Give the page as UTF-8."""
        return ("\n".join(self._lines) + "\n").encode()


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return repr(value)
