"""Counts of an arm added to one another, and taken away: what a run resumes from, and what fell between two splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import add, sub
from typing import Any

from ..looks import Arm, Latency, Mean, Rate

__all__ = ["add_arms", "resume_arm", "subtract_arms"]


def add_arms(one: Arm, other: Arm) -> Arm:
    """Add two arms up; what one does not tell is the other's."""
    return _combined(one, other, add)


def resume_arm(kept: Arm, since: Arm) -> Arm:
    """Add what was counted since a run was resumed. Users may be the same as before: there are as many as the more of both at least."""
    whole = add_arms(kept, since)
    if kept.affinity_keys is None or since.affinity_keys is None:
        return whole
    return replace(whole, affinity_keys=max(kept.affinity_keys, since.affinity_keys))


def subtract_arms(whole: Arm, part: Arm) -> Arm:
    """Take an arm's counts away from a later state of it."""
    return _combined(whole, part, lambda a, b: max(0, sub(a, b)))


def _combined(one: Arm, other: Arm, with_: Callable[[Any, Any], Any]) -> Arm:
    latency = one.latency or other.latency
    if one.latency is not None and other.latency is not None and one.latency.le_s == other.latency.le_s:
        latency = Latency(one.latency.le_s, _counts(one.latency.counts, other.latency.counts, with_))
    score = one.score or other.score
    if one.score is not None and other.score is not None and len(one.score) == len(other.score):
        score = _counts(one.score, other.score, with_)
    return Arm(
        requests=with_(one.requests, other.requests),
        errors=_optional(one.errors, other.errors, with_),
        latency=latency,
        score=score,
        means=_mapped(one.means, other.means, lambda a, b: _mean(a, b, with_)),
        rates=_mapped(one.rates, other.rates, lambda a, b: _rate(a, b, with_)),
        affinity_keys=_optional(one.affinity_keys, other.affinity_keys, with_),
    )


def _counts(one: tuple[int, ...], other: tuple[int, ...], with_: Callable[[int, int], int]) -> tuple[int, ...]:
    return tuple(with_(a, b) for a, b in zip(one, other, strict=True))


def _optional(one: int | None, other: int | None, with_: Callable[[int, int], int]) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return with_(one, other)


def _mapped(one: Mapping[str, Any], other: Mapping[str, Any], with_: Callable[[Any, Any], Any]) -> Mapping[str, Any]:
    return {
        key: with_(one[key], other[key]) if key in one and key in other else (one[key] if key in one else other[key])
        for key in {**one, **other}
    }


def _rate(one: Rate, other: Rate, with_: Callable[[int, int], int]) -> Rate:
    # What waits is no sum of growths: it is as many as wait now, which only the one that was counted last can tell.
    newer = one if with_(1, 1) == 0 or other.waiting is None else other
    return Rate(with_(one.count, other.count), with_(one.events, other.events), newer.waiting)


def _mean(one: Mean, other: Mean, with_: Callable[[Any, Any], Any]) -> Mean:
    # The sum may be negative: it is no count, and `with_` of a subtraction stops at 0.
    sign = 1.0 if with_(1, 1) == 2 else -1.0
    squares = max(0.0, one.total_squares + sign * other.total_squares)
    return Mean(with_(one.count, other.count), one.total + sign * other.total, squares)
