"""Is the canary not worse by a margin? Shares (errors, clicks, right predictions) and a quantile of latency, for the promotion.

Both are contrasts (`contrasts`). Of shares, H0: p_canary >= p_stable + margin.

Of a quantile, bucket counts tell only how many requests exceed bounds. H0: at the bound nearest to the quantile, the canary exceeds it at
least as often as stable would if all of it took `margin` longer. How often that would be is read between two bounds: the share that exceeds
a latency falls as a power of it (a line in log-log), as tails of latencies do; the even spread within a bucket that Prometheus's
histogram_quantile assumes would let a tail be longer by several times the margin. The line is drawn through what both arms did before, so it
never sees the block that it is used for.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from .blocks import Block
from .contrasts import Bet, Groups

__all__ = ["NotSlower", "NotWorse"]

_REFIT: Final = 2.0
"""Stakes are chosen anew when this times as much is known,"""
_MOVED: Final = 0.3
"""or when the canary's share of the traffic has moved by this much of itself."""
_LEAST_KNOWN: Final = 50
"""Requests before the first stake."""


class _Promotion:
    """A contrast of one bettor, whose stakes follow what was seen."""

    def __init__(self, known: np.ndarray) -> None:
        """Start at evidence 1.

        Args:
            known: [categories], counts of stable before the first block (the warm-up's), to begin with.
        """
        self._known = np.array(known, dtype=float).tolist()
        self._known_total = float(sum(self._known))
        self._fitted_at = 0.0
        self._fitted_share = 0.0
        self._share = 0.0
        self._bet: Bet | None = None
        self._aside = -math.inf
        """Logarithm of what of the evidence is not bet."""
        self._at_stake = 0.0
        """Logarithm of the rest."""
        self.value = 0.0
        """log E."""

    def set_aside(self, part: float) -> None:
        """Bet all but a part of the evidence from now on; a bettor may keep what they like."""
        self._aside = math.log(part) + self.value
        self._at_stake = math.log1p(-part) + self.value

    def invest_all(self) -> None:
        """Bet all of it again."""
        self._aside, self._at_stake = -math.inf, self.value

    def know(self, known: np.ndarray) -> None:
        """Choose the stakes by other counts than those that were seen.

        Args:
            known: [categories], of stable.
        """
        self._known = known.tolist()
        self._known_total = float(sum(self._known))
        self._fitted_at = self._fitted_share = 0.0

    def add(self, block: Block) -> None:
        """Take in a block."""
        self._share = 0.8 * self._share + 0.2 * block.share if self._share else block.share
        known = self._known_total
        moved = abs(self._share / self._fitted_share - 1) if self._fitted_share else 1.0
        if known >= _LEAST_KNOWN and (known >= _REFIT * self._fitted_at or moved > _MOVED):
            self._fit(known)
        if self._bet is not None:
            self._at_stake += self._bet.log_growth(block)
            most = max(self._at_stake, self._aside)
            self.value = most + math.log1p(math.exp(min(self._at_stake, self._aside) - most))
        self._known = [a + b + c for a, b, c in zip(self._known, block.stable, block.canary, strict=True)]
        self._known_total += block.stable_count + block.canary_count

    def requests_needed(self, wanted: float) -> float:
        """Requests of both arms until log E is `wanted`, if the canary is as good as stable; infinite where it is not known."""
        if self.value >= wanted:
            return 0.0
        growth = self._bet.growth if self._bet is not None else 0.0
        return (wanted - self.value) / growth if growth > 1e-15 else math.inf

    def _contrast(self, both: np.ndarray) -> tuple[Groups, Groups, float]:
        """u, v and tau, where both arms are distributed as said, [categories]."""
        raise NotImplementedError

    def _fit(self, known: float) -> None:
        both = (np.array(self._known) + 0.5) / (known + 0.5 * len(self._known))
        u, v, tau = self._contrast(both)
        self._bet = Bet(u, v, tau, both.tolist(), both.tolist(), self._share)
        self._fitted_at, self._fitted_share = known, self._share


class NotWorse(_Promotion):
    """Evidence that a share is not worse by a margin; categories are [no event, event]."""

    def __init__(self, known: np.ndarray, margin: float, *, higher_is_better: bool = False) -> None:
        """Start at evidence 1.

        Args:
            known: [2], counts of stable before the first block.
            margin: share, 0.005 is half a percentage point.
            higher_is_better: of the share.
        """
        super().__init__(known)
        self._margin = margin
        self._sign = -1.0 if higher_is_better else 1.0

    def _contrast(self, both: np.ndarray) -> tuple[Groups, Groups, float]:
        return ((0.0, 0, 1), (-self._sign, 1, 2)), ((0.0, 0, 1), (self._sign, 1, 2)), -self._margin


class NotSlower(_Promotion):
    """Evidence that a quantile of latency is not longer by a margin; categories are buckets."""

    def __init__(self, known: np.ndarray, le_s: np.ndarray, quantile: float, margin: float) -> None:
        """Start at evidence 1.

        Args:
            known: [buckets], counts of stable before the first block.
            le_s: [buckets - 1], upper bounds.
            quantile: in (0, 1).
            margin: 0.1 lets the quantile be 10 % longer.
        """
        super().__init__(known)
        self._le_s = le_s
        self._beyond = 1 - quantile
        self._margin = margin
        self.bound_s = math.nan
        """The bound at which the arms are compared."""

    def _contrast(self, both: np.ndarray) -> tuple[Groups, Groups, float]:
        exceed = np.cumsum(both[::-1])[::-1][1:]  # P(X > le_s)
        usable = np.flatnonzero(exceed >= self._beyond / 5)
        bound = int(usable[np.argmin(np.abs(np.log(exceed[usable] / self._beyond)))]) if len(usable) else 0
        self.bound_s = float(self._le_s[bound])
        shorter = self.bound_s / (1 + self._margin)
        bucket = int(np.searchsorted(self._le_s, shorter, side="left"))  # the one that `shorter` lies in
        end = len(both)
        beyond = ((0.0, 0, bound + 1), (-1.0, bound + 1, end))
        if bound == 0 and exceed[0] <= self._beyond:
            # Stable's quantile lies below the first bound: that the canary's does, too, is all that such buckets can tell.
            return beyond, ((0.0, 0, end),), -self._beyond
        slower = _exceeding(shorter, bucket, self._le_s, exceed)
        above = float(exceed[bucket])
        part = min(1.0, max(0.0, (slower - above) / float(both[bucket])))
        return beyond, ((0.0, 0, bucket), (part, bucket, bucket + 1), (1.0, bucket + 1, end)), 0.0


def _exceeding(latency_s: float, bucket: int, le_s: np.ndarray, exceed: np.ndarray) -> float:
    """Share of requests above a latency that lies in a bucket."""
    above, high = float(exceed[bucket]), float(le_s[bucket])
    if bucket == 0:
        # A tail's slope falls toward its body: of a lognormal one, at its p98 and p99, to some 0.7 of what it is a bucket further up.
        slope = 1.0
        if len(exceed) > 1:
            slope = max(slope, 0.7 * math.log(above / float(exceed[1])) / math.log(float(le_s[1]) / high))
        evenly = above + (1 - above) * (high - latency_s) / high
        return min(evenly, above * (high / latency_s) ** slope)
    below, low = float(exceed[bucket - 1]), float(le_s[bucket - 1])
    slope = math.log(below / above) / math.log(high / low)
    return above * (high / latency_s) ** slope
