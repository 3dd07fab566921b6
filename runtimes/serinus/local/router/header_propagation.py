"""Which headers of a request go on to the steps of a graph. Pure.

KServe's router passes on what matches one of the regular expressions of `router.headers.propagate` (ConfigMap inferenceservice-config), and the
list is empty as it is shipped. The expressions are searched in the canonical name (`X-Request-Id`), upper and lower case apart, as Go does.
Here the headers that only connect a request's traces go on always; see `ALWAYS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["ALWAYS", "HeaderFilter", "canonical_name"]

ALWAYS = frozenset({"traceparent", "tracestate", "x-request-id"})
"""W3C Trace Context, and the id that the gateway's access log shows: so a request is found at every step."""

_OF_ONE_CONNECTION = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Never passed on: they belong to one connection or body (RFC 9110, 7.6.1), which Go's client writes itself."""


def canonical_name(name: str) -> str:
    """A header's name as Go's net/http has it: `x-request-id` as `X-Request-Id`."""
    return "-".join(part[:1].upper() + part[1:].lower() for part in name.split("-"))


class HeaderFilter:
    """Chooses headers.

    Args:
        patterns: regular expressions, as in KServe's configuration.

    Raises:
        ValueError: one of them is none; the message names it.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = []
        for pattern in patterns:
            try:
                self._patterns.append(re.compile(pattern))
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None

    def select(self, headers: Iterable[tuple[str, str]]) -> dict[str, str]:
        """The headers that go on, by name; repeated ones are joined (RFC 9110, 5.3). A Content-Type is there in any case."""
        chosen: dict[str, str] = {}
        for name, value in headers:
            lower = name.lower()
            if lower in _OF_ONE_CONNECTION or not (lower in ALWAYS or self._wants(canonical_name(name))):
                continue
            chosen[lower] = f"{chosen[lower]}, {value}" if lower in chosen else value
        chosen.setdefault("content-type", "application/json")
        return chosen

    def _wants(self, name: str) -> bool:
        return any(pattern.search(name) for pattern in self._patterns)
