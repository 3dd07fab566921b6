"""The guardrails of a policy, each with its tests: errors, latency, scores, and the business's own shares and means."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from .evidence.blocks import Block
from .evidence.event_rates import ERROR_RATIOS, LATENCY_RATIOS, EventRates
from .evidence.hard_limits import AboveLimit
from .evidence.means import BoundedMean, LargeMean, Sums
from .evidence.multinomial import log_histogram_evidence
from .evidence.non_inferiority import NotSlower, NotWorse
from .evidence.quantiles import quantile_bounds
from .evidence.score_drift import DriftBeyond, psi, psi_upper
from .looks import Arm, Look
from .policy import ErrorGuardrail, LatencyGuardrail, MeanGuardrail, Policy, RateGuardrail, ScoreGuardrail
from .watch import Promotion, Told, Watch, evidence_text

__all__ = ["make_watches"]

_HARD_LIMIT_PART: Final = 0.2
"""Of a guardrail's level, for its hard limit."""


def make_watches(policy: Policy) -> list[Watch]:
    """A watch for each guardrail of a policy."""
    watches: list[Watch] = []
    if policy.errors is not None:
        watches.append(_ErrorWatch(policy.errors))
    if policy.latency is not None:
        watches.append(_LatencyWatch(policy.latency))
    if policy.score is not None:
        watches.append(_ScoreWatch(policy.score, policy.steps[0] / 100, policy.promotion_level))
    watches.extend(_RateWatch(name, guardrail) for name, guardrail in policy.rates.items())
    watches.extend(_MeanWatch(name, guardrail) for name, guardrail in policy.means.items())
    return watches


def _with_limit(comparison: float, limit: AboveLimit | None) -> float:
    if limit is None:
        return comparison
    return float(np.logaddexp(math.log(1 - _HARD_LIMIT_PART) + comparison, math.log(_HARD_LIMIT_PART) + limit.value))


