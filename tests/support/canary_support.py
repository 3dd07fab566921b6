"""Simulated rollouts, whose truth is known, as the judge sees them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from serinus.canary.evidence.blocks import Block, Counts
from serinus.canary.judge import Decision, Judge
from serinus.canary.looks import Arm, Latency, Look
from serinus.canary.policy import Policy

LE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
FINE_LE_S = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5)
EVEN_SCORES = (0.1,) * 10
_LOOK_S = 6.0
WANTED = math.log(20)
"""The logarithm of evidence that is enough: a level of a twentieth."""


def lognormal(median_s: float, sigma: float, le_s: Sequence[float] = LE_S) -> np.ndarray:
    """Probability of each bucket."""
    return np.array(_lognormal(median_s, sigma, tuple(le_s)))


@functools.cache
def _lognormal(median_s: float, sigma: float, le_s: tuple[float, ...]) -> tuple[float, ...]:
    normal = NormalDist(math.log(median_s), sigma)
    below = [0.0, *(normal.cdf(math.log(bound)) for bound in le_s), 1.0]
    return tuple(np.diff(below).tolist())


@functools.cache
def shifted_scores(psi: float, buckets: int = 10) -> np.ndarray:
    """Deciles of a score that moved by a normal shift, to a wanted population stability index."""
    rank = np.array([NormalDist().inv_cdf((index + 0.5) / buckets) for index in range(buckets)])
    low, high = 0.0, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        shifted = np.exp(middle * rank) / np.exp(middle * rank).sum()
        index = float(((shifted - 1 / buckets) * np.log(shifted * buckets)).sum())
        low, high = (middle, high) if index < psi else (low, middle)
    return shifted


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What one version does."""

    errors: float = 0.005
    median_s: float = 0.02
    sigma: float = 0.5
    scores: Sequence[float] = field(default=EVEN_SCORES)
    slow_start: int = 0
    """First requests that take five times as long; in `ramp`, after each step up, too, by as much more as its percent is."""
    slow_start_s: float = 0.0
    """Seconds in which all take five times as long."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How it is looked at."""

    stable: Truth = Truth()
    canary: Truth = Truth()
    looks: int = 200
    requests: int = 100
    """Of both arms, a look."""
    percent: float = 10.0
    says_percent: bool = True
    routed: float | None = None
    """Percent that the canary really gets."""
    deals_exactly: bool = False
    swing: float = 0.0
    """Of traffic and of errors over a day of 50 looks, as a part of them."""
    only_errors: bool = False
    le_s: Sequence[float] = LE_S

    def simulate(self, rng: np.random.Generator, run: str = "") -> list[Look]:
        """Look at one rollout."""
        return list(self.simulate_lazily(rng, run))

    def simulate_lazily(self, rng: np.random.Generator, run: str = "") -> Iterator[Look]:
        """As `simulate`, whose looks after the decision need not be made; all random numbers are drawn before the first."""
        day = 1 + self.swing * np.sin(np.arange(self.looks) * 2 * np.pi / 50)
        requests = np.maximum(1, np.round(self.requests * day)).astype(int)
        share = (self.routed if self.routed is not None else self.percent) / 100
        canary = np.round(requests * share).astype(int) if self.deals_exactly else rng.binomial(requests, share)
        arms = {}
        for name, truth, counts in (("stable", self.stable, requests - canary), ("canary", self.canary, canary)):
            arms[name] = self._arm(rng, truth, counts, day)
        for index in range(self.looks):
            yield Look(
                run=run,
                seconds=(index + 1) * _LOOK_S,
                percent=self.percent if self.says_percent else None,
                stable=self._at(arms["stable"], index),
                canary=self._at(arms["canary"], index),
            )

    def _arm(self, rng: np.random.Generator, truth: Truth, counts: np.ndarray, day: np.ndarray) -> dict[str, list]:
        parts = {"requests": np.cumsum(counts).tolist()}
        parts["errors"] = np.cumsum(rng.binomial(counts, np.minimum(1.0, truth.errors * day))).tolist()
        if not self.only_errors:
            usual = lognormal(truth.median_s, truth.sigma, self.le_s)
            slow = lognormal(truth.median_s * 5, truth.sigma, self.le_s)
            before = np.cumsum(counts) - counts
            cold = np.clip(truth.slow_start - before, 0, counts)
            cold = np.where(_LOOK_S * np.arange(1, self.looks + 1) <= truth.slow_start_s, counts, cold)
            latency = rng.multinomial(counts - cold, usual) + rng.multinomial(cold, slow)
            parts["latency"] = np.cumsum(latency, axis=0).tolist()
            parts["score"] = np.cumsum(rng.multinomial(counts, truth.scores), axis=0).tolist()
        return parts

    def _at(self, parts: dict[str, list], index: int) -> Arm:
        if self.only_errors:
            return Arm(requests=parts["requests"][index], errors=parts["errors"][index])
        return Arm(
            requests=parts["requests"][index],
            errors=parts["errors"][index],
            latency=Latency(tuple(self.le_s), tuple(parts["latency"][index])),
            score=tuple(parts["score"][index]),
        )


