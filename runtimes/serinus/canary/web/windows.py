"""Cumulative looks made into what a person reads: shares, error rates and quantiles of the requests that came last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ..looks import Arm
from .history import Point

__all__ = ["ArmWindow", "Window", "bucket_quantile", "windows_of"]

_MOST: Final = 48
"""Points of a line: more are not told apart on a telephone."""
_LEAST_FOR_ERRORS: Final = 200
_LEAST_FOR_SCORES: Final = 100
_LEAST_IN_TAIL: Final = 3
"""Requests beyond a quantile: fewer make it jump with each of them."""
_NOTHING: Final = Arm(requests=0)


@dataclass(frozen=True, slots=True)
class ArmWindow:
    """One version; None: not measured, or of too few requests to say."""

    requests: int
    """Since the run began."""
    errors: int | None
    """Since the run began."""
    error_share: float | None
    """Of the requests that came last."""
    median_s: float | None
    tail_s: float | None
    """The policy's quantile."""
    score: tuple[float, float, float] | None
    """Bucket, from 0, in which the 10th, 50th and 90th percentile lie, with the place in it."""


@dataclass(frozen=True, slots=True)
class Window:
    """Both versions at the end of some looks in a row."""

    seconds: float
    """Since the run began."""
    percent: float | None
    """That the canary was given."""
    share: float | None
    """Percent of the requests since the window before that the canary got."""
    against: float | None
    stable: ArmWindow
    canary: ArmWindow


def windows_of(points: Sequence[Point], quantile: float) -> list[Window]:
    """Make looks into some fifty windows, none of which has two splits."""
    every = math.ceil(len(points) / _MOST)
    chosen: list[Point] = []
    since = 0
    for index, point in enumerate(points):
        since += 1
        is_last = index + 1 == len(points)
        if is_last or since >= every or points[index + 1].look.percent != point.look.percent:
            chosen.append(point)
            since = 0
    found: list[Window] = []
    for index, point in enumerate(chosen):
        look = point.look
        before = chosen[index - 1].look if index else None
        canary = look.canary.requests - (before.canary.requests if before else 0)
        total = canary + look.stable.requests - (before.stable.requests if before else 0)
        stables = [each.look.stable for each in chosen[: index + 1]]
        canaries = [each.look.canary for each in chosen[: index + 1]]
        found.append(
            Window(
                seconds=look.seconds,
                percent=look.percent,
                share=100 * canary / total if total > 0 else None,
                against=point.against,
                stable=_arm(stables, quantile),
                canary=_arm(canaries, quantile),
            )
        )
    return found


def _arm(arms: Sequence[Arm], quantile: float) -> ArmWindow:
    now = arms[-1]
    base = _base(arms, lambda arm: arm.requests, _LEAST_FOR_ERRORS)
    share = None
    if base is not None and now.errors is not None and now.requests > base.requests:
        share = max(0, now.errors - (base.errors or 0)) / (now.requests - base.requests)
    median = tail = None
    if now.latency is not None:
        median = _latency(arms, 0.5)
        tail = _latency(arms, quantile)
    score = None
    if now.score is not None:
        before = _base(arms, lambda arm: sum(arm.score or ()), _LEAST_FOR_SCORES)
        if before is not None:
            counts = _less(now.score, before.score)
            edges = [float(index) for index in range(len(counts) + 1)]
            places = [bucket_quantile(edges, counts, p) for p in (0.1, 0.5, 0.9)]
            if all(place is not None for place in places):
                score = (places[0] or 0.0, places[1] or 0.0, places[2] or 0.0)
    return ArmWindow(now.requests, now.errors, share, median, tail, score)


def _latency(arms: Sequence[Arm], quantile: float) -> float | None:
    now = arms[-1].latency
    least = math.ceil(_LEAST_IN_TAIL / (1 - quantile))
    before = _base(arms, lambda arm: sum(arm.latency.counts) if arm.latency is not None else 0, least)
    if now is None or before is None:
        return None
    counts = _less(now.counts, before.latency.counts if before.latency is not None else None)
    return bucket_quantile([0.0, *now.le_s, now.le_s[-1]], counts, quantile)


def _base(arms: Sequence[Arm], count: Callable[[Arm], int], least: int) -> Arm | None:
    """The latest state since which at least so many came; None: there were not so many yet."""
    now = count(arms[-1])
    for arm in reversed(arms[:-1]):
        if now - count(arm) >= least:
            return arm
    return _NOTHING if now >= least else None


def _less(now: Sequence[int], before: Sequence[int] | None) -> list[int]:
    if before is None or len(before) != len(now):
        return list(now)
    return [max(0, a - b) for a, b in zip(now, before, strict=True)]


def bucket_quantile(edges: Sequence[float], counts: Sequence[int], p: float) -> float | None:
    """Where a quantile lies, its bucket taken to be filled evenly.

    Args:
        edges: one more than buckets; that of the open last bucket is its lower one again.
        counts: of each bucket.
        p: in (0, 1).

    Returns:
        None where nothing was counted.
    """
    total = sum(counts)
    wanted, below = p * total, 0
    for index, count in enumerate(counts):
        if count and below + count >= wanted:
            low, high = edges[index], edges[index + 1]
            return low + (high - low) * max(0.0, wanted - below) / count
        below += count
    return None
