"""W3C Trace Context, Level 1: the header `traceparent`, read and written. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["TRACEPARENT", "TRACESTATE", "TraceContext", "read_trace_context"]

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

_FORM: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
"""version-format (3.2.2); a later version may have more behind a dash (3.2.4)."""
_SAMPLED: Final = 1
"""trace-flags (3.2.2.5)."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where in which trace somebody is."""

    trace_id: str
    """32 hexadecimal digits in lower case, not all 0."""
    span_id: str
    """16 of them."""
    sampled: bool
    """Its spans are recorded."""

    def header(self) -> str:
        """Write `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def read_trace_context(traceparent: str | None) -> TraceContext | None:
    """Read `traceparent`; None: there is none, or one that a receiver must not use (3.2.2)."""
    if not traceparent:
        return None
    found = _FORM.fullmatch(traceparent.strip())
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))
