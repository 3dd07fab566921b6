"""Reads Prometheus' text format, version 0.0.4, as far as counters and histograms need it.

Source: prometheus.io/docs/instrumenting/exposition_formats, "Text-based format".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import InvalidInput

__all__ = ["Sample", "parse_page"]

_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPE = re.compile(r"\\(.)")
_MEANT = {"n": "\n"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One line."""

    name: str
    labels: dict[str, str]
    value: float


def parse_page(text: str, prefix: str = "") -> Iterator[Sample]:
    """Read a page.

    Args:
        text: the page.
        prefix: only samples whose name begins so are read; others need not even be well formed.

    Raises:
        InvalidInput: naming the line that is none of the format.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line[0] == "#" or not line.startswith(prefix):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise InvalidInput(f"line {number} is no sample of Prometheus' text format: {line[:80]!r}")
        try:
            yield Sample(found[1], _labels(found[2] or ""), float(found[3]))
        except ValueError:
            raise InvalidInput(f"line {number}: {found[3][:40]!r} is no number, or its labels are none") from None


def _labels(text: str) -> dict[str, str]:
    labels = {}
    position = 0
    while position < len(text):
        found = _LABEL.match(text, position)
        if found is None:
            raise ValueError(text)
        labels[found[1]] = _ESCAPE.sub(lambda escape: _MEANT.get(escape[1], escape[1]), found[2])
        position = found.end()
    return labels
