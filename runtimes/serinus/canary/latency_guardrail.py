"""The guardrail of latency: the whole distribution for the rollback, one quantile for the promotion.

Cold requests. A canary that is right is slow at first: it compiles, fills caches and opens connections; so are the replicas that a step up
adds. What it answers in its first requests and seconds, of the rollout and of each step up, therefore brings no evidence that rolls back:
whatever was slow there is forgotten, and only what it answers afterwards counts. How long that takes is told by numbers of requests and by time,
never by latencies: leaving out blocks that were chosen so leaves the product of the others as valid as it was (Ville's inequality holds
for every predictable choice of stakes; a stake of 0 is one). Nothing that is decided by latencies could tell a slow canary from a cold one before
the time that a cold one takes. Meanwhile a canary that is slow gets no further: the next step and the promotion wait.

A tolerated ratio r. A canary that is slower by design is held to stable's latencies times r. H0 is then that for every bound b the canary exceeds b at
most as often as stable exceeds b / r. Buckets tell that only at bounds: what is counted of stable is what exceeds the greatest bound that is
not above b / r, at least as much. So the test keeps its level whatever lies within the buckets, and coarse buckets tolerate more than r.

The promotion bets a part of its evidence on what may be cold, so that a canary that never was loses no time, and sets the rest aside, so that
one that was is promoted in the end; afterwards it bets all. Money that is not bet keeps an e-process one.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import numpy as np

from .evidence.blocks import Block
from .evidence.event_rates import LATENCY_RATIOS, EventRates
from .evidence.hard_limits import AboveLimit, with_limit
from .evidence.non_inferiority import NotSlower
from .evidence.quantiles import quantile_bounds
from .looks import Look
from .policy import LatencyGuardrail
from .watch import Promotion, Told, Watch, needs, percent_text

__all__ = ["LatencyWatch"]

_SET_ASIDE: Final = 0.4
"""Of the evidence for a promotion, while the canary may be cold."""


class LatencyWatch(Watch):
    """The latencies."""

    def __init__(self, guardrail: LatencyGuardrail, minimum_requests: int) -> None:
        """Before the first look.

        Args:
            guardrail: of the policy.
            minimum_requests: of the canary after a warm-up in which it was slow, before the next step.
        """
        super().__init__("latency", guardrail.weight, required=guardrail.required)
        self._guardrail = guardrail
        self._first_percent: float | None = None
        """Of the traffic, which the warm-up's requests are for: a step of more has so many more replicas."""
        self._quantile = guardrail.quantile
        self._margin = guardrail.margin
        self._ratio = guardrail.tolerated_ratio
        self._stable_bounds: list[int] = []
        """For each bound, the one that stable is held to, from 1; 0: none, all of its requests."""
        self._limit: AboveLimit | None = None
        self._limit_bound = -1
        self._le_s: np.ndarray = np.zeros(1)
        self._is_cold = guardrail.warm_up_requests > 0 or guardrail.warm_up_s > 0
        self._was_warm = not self._is_cold
        """Whether the rollout's first warm-up is over."""
        self._minimum_requests = minimum_requests
        self._watched_until = 0.0
        """Requests of the canary until which what was slow in a warm-up is remembered."""
        self._answered = 0.0
        """Requests of the canary until now."""
        self._cold_since = (0.0, 0.0)
        """The canary's requests and the time at which the present warm-up began,"""
        self._cold_requests = float(guardrail.warm_up_requests)
        """and the canary's requests that it takes."""
        self._cold_began: Told | None = None
        """The counts at which it began."""
        self._left_out: Told | None = None
        """What the warm-ups before had."""

    @property
    def has_begun(self) -> bool:
        """As of `Watch`."""
        return self._begin is not None and self._was_warm

    def warming_up(self, look: Look) -> Promotion:
        """As of `Watch`."""
        requests, seconds = look.canary.requests - self._cold_since[0], look.seconds - self._cold_since[1]
        missing = self._cold_requests - requests
        if missing <= 0:
            waited = f"{seconds:g} of {self._guardrail.warm_up_s:g} s have passed"
            return Promotion(False, 1.0, f"warming up: {waited}")
        share = look.canary.requests / (look.canary.requests + look.stable.requests) if look.canary.requests else 0.0
        return Promotion(
            False,
            missing / share if share else math.inf,
            f"warming up: the canary has answered {requests:,.0f} of {self._cold_requests:,.0f} requests",
        )

    def passes(self, look: Look) -> bool:
        """As of `Watch`; not while a warm-up may end, or what was slow in one may be forgotten."""
        return not self._is_cold and self.leaning == -math.inf and super().passes(look)

    def see(self, look: Look, *, from_zero: bool, before: Look | None, is_new_step: bool) -> bool:
        """As of `Watch`; a step up begins a warm-up anew, at the look before it."""
        if is_new_step and before is not None:
            self._end_blocks()
            self._step(look, before)
        changed = super().see(look, from_zero=from_zero, before=before, is_new_step=is_new_step)
        self._first_percent = self._first_percent or look.percent
        self._answered = look.canary.requests
        if not self._is_cold:
            if self._answered >= self._watched_until:
                self.leaning = -math.inf
            return changed
        if (
            look.canary.requests - self._cold_since[0] < self._cold_requests
            or look.seconds - self._cold_since[1] < self._guardrail.warm_up_s
        ):
            return changed
        now = self._now
        if now is not None:
            self._end_blocks()
            self._is_cold, self._was_warm = False, True
            self._watched_until = self._answered + self._minimum_requests
            self._left_out = self._cold_part(now)
            self._not_slower.invest_all()
            if self._slower_cold.value > 0:
                # What was slow would be taken for the tail of both arms.
                self._not_slower.know(np.array(now.stable, dtype=float))
        return True

    def _step(self, look: Look, before: Look) -> None:
        guardrail = self._guardrail
        if look.percent is None or (before.percent is not None and look.percent <= before.percent):
            return
        if before.percent is None or not (guardrail.warm_up_requests or guardrail.warm_up_s):
            return
        now = self._now
        if self._is_cold and now is not None:
            self._left_out = self._cold_part(now)
        self._is_cold = True
        self._cold_since = (before.canary.requests, before.seconds)
        self._cold_requests = guardrail.warm_up_requests * max(
            1.0, look.percent / (self._first_percent or look.percent)
        )
        self._cold_began = now
        if self._begin is not None:
            self._not_slower.set_aside(_SET_ASIDE)
            self._slower_cold = EventRates(len(self._le_s), LATENCY_RATIOS)
            self.leaning = 0.0

    def _cold_part(self, now: Told) -> Told:
        """What all warm-ups had, with the present one until now."""
        began = self._cold_began or self._begin or now
        before = self._left_out or now.nothing()
        return Told(
            np.add(before.stable, np.subtract(now.stable, began.stable, dtype=float)),  # type: ignore[arg-type] # indexed alike
            np.add(before.canary, np.subtract(now.canary, began.canary, dtype=float)),  # type: ignore[arg-type] # indexed alike
            before.stable_count + now.stable_count - began.stable_count,
            before.canary_count + now.canary_count - began.canary_count,
        )

    def counted(self) -> tuple[np.ndarray, np.ndarray, float, float]:
        """As of `Watch`, without what was cold."""
        stable, canary, stable_count, canary_count = super().counted()
        now = self._now
        if now is None:
            return stable, canary, stable_count, canary_count
        cold = self._cold_part(now) if self._is_cold else self._left_out
        if cold is None:
            return stable, canary, stable_count, canary_count
        return (
            stable - cold.stable,
            canary - cold.canary,
            stable_count - cold.stable_count,
            canary_count - cold.canary_count,
        )

    def _count(self, look: Look) -> tuple[float, float] | None:
        stable, canary = look.stable.latency, look.canary.latency
        return None if stable is None or canary is None else (sum(stable.counts), sum(canary.counts))

    def _read(self, look: Look) -> Told | None:
        stable, canary = look.stable.latency, look.canary.latency
        if stable is None or canary is None:
            return None
        return Told(stable.counts, canary.counts, sum(stable.counts), sum(canary.counts))

    def _start(self, begin: Told, look: Look) -> None:
        if look.stable.latency is not None:
            self._le_s = np.array(look.stable.latency.le_s)
        # A bound times the ratio that is another bound but for rounding is that one.
        self._stable_bounds = np.searchsorted(self._le_s, self._le_s / self._ratio * (1 + 1e-9), side="right").tolist()
        known = np.array(begin.stable, dtype=float)
        self._slower = EventRates(len(self._le_s), LATENCY_RATIOS)
        self._slower_cold = EventRates(len(self._le_s), LATENCY_RATIOS)
        self._not_slower = NotSlower(known, self._le_s, self._quantile, self._margin)
        if self._is_cold:
            self._not_slower.set_aside(_SET_ASIDE)
        limit_s = self._guardrail.hard_limit_s
        if limit_s is not None:
            # What is beyond the first bound that is not below the limit certainly took longer than it.
            self._limit_bound = int(np.searchsorted(self._le_s, limit_s, side="left"))
            if self._limit_bound < len(self._le_s):
                self._limit = AboveLimit(1 - self._quantile)

    def _add(self, block: Block) -> None:
        exceed_stable = list(itertools.accumulate(block.stable[:0:-1]))[::-1]
        exceed_canary = list(itertools.accumulate(block.canary[:0:-1]))[::-1]
        if self._ratio > 1:
            exceeds = [block.stable_count, *exceed_stable]
            exceed_stable = [exceeds[bound] for bound in self._stable_bounds]
        events = Block(exceed_stable, exceed_canary, block.stable_count, block.canary_count)
        if self._is_cold:
            self._slower_cold.add(events)
            self.leaning = self._slower_cold.value
            return
        self._slower.add(events)
        if self._limit is not None:
            at = slice(self._limit_bound, self._limit_bound + 1)
            self._limit.add(Block(exceed_stable[at], exceed_canary[at], block.stable_count, block.canary_count))
        self.against = with_limit(self._slower.value, self._limit)

    def _add_coarse(self, block: Block) -> None:
        self._not_slower.add(block)

    def lets_through(self, wanted: float, discount: float) -> bool:
        """As of `Watch`."""
        return self._not_slower.value * discount >= wanted

    def promotion(self, wanted: float, discount: float) -> Promotion:
        """As of `Watch`."""
        needed = self._not_slower.requests_needed(wanted / discount)
        what = f"p{self._quantile * 100:g} is not longer by {self._margin * 100:g} %"
        if not math.isnan(self._not_slower.bound_s):
            what += f" (by what exceeds {_text(self._not_slower.bound_s)} s)"
        return needs(what, self._not_slower.value, wanted, needed, discount)

    def words(self) -> str:
        """As of `Watch`."""
        stable, canary, stable_count, canary_count = self.counted()
        bound = int(np.argmax(self._slower.by_event()))
        name = f"p{self._quantile * 100:g}"
        above_canary = percent_text(float(canary[bound + 1 :].sum()), canary_count)
        above_stable = percent_text(float(stable[bound + 1 :].sum()), stable_count)
        tolerated = f", {self._ratio:g} times stable's are tolerated" if self._ratio > 1 else ""
        return (
            f"above {_text(self._le_s[bound])} s canary {above_canary} of {canary_count:,.0f}, stable {above_stable} of "
            f"{stable_count:,.0f}; {name} canary {self._band(canary)}, stable {self._band(stable)}{tolerated}"
        )

    def _band(self, counts: np.ndarray) -> str:
        low, high = quantile_bounds(self._le_s.tolist(), [int(each) for each in counts], self._quantile, 0.05)
        return f"{_text(low)} to {_text(high)} s" if high < math.inf else f"{_text(low)} s or more"


def _text(seconds: float) -> str:
    """Seconds in digits alone: 0.00005, where `:g` says 5e-05."""
    return np.format_float_positional(seconds, precision=9, trim="-")