def judge(policy: Policy, looks: Iterable[Look]) -> tuple[Decision, int]:
    """The last decision of a run, and the requests that both arms had by then."""
    judged, requests = Judge(policy), 0
    for look in looks:
        requests = look.stable.requests + look.canary.requests
        if judged.see(look) in {"promote", "rollback"}:
            break
    return judged.explain(), requests


def ramp(policy: Policy, rollout: Rollout, rng: np.random.Generator) -> tuple[Decision, int]:
    """As `judge`, with the traffic moved to the next step wherever the judge advances."""
    judged, percent = Judge(policy), rollout.percent
    known: Look | None = None
    cold, slow_start = rollout.canary.slow_start, rollout.canary.slow_start
    for index in range(rollout.looks):
        canary = replace(rollout.canary, slow_start=cold)
        piece = replace(rollout, canary=canary, looks=1, percent=percent, routed=None).simulate(rng)[0]
        cold = max(0, cold - piece.canary.requests)
        known = piece if known is None else _after(known, piece)
        known = replace(known, seconds=(index + 1) * _LOOK_S)
        verdict = judged.see(known)
        if verdict in {"promote", "rollback"}:
            break
        if verdict == "advance":
            percent = judged.explain().next_percent or percent
            cold = round(slow_start * percent / rollout.percent)
    assert known is not None
    return judged.explain(), known.stable.requests + known.canary.requests


def _after(before: Look, more: Look) -> Look:
    def added(one: Arm, other: Arm) -> Arm:
        return Arm(
            requests=one.requests + other.requests,
            errors=(one.errors or 0) + (other.errors or 0),
            latency=None
            if one.latency is None or other.latency is None
            else Latency(
                one.latency.le_s, tuple(a + b for a, b in zip(one.latency.counts, other.latency.counts, strict=True))
            ),
            score=None
            if one.score is None or other.score is None
            else tuple(a + b for a, b in zip(one.score, other.score, strict=True)),
        )

    return replace(more, stable=added(before.stable, more.stable), canary=added(before.canary, more.canary))


def block(stable: Counts, canary: Counts, stable_count: int, canary_count: int) -> Block:
    """A block of so many of each category."""
    return Block(np.asarray(stable, float), np.asarray(canary, float), stable_count, canary_count)


def walk(
    test: Any,
    rng: np.random.Generator,
    canary: Counts,
    stable: Counts,
    *,
    blocks: int,
    requests: int = 500,
    share: float = 0.1,
) -> float:
    """The highest evidence along a simulated rollout."""
    highest = 0.0
    for _ in range(blocks):
        n = int(rng.binomial(requests, share))
        if 10 <= n <= requests - 10:
            test.add(block(rng.multinomial(requests - n, stable), rng.multinomial(n, canary), requests - n, n))
            highest = max(highest, test.value)
    return highest
