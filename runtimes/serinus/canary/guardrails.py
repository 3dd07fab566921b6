"""The guardrails of a policy, each with its tests: errors, latency, scores, and the business's own shares and means."""

from __future__ import annotations

import math

import numpy as np

from .evidence.blocks import Block
from .evidence.event_rates import ERROR_RATIOS, EventRates
from .evidence.hard_limits import AboveLimit, with_limit
from .evidence.means import BoundedMean, LargeMean, Sums
from .evidence.non_inferiority import NotWorse
from .latency_guardrail import LatencyWatch
from .looks import Arm, Look, Rate
from .policy import ErrorGuardrail, MeanGuardrail, Policy, RateGuardrail
from .score_guardrail import ScoreWatch
from .watch import Promotion, Told, Watch, needs, percent_text

__all__ = ["make_watches"]


def make_watches(policy: Policy) -> list[Watch]:
    """A watch for each guardrail of a policy."""
    watches: list[Watch] = []
    if policy.errors is not None:
        watches.append(_ErrorWatch(policy.errors))
    if policy.latency is not None:
        watches.append(LatencyWatch(policy.latency, policy.minimum_requests))
    if policy.score is not None:
        watches.append(ScoreWatch(policy.score, policy.level, policy.promotion_level))
    watches.extend(_RateWatch(name, guardrail) for name, guardrail in policy.rates.items())
    watches.extend(_MeanWatch(name, guardrail) for name, guardrail in policy.means.items())
    return watches


def _after_minimum(found: Promotion, minimum: int, stable_count: float, canary_count: float) -> Promotion:
    """A promotion that waits for outcomes, which may come late."""
    if canary_count >= minimum:
        return found
    share = canary_count / (canary_count + stable_count) if canary_count else 0.0
    needed = (minimum - canary_count) / share if share else math.inf
    return Promotion(
        False,
        max(needed, found.requests_needed),
        f"{canary_count:,.0f} outcomes of the canary have come, {minimum:,} are waited for",
    )


class _ShareWatch(Watch):
    """Events of a count: a share of each arm."""

    def __init__(
        self,
        name: str,
        weight: float,
        margin: float,
        *,
        required: bool,
        higher_is_better: bool,
        limit: float | None = None,
    ) -> None:
        super().__init__(name, weight, required=required)
        self._margin = margin
        self._higher = higher_is_better
        self._limit = AboveLimit(limit) if limit is not None and limit < 1 else None

    def _start(self, begin: Told, look: Look) -> None:
        self._worse = EventRates(1, ERROR_RATIOS)
        self._not_worse = NotWorse(np.array(begin.stable, dtype=float), self._margin, higher_is_better=self._higher)

    def _add(self, block: Block) -> None:
        bad = slice(0, 1) if self._higher else slice(1, 2)
        events = Block(block.stable[bad], block.canary[bad], block.stable_count, block.canary_count)
        self._worse.add(events)
        if self._limit is not None:
            self._limit.add(events)
        self.against = with_limit(self._worse.value, self._limit)

    def _add_coarse(self, block: Block) -> None:
        self._not_worse.add(block)

    def promotion(self, wanted: float, discount: float) -> Promotion:
        needed = self._not_worse.requests_needed(wanted / discount)
        what = f"they are not worse by {self._margin * 100:g} percentage points"
        return needs(what, self._not_worse.value, wanted, needed, discount)

    def lets_through(self, wanted: float, discount: float) -> bool:
        return self._not_worse.value * discount >= wanted and self.promotion(wanted, discount).reached

    def words(self) -> str:
        stable, canary, stable_count, canary_count = self.counted()
        return (
            f"canary {percent_text(canary[1], canary_count)} ({canary[1]:,.0f} of {canary_count:,.0f}), "
            f"stable {percent_text(stable[1], stable_count)} ({stable[1]:,.0f} of {stable_count:,.0f})"
        )


class _ErrorWatch(_ShareWatch):
    def __init__(self, guardrail: ErrorGuardrail) -> None:
        super().__init__(
            "errors",
            guardrail.weight,
            guardrail.margin,
            required=guardrail.required,
            higher_is_better=False,
            limit=guardrail.hard_limit,
        )
        self._promotion_limit = guardrail.promotion_limit

    def obstacle(self) -> str:
        """As of `Watch`: a canary that fails so often is not promoted for stable's failing as often."""
        look, begin = self._look, self._begin
        if look is None or begin is None or look.canary.errors is None:
            return ""
        count, events = look.canary.requests - begin.canary_count, look.canary.errors - begin.canary[1]
        if events <= self._promotion_limit * count:
            return ""
        return (
            f"{percent_text(events, count)} of the canary's requests fail; with more than {self._promotion_limit * 100:g} % "
            "(promotion_limit_percent) it goes no further, whatever stable does"
        )

    def _count(self, look: Look) -> tuple[float, float] | None:
        stable, canary = look.stable, look.canary
        return None if stable.errors is None or canary.errors is None else (stable.requests, canary.requests)

    def _read(self, look: Look) -> Told | None:
        stable, canary = look.stable, look.canary
        if stable.errors is None or canary.errors is None:
            return None
        return Told(
            (stable.requests - stable.errors, stable.errors),
            (canary.requests - canary.errors, canary.errors),
            stable.requests,
            canary.requests,
        )


