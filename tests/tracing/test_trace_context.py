"""W3C Trace Context, as its text has it."""

from __future__ import annotations

import pytest

from serinus.tracing.trace_context import TraceContext, read_trace_context

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", TraceContext(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", TraceContext(TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-03", TraceContext(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-02", TraceContext(TRACE, SPAN, False)),
        (f" 00-{TRACE}-{SPAN}-01 ", TraceContext(TRACE, SPAN, True)),
        (f"01-{TRACE}-{SPAN}-01-what-comes-later", TraceContext(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE[:-1]}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01", None),
        ("", None),
        (None, None),
    ],
)
def test_a_traceparent_is_read_as_the_recommendation_says(header: str | None, expected: TraceContext | None):
    assert read_trace_context(header) == expected


@pytest.mark.parametrize("sampled", [True, False])
def test_what_is_written_is_read(sampled: bool):
    context = TraceContext(TRACE, SPAN, sampled)
    assert read_trace_context(context.header()) == context
