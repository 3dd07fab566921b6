"""Looks of one rollout in their order: what must not go back, and what a look leaves out that was told before."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from ..errors import InvalidInput
from .looks import Arm, Look, listed

__all__ = ["check_follows"]


def check_follows(before: Look, look: Look) -> Look:
    """Hold a look to what was known before it in the same run.

    Args:
        before: what the look before gave back here; the first look itself at first.
        look: the next.

    Returns:
        What is known now, to be handed in as `before` with the next: the look, and what it does not tell as it was told last.

    Raises:
        InvalidInput: time or a counter went back, or the buckets are others.
    """
    if look.seconds < before.seconds:
        raise InvalidInput(
            f"seconds: went back from {before.seconds:g} to {look.seconds:g}; looks are expected in order"
        )
    if _plainly_follows(before, look):
        return look
    stable = _arm_follows("stable", before.stable, look.stable)
    canary = _arm_follows("canary", before.canary, look.canary)
    if stable is look.stable and canary is look.canary:
        return look
    return replace(look, stable=stable, canary=canary, counts=None)


def _plainly_follows(before: Look, look: Look) -> bool:
    """Whether both looks tell the usual metrics alone, of the same buckets, and none went back; most do."""
    was, now = before.counts, look.counts
    if was is None or now is None or len(was) != len(now):
        return False
    earlier, later = before.stable, look.stable
    return (
        earlier.latency is not None
        and later.latency is not None
        and (earlier.latency.le_s is later.latency.le_s or earlier.latency.le_s == later.latency.le_s)
        and False not in map(operator.le, was, now)
    )


def _arm_follows(name: str, earlier: Arm, later: Arm) -> Arm:
    if later.requests < earlier.requests:
        _went_back(f"{name}.requests", earlier.requests, later.requests)
    if earlier.errors is not None and later.errors is not None and later.errors < earlier.errors:
        _went_back(f"{name}.errors", earlier.errors, later.errors)
    was, keys = earlier.affinity_keys, later.affinity_keys
    if was is not None and keys is not None and keys < was:
        _went_back(f"{name}.affinity_keys", was, keys)
    if earlier.latency is not None and later.latency is not None:
        if later.latency.le_s != earlier.latency.le_s:
            raise InvalidInput(
                f"{name}.latency.le_s: {listed(later.latency.le_s)}, the looks before had {listed(earlier.latency.le_s)}; "
                "counts of other buckets cannot be compared"
            )
        _check_counts_follow(f"{name}.latency.counts", earlier.latency.counts, later.latency.counts)
    if earlier.score is not None and later.score is not None:
        if len(later.score) != len(earlier.score):
            raise InvalidInput(
                f"{name}.score.counts: {len(later.score)} buckets, the looks before had {len(earlier.score)}; "
                "counts of other buckets cannot be compared"
            )
        _check_counts_follow(f"{name}.score.counts", earlier.score, later.score)
    for key, mean in earlier.means.items():
        now = later.means.get(key)
        if now is not None and (now.count < mean.count or now.total_squares < mean.total_squares * (1 - 1e-9)):
            _went_back(f"{name}.means.{key}", mean.count, now.count)
    for key, rate in earlier.rates.items():
        told = later.rates.get(key)
        if told is not None and (told.count < rate.count or told.events < rate.events):
            _went_back(f"{name}.rates.{key}", rate.events, told.events)
    tells_all = (
        (later.errors is not None or earlier.errors is None)
        and (later.latency is not None or earlier.latency is None)
        and (later.score is not None or earlier.score is None)
        and (keys is not None or was is None)
        and earlier.means.keys() <= later.means.keys()
        and earlier.rates.keys() <= later.rates.keys()
    )
    if tells_all:
        return later
    return replace(
        later,
        errors=earlier.errors if later.errors is None else later.errors,
        latency=later.latency or earlier.latency,
        score=later.score or earlier.score,
        means={**earlier.means, **later.means} if earlier.means else later.means,
        rates={**earlier.rates, **later.rates} if earlier.rates else later.rates,
        affinity_keys=earlier.affinity_keys if later.affinity_keys is None else later.affinity_keys,
    )


def _check_counts_follow(name: str, earlier: Sequence[int], later: Sequence[int]) -> None:
    if not all(map(operator.le, earlier, later)):
        index = next(index for index, before in enumerate(earlier) if later[index] < before)
        _went_back(f"{name}[{index}]", earlier[index], later[index])


def _went_back(name: str, before: float, now: float) -> NoReturn:
    raise InvalidInput(
        f"{name}: went back from {before} to {now}; has a pod restarted? Counts since the rollout began were expected, "
        "summed over restarts"
    )
