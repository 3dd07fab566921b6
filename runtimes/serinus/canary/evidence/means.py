"""Is a mean worse in the canary, or not worse by a margin? From counts, sums and sums of squares.

Without bounds: the arms' difference in each block, weighed by h = n_c n_s / (n_c + n_s), adds up to S with estimated variance V; the mixture of
exp(s S - s^2 V / 2) over a half-normal s of variance kappa is

    E = 2 / sqrt(1 + kappa V) * exp(kappa S^2 / (2 (1 + kappa V))) * Phi(S sqrt(kappa / (1 + kappa V)))

the e-process of the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and
asymptotic confidence sequences", Ann. Stat. 2024, equation 2 (one-sided form). It holds for counts so large that the sums are about normal, so it
begins at a minimum. The weights depend on the arms' numbers alone: weights by estimated variance would follow the outliers and lean.

With bounds: exact. For X in [0, 1], exp(l (mu - X) - psi(l) (X - m)^2) with psi(l) = -ln(1 - l) - l and any m that was known before is of
expectation 1 at most (Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSSB 2023, theorem 2; Howard et al., Ann. Stat. 2021,
theorem 4); the arms' factors multiply, with l n equal in both, so that only the difference of the means is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from .event_rates import log_mean_exp

__all__ = ["BoundedMean", "LargeMean", "Sums"]

_STAKES: Final = np.array([0.01, 0.03, 0.1, 0.3, 0.6, 0.9])


@dataclass(frozen=True, slots=True)
class Sums:
    """Count, sum and sum of squares of some values."""

    count: float
    total: float
    squares: float

    @property
    def mean(self) -> float:
        """0 of no values."""
        return self.total / self.count if self.count else 0.0

    def variance(self) -> float:
        """Of the values; 0 of fewer than two."""
        if self.count < 2:
            return 0.0
        return max(0.0, (self.squares - self.total * self.mean) / (self.count - 1))

    def deviations(self, center: float) -> float:
        """Sum of the squares of the values' distances from a number."""
        return max(0.0, self.squares - 2 * center * self.total + self.count * center * center)


class LargeMean:
    """Evidence that canary - stable > 0 (sign 1) or < 0 (sign -1), beyond an offset that moves with stable's mean."""

    def __init__(self, sign: float, margin: float, minimum: int) -> None:
        """Start at evidence 1.

        Args:
            sign: 1 or -1: which difference is looked for.
            margin: of the size of stable's mean, added to the difference: 0, or what a promotion lets the canary be worse by.
            minimum: values of the canary before anything is said.
        """
        self._sign = sign
        self._margin = margin
        self._minimum = minimum
        self._sum = 0.0
        self._weights_canary = 0.0
        self._weights_stable = 0.0
        self._canary = Sums(0, 0.0, 0.0)
        self._stable = Sums(0, 0.0, 0.0)
        self._kappa = 0.0
        self._at = (0.0, 0.0)
        self.value = 0.0
        """log E."""

    def add(self, canary: Sums, stable: Sums) -> None:
        """Take in a block."""
        offset = self._margin * abs((self._stable if self._stable.count else stable).mean)
        h = canary.count * stable.count / (canary.count + stable.count)
        self._sum += h * (self._sign * (canary.mean - stable.mean) + offset)
        self._weights_canary += h * h / canary.count
        self._weights_stable += h * h / stable.count
        self._canary = _added(self._canary, canary)
        self._stable = _added(self._stable, stable)
        variance = self._weights_canary * self._canary.variance() + self._weights_stable * self._stable.variance()
        if self._canary.count < self._minimum or variance <= 0:
            return
        if not self._kappa:
            self._kappa = 1 / variance
        self._at = (self._sum, variance)
        self.value = self._log_evidence(self._sum, variance)

    def requests_needed(self, wanted: float, share: float) -> float:
        """Values of both arms until log E is `wanted`, if the means are equal; infinite where it never will be."""
        if self.value >= wanted:
            return 0.0
        if not self._kappa:
            return max(0.0, self._minimum - self._canary.count) / share
        total, variance = self._at
        h = self._canary.count * self._stable.count / (self._canary.count + self._stable.count)
        drift, spread = self._margin * abs(self._stable.mean), variance / h
        if drift <= 0:
            return math.inf
        more = h
        for _ in range(60):
            if self._log_evidence(total + more * drift, variance + more * spread) >= wanted:
                return more / (share * (1 - share))
            more *= 1.5
        return math.inf

    def _log_evidence(self, total: float, variance: float) -> float:
        spread = 1 + self._kappa * variance
        z = total * math.sqrt(self._kappa / spread)
        # Phi of a very negative number is 0 in floats, its logarithm is not wanted.
        return (
            math.log(2) - 0.5 * math.log(spread) + z * z / 2 + math.log(max(0.5 * math.erfc(-z / math.sqrt(2)), 1e-300))
        )


class BoundedMean:
    """As `LargeMean`, exact for values within bounds."""

    def __init__(self, sign: float, margin: float, bounds: tuple[float, float]) -> None:
        """Start at evidence 1.

        Args:
            sign: 1 or -1: which difference is looked for.
            margin: as of `LargeMean`.
            bounds: between which every value lies.
        """
        self._sign = sign
        self._margin = margin
        self._low, self._width = bounds[0], bounds[1] - bounds[0]
        self._canary = Sums(0, 0.0, 0.0)
        self._stable = Sums(0, 0.0, 0.0)
        self._logs = np.zeros(len(_STAKES))
        self.value = 0.0
        """log E."""

    def add(self, canary: Sums, stable: Sums) -> None:
        """Take in a block; values in their own units."""
        n = canary.count + stable.count
        share = canary.count / n
        both = _added(self._canary, self._stable)
        center = both.mean if both.count else self._low + self._width / 2
        offset = self._margin * abs((self._stable if self._stable.count else stable).mean) / self._width
        difference = self._sign * (canary.mean - stable.mean) / self._width + offset
        stake = _STAKES * min(share, 1 - share)
        l_canary, l_stable = stake / share, stake / (1 - share)
        squares = self._width * self._width
        self._logs = (
            self._logs
            + n * stake * difference
            - (-np.log1p(-l_canary) - l_canary) * (canary.deviations(center) / squares)
            - (-np.log1p(-l_stable) - l_stable) * (stable.deviations(center) / squares)
        )
        self.value = log_mean_exp(self._logs)
        self._canary = _added(self._canary, canary)
        self._stable = _added(self._stable, stable)

    def requests_needed(self, wanted: float, share: float) -> float:
        """Values of both arms until log E is `wanted`, if the means are equal; infinite where it never will be."""
        if self.value >= wanted:
            return 0.0
        drift = self._margin * abs(self._stable.mean) / self._width
        variance = _added(self._canary, self._stable).variance() / (self._width * self._width)
        stake = _STAKES * min(share, 1 - share)
        l_canary, l_stable = stake / share, stake / (1 - share)
        cost = share * (-np.log1p(-l_canary) - l_canary) + (1 - share) * (-np.log1p(-l_stable) - l_stable)
        growth = float((stake * drift - cost * variance).max())
        return (wanted - self.value) / growth if growth > 0 else math.inf


def _added(one: Sums, other: Sums) -> Sums:
    return Sums(one.count + other.count, one.total + other.total, one.squares + other.squares)
