"""What the controller asks of a source, and what a source may say.

Theory of operation. A source is asked for a look again and again. It answers with counts of both arms since it was first asked, and with
two kinds of words: *problems*, with which the look may not be judged (an arm that nobody answers for, pages that make no sense, counters
that went back), and *notes*, which are only told (a pod that restarted, a clock that differs). Nothing here raises for what the other side
does: what it does is a problem of that look, and the next look is asked for all the same.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final, Protocol

from ...errors import ConfigError, SerinusError
from ..looks import Arm

__all__ = ["ArmNames", "Fetched", "Observation", "Source", "SourceFailed", "fetch"]

MOST_BYTES: Final = 64 << 20
"""Of one answer: a page of a hundred models has about 1 MB, a range of Prometheus's samples some MB."""


class SourceFailed(SerinusError):
    """A source answered nothing, or nonsense; the message says which source, what came and how to mend it."""


@dataclass(frozen=True, slots=True)
class ArmNames:
    """Which revision is which arm, and whose model is compared."""

    stable: str
    canary: str
    model: str = ""
    """Empty: the only model of the pages."""
    since_s: float | None = None
    """When the run began, seconds since the epoch, whoever has driven it meanwhile; None: when the source was first asked."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Both arms since the source was first asked."""

    stable: Arm
    canary: Arm
    problems: tuple[str, ...] = ()
    """Why this look may not be judged; empty: it may."""
    notes: tuple[str, ...] = ()
    whole: frozenset[str] = frozenset()
    """Metrics that are of the whole run (`ArmNames.since_s`), also where it was resumed: what outcomes of earlier predictions add to."""


class Source(Protocol):
    """Something that counts requests of revisions."""

    def observe(self, names: ArmNames) -> Observation:
        """Look once; seconds at most, never raises for what the other side does."""
        ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer over HTTP."""

    body: bytes
    date_s: float | None
    """The server's own clock when it answered (field Date), seconds since the epoch; None: it does not say."""


def fetch(url: str, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> Fetched:
    """Get a URL.

    Args:
        url: http or https.
        timeout_s: of each wait.
        headers: further fields.

    Raises:
        SourceFailed: nobody answers, the status is not 200, or the answer is beyond 64 MiB.
        ConfigError: the URL is none of HTTP.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url}: http:// or https:// was expected")
    told = url.partition("?")[0]  # a query is longer than all that is to be said, and may hold a token
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 # checked above
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310 # checked above
            body = answer.read(MOST_BYTES + 1)
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(300).decode("utf-8", "replace").strip()
        raise SourceFailed(f"{told}: status {error.code}{f': {text}' if text else ''}") from None
    except (OSError, ValueError) as error:
        raise SourceFailed(f"{told}: no answer: {getattr(error, 'reason', None) or error}") from None
    if len(body) > MOST_BYTES:
        raise SourceFailed(f"{told}: the answer has more than {MOST_BYTES >> 20} MiB")
    try:
        clock = parsedate_to_datetime(date).timestamp() if date else None
    except (TypeError, ValueError):
        clock = None
    return Fetched(body, clock)