def _needs(what: str, value: float, wanted: float, needed: float, discount: float) -> Promotion:
    if value * discount >= wanted:
        return Promotion(True, 0.0, "")
    return Promotion(
        False, needed, f"evidence that {what} is {evidence_text(value * discount)}, {evidence_text(wanted)} is needed"
    )


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
        self._not_worse = NotWorse(begin.stable, self._margin, higher_is_better=self._higher)

    def _add(self, block: Block) -> None:
        bad = slice(0, 1) if self._higher else slice(1, 2)
        events = Block(block.stable[bad], block.canary[bad], block.stable_count, block.canary_count)
        self._worse.add(events)
        if self._limit is not None:
            self._limit.add(events)
        self.against = _with_limit(self._worse.value, self._limit)

    def _add_coarse(self, block: Block) -> None:
        self._not_worse.add(block)

    def promotion(self, wanted: float, discount: float) -> Promotion:
        needed = self._not_worse.requests_needed(wanted / discount)
        what = f"they are not worse by {self._margin * 100:g} percentage points"
        return _needs(what, self._not_worse.value, wanted, needed, discount)

    def words(self) -> str:
        stable, canary, stable_count, canary_count = self.counted()
        return (
            f"canary {_percent(canary[1], canary_count)} ({canary[1]:,.0f} of {canary_count:,.0f}), "
            f"stable {_percent(stable[1], stable_count)} ({stable[1]:,.0f} of {stable_count:,.0f})"
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

    def _read(self, look: Look) -> Told | None:
        stable, canary = look.stable, look.canary
        if stable.errors is None or canary.errors is None:
            return None
        return Told(
            np.array([stable.requests - stable.errors, stable.errors], dtype=float),
            np.array([canary.requests - canary.errors, canary.errors], dtype=float),
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

    def _read(self, look: Look) -> Told | None:
        stable, canary = look.stable.rates.get(self.name), look.canary.rates.get(self.name)
        if stable is None or canary is None:
            return None
        return Told(
            np.array([stable.count - stable.events, stable.events], dtype=float),
            np.array([canary.count - canary.events, canary.events], dtype=float),
            stable.count,
            canary.count,
        )

    def promotion(self, wanted: float, discount: float) -> Promotion:
        found = super().promotion(wanted, discount)
        _, _, stable_count, canary_count = self.counted()
        return _after_minimum(found, self._minimum, stable_count, canary_count)


class _LatencyWatch(Watch):
    def __init__(self, guardrail: LatencyGuardrail) -> None:
        super().__init__(
            "latency",
            guardrail.weight,
            required=guardrail.required,
            warm_up_requests=guardrail.warm_up_requests,
        )
        self._quantile = guardrail.quantile
        self._margin = guardrail.margin
        self._hard_limit_s = guardrail.hard_limit_s
        self._limit: AboveLimit | None = None
        self._le_s: np.ndarray = np.zeros(1)

    def _read(self, look: Look) -> Told | None:
        stable, canary = look.stable.latency, look.canary.latency
        if stable is None or canary is None:
            return None
        of_stable, of_canary = np.array(stable.counts, dtype=float), np.array(canary.counts, dtype=float)
        return Told(of_stable, of_canary, float(of_stable.sum()), float(of_canary.sum()))

    def _start(self, begin: Told, look: Look) -> None:
        if look.stable.latency is not None:
            self._le_s = np.array(look.stable.latency.le_s)
        self._slower = EventRates(len(self._le_s), LATENCY_RATIOS)
        self._not_slower = NotSlower(begin.stable, self._le_s, self._quantile, self._margin)
        self._limit_bound = -1
        if self._hard_limit_s is not None:
            # What is beyond the first bound that is not below the limit certainly took longer than it.
            self._limit_bound = int(np.searchsorted(self._le_s, self._hard_limit_s, side="left"))
            if self._limit_bound < len(self._le_s):
                self._limit = AboveLimit(1 - self._quantile)

    def _add(self, block: Block) -> None:
        exceed_stable = np.cumsum(block.stable[::-1])[::-1][1:]
        exceed_canary = np.cumsum(block.canary[::-1])[::-1][1:]
        self._slower.add(Block(exceed_stable, exceed_canary, block.stable_count, block.canary_count))
        if self._limit is not None:
            at = slice(self._limit_bound, self._limit_bound + 1)
            self._limit.add(Block(exceed_stable[at], exceed_canary[at], block.stable_count, block.canary_count))
        self.against = _with_limit(self._slower.value, self._limit)

    def _add_coarse(self, block: Block) -> None:
        self._not_slower.add(block)

    def promotion(self, wanted: float, discount: float) -> Promotion:
        needed = self._not_slower.requests_needed(wanted / discount)
        what = f"p{self._quantile * 100:g} is not longer by {self._margin * 100:g} %"
        if not math.isnan(self._not_slower.bound_s):
            what += f" (by what exceeds {self._not_slower.bound_s:g} s)"
        return _needs(what, self._not_slower.value, wanted, needed, discount)

    def words(self) -> str:
        stable, canary, stable_count, canary_count = self.counted()
        bound = int(np.argmax(self._slower.by_event()))
        name = f"p{self._quantile * 100:g}"
        return (
            f"above {self._le_s[bound]:g} s canary {_percent(float(canary[bound + 1 :].sum()), canary_count)} of "
            f"{canary_count:,.0f}, stable {_percent(float(stable[bound + 1 :].sum()), stable_count)} of {stable_count:,.0f}; "
            f"{name} canary {self._band(canary)}, stable {self._band(stable)}"
        )

    def _band(self, counts: np.ndarray) -> str:
        low, high = quantile_bounds(self._le_s.tolist(), [int(each) for each in counts], self._quantile, 0.05)
        return f"{low:g} to {high:g} s" if high < math.inf else f"{low:g} s or more"


class _ScoreWatch(Watch):
    def __init__(self, guardrail: ScoreGuardrail, first_share: float, level: float) -> None:
        super().__init__(
            "score", guardrail.weight if guardrail.tolerated_psi is not None else 0.0, required=guardrail.required
        )
        self._tolerated = guardrail.tolerated_psi
        self._promotion_psi = guardrail.promotion_psi
        self._level = level
        self._share = first_share
        self._beyond: DriftBeyond | None = None
        self._differ = 0.0
        self._stage: Told | None = None
        self._percent: float | None = None

    def _read(self, look: Look) -> Told | None:
        stable, canary = look.stable.score, look.canary.score
        if stable is None or canary is None:
            return None
        if look.percent != self._percent:
            # Another step: its evidence, from another split, multiplies that of the steps before.
            self._percent = look.percent
            if self._tolerated is None and self._now is not None:
                self._differ = self._evidence_of_difference()
                self._stage = self._now
        of_stable, of_canary = np.array(stable, dtype=float), np.array(canary, dtype=float)
        return Told(of_stable, of_canary, float(of_stable.sum()), float(of_canary.sum()))

    def _start(self, begin: Told, look: Look) -> None:
        self._stage = begin
        if self._tolerated is not None:
            self._beyond = DriftBeyond(begin.canary, begin.stable, self._tolerated)

    def _add_coarse(self, block: Block) -> None:
        if self._beyond is not None:
            self._beyond.add(block)
            self.against = self._beyond.value

    def promotion(self, wanted: float, discount: float) -> Promotion:
        limit = self._promotion_psi
        if limit is None:
            return Promotion(True, 0.0, "")
        stable, canary, stable_count, canary_count = self.counted()
        upper = psi_upper(canary * discount, stable * discount, limit, self._level)
        if upper < limit:
            return Promotion(True, 0.0, "")
        seen = psi(canary, stable)
        # The bound's width falls as the square root of the requests.
        room = limit - min(seen, limit / 2)
        total = stable_count + canary_count
        needed = total * ((upper - seen) / room) ** 2 - total if upper < math.inf and total else math.inf
        said = f"{upper:.2g}" if upper < math.inf else "not known yet"
        return Promotion(False, max(needed, 1.0), f"upper bound of the PSI is {said}, less than {limit:g} is needed")

    def words(self) -> str:
        stable, canary, stable_count, canary_count = self.counted()
        tolerated = f", {self._tolerated:g} is tolerated" if self._tolerated is not None else ""
        return (
            f"PSI about {psi(canary, stable):.2g} of {canary_count:,.0f} beside {stable_count:,.0f} scores{tolerated}"
        )

    def warning(self, wanted: float) -> str:
        if self._tolerated is not None or self._now is None or self._evidence_of_difference() < wanted:
            return ""
        return f"the scores are distributed otherwise, which this policy only warns of: {self.words()}"

    def _evidence_of_difference(self) -> float:
        if self._stage is None or self._now is None:
            return self._differ
        share = self._percent / 100 if self._percent is not None and 0 < self._percent < 100 else self._share
        stage, now = self._stage, self._now
        return self._differ + log_histogram_evidence(
            (now.canary - stage.canary).tolist(), (now.stable - stage.stable).tolist(), share
        )


class _MeanWatch(Watch):
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

    def _read(self, look: Look) -> Told | None:
        stable, canary = self._of(look.stable), self._of(look.canary)
        if stable is None or canary is None:
            return None
        return Told(stable[1:], canary[1:], float(stable[0]), float(canary[0]))

    def _of(self, arm: Arm) -> np.ndarray | None:
        mean = arm.means.get(self.name)
        return None if mean is None else np.array([mean.count, mean.total, mean.total_squares])

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
        found = _needs(what, self._not_worse.value, wanted, needed, discount)
        _, _, stable_count, canary_count = self.counted()
        return _after_minimum(found, self._guardrail.minimum_count, stable_count, canary_count)

    def words(self) -> str:
        stable, canary, stable_count, canary_count = self.counted()
        return (
            f"mean canary {canary[0] / max(canary_count, 1):.4g} of {canary_count:,.0f}, "
            f"stable {stable[0] / max(stable_count, 1):.4g} of {stable_count:,.0f}"
        )


def _percent(events: float, count: float) -> str:
    return f"{100 * events / count:.3g} %" if count else "none"