class _RateWatch(_ShareWatch):
    def __init__(self, name: str, guardrail: RateGuardrail) -> None:
        super().__init__(
            name,
            guardrail.weight,
            guardrail.margin,
            required=guardrail.required,
            higher_is_better=guardrail.better == "higher",
        )
        self._minimum = guardrail.minimum_count
        self._minimum_labelled = guardrail.minimum_labelled

    def _count(self, look: Look) -> tuple[float, float] | None:
        stable, canary = look.stable.rates.get(self.name), look.canary.rates.get(self.name)
        return None if stable is None or canary is None else (stable.count, canary.count)

    def _read(self, look: Look) -> Told | None:
        stable, canary = look.stable.rates.get(self.name), look.canary.rates.get(self.name)
        if stable is None or canary is None:
            return None
        return Told(
            (stable.count - stable.events, stable.events),
            (canary.count - canary.events, canary.events),
            stable.count,
            canary.count,
        )

    def promotion(self, wanted: float, discount: float) -> Promotion:
        found = super().promotion(wanted, discount)
        _, _, stable_count, canary_count = self.counted()
        return self._after_labels(_after_minimum(found, self._minimum, stable_count, canary_count))

    def _after_labels(self, found: Promotion) -> Promotion:
        """A promotion that waits for the outcomes of what was predicted already; no further request brings them."""
        rates = self._rates()
        if not self._minimum_labelled or rates is None:
            return found
        for arm, rate in zip(("stable", "canary"), rates, strict=True):
            if rate.waiting is None:
                return Promotion(False, math.inf, "looks do not tell how many outcomes are waited for (waiting)")
            predictions = rate.count + rate.waiting
            if rate.count < self._minimum_labelled * predictions:
                return Promotion(
                    False,
                    math.inf,
                    f"outcomes of {percent_text(rate.count, predictions)} of {arm}'s predictions have come, "
                    f"{self._minimum_labelled * 100:g} % are waited for",
                )
        return found

    def _rates(self) -> tuple[Rate, Rate] | None:
        """Stable's and the canary's at the last look that told them."""
        look = self._look
        if look is None or self.name not in look.stable.rates or self.name not in look.canary.rates:
            return None
        return look.stable.rates[self.name], look.canary.rates[self.name]

    def words(self) -> str:
        rates = self._rates()
        if rates is None or rates[0].waiting is None or rates[1].waiting is None:
            return super().words()
        return f"{super().words()}; outcomes waited for: canary {rates[1].waiting:,}, stable {rates[0].waiting:,}"


class _MeanWatch(Watch):
    needs_fine_blocks = False

    def __init__(self, name: str, guardrail: MeanGuardrail) -> None:
        super().__init__(name, guardrail.weight, required=guardrail.required)
        self._guardrail = guardrail
        worse = 1.0 if guardrail.better == "lower" else -1.0
        bounds, minimum = guardrail.bounds, guardrail.minimum_count
        self._worse = LargeMean(worse, 0.0, minimum) if bounds is None else BoundedMean(worse, 0.0, bounds)
        self._not_worse = (
            LargeMean(-worse, guardrail.margin, minimum)
            if bounds is None
            else BoundedMean(-worse, guardrail.margin, bounds)
        )
        self._share = 0.5

    def _count(self, look: Look) -> tuple[float, float] | None:
        stable, canary = look.stable.means.get(self.name), look.canary.means.get(self.name)
        return None if stable is None or canary is None else (stable.count, canary.count)

    def _read(self, look: Look) -> Told | None:
        stable, canary = self._of(look.stable), self._of(look.canary)
        if stable is None or canary is None:
            return None
        return Told(stable[1:], canary[1:], stable[0], canary[0])

    def _of(self, arm: Arm) -> tuple[float, ...] | None:
        mean = arm.means.get(self.name)
        return None if mean is None else (mean.count, mean.total, mean.total_squares)

    def _start(self, begin: Told, look: Look) -> None:
        """The tests need nothing of the beginning."""

    def _add_coarse(self, block: Block) -> None:
        canary = Sums(block.canary_count, float(block.canary[0]), float(block.canary[1]))
        stable = Sums(block.stable_count, float(block.stable[0]), float(block.stable[1]))
        self._worse.add(canary, stable)
        self._not_worse.add(canary, stable)
        self._share = 0.8 * self._share + 0.2 * block.share
        self.against = self._worse.value

    def promotion(self, wanted: float, discount: float) -> Promotion:
        needed = self._not_worse.requests_needed(wanted / discount, self._share)
        what = f"the mean is not worse by {self._guardrail.margin * 100:g} %"
        found = needs(what, self._not_worse.value, wanted, needed, discount)
        _, _, stable_count, canary_count = self.counted()
        return _after_minimum(found, self._guardrail.minimum_count, stable_count, canary_count)

    def words(self) -> str:
        stable, canary, stable_count, canary_count = self.counted()
        return (
            f"mean canary {canary[0] / max(canary_count, 1):.4g} of {canary_count:,.0f}, "
            f"stable {stable[0] / max(stable_count, 1):.4g} of {stable_count:,.0f}"
        )
