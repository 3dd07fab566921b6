"""Queries that panels share, in PromQL, of the services that the viewer has chosen."""

from __future__ import annotations

from panels import CHOSEN

__all__ = ["COUNTED", "FAILED", "REFUSED", "SERVING", "mean", "quantile", "rate", "share"]

REFUSED = 'outcome=~"rejected|timeout"'
FAILED = 'outcome=~"failed|other|rejected|timeout"'
COUNTED = 'outcome!~"cancelled|invalid"'
SERVING = 'namespace=~"$namespace", container=~"kserve-container|transformer-container"'
_PAUSE = "$__rate_interval"
"""At least four scrapes, so that no panel is empty whatever the scrape interval."""


def rate(metric: str, more: str = "") -> str:
    """The rate of a counter of the chosen services."""
    return f"rate({metric}{{{CHOSEN}{', ' + more if more else ''}}}[{_PAUSE}])"


def share(by: str, part: str) -> str:
    """The share of requests with one of these outcomes."""
    return f"sum by ({by}) ({rate('serinus_requests_total', part)}) / sum by ({by}) ({rate('serinus_requests_total', COUNTED)})"


def quantile(q: float, metric: str, by: str = "inferenceservice, model") -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, sum by ({by}, le) ({rate(metric + '_bucket')}))"


def mean(metric: str, by: str = "inferenceservice, model") -> str:
    """The mean of a histogram."""
    return f"sum by ({by}) ({rate(metric + '_sum')}) / sum by ({by}) ({rate(metric + '_count')})"
