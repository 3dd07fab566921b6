"""Is the shift of the scores clearly more than is tolerated? By an estimate, against a boundary that holds at every look.

Of the difference of the arms' distributions the two smoothest directions are measured: all scores up or down, and spread out or drawn in (a
model's scores move so; what moves otherwise is left to `score_drift`). With p and q the arms' shares, m = (p + q) / 2 and phi_j orthonormal
under m, R^2 = sum_j (sum_k (p_k - q_k) phi_j(k))^2 is at most sum_k (p_k - q_k)^2 / m_k (Bessel's inequality), which is at most the population
stability index (each term: (x - 1)^2 / ((x + 1) / 2) <= (x - 1) ln x, of x = p / q). So it is never more than is tolerated where the index is not,
whatever the shift: the tolerated ball of distributions lies inside a ball of R.

Counted, nu R^2 with 1 / nu = 1 / n + 1 / m is a noncentral chi-squared of d = 2 degrees of freedom about nu times the truth's, so that
sqrt(nu R^2 - (d - 1)) is near normal with the standard error 1 about sqrt(nu) R, and less of it where the truth is less. Over time it moves as a
Brownian motion over the square root of time, of the information s = nu tau at the tolerated index tau. It is looked at as often as the
logarithm of the information grows, by the numbers of requests alone: a group-sequential test (Jennison & Turnbull, "Group
Sequential Methods", 1999, chapters 2 and 19), whose chance to ever cross a boundary is an integral over each look in turn (Armitage, McPherson &
Rowe, JRSS A 1969). The boundary spends most of its level where a shift of 2.6 times the tolerated index is told at even odds, and some at every other
size (Lan & DeMets, Biometrika 1983). Ville's inequality over all of time, which the other tests are held to, would ask for twice the
requests here. Asymptotic, not exact: the counts are of hundreds.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

import numpy as np

from .psi import shift_directions

__all__ = ["LEAST_MORE", "SizeBeyond", "errors_beyond", "errors_needed"]

_NORMAL: Final = NormalDist()
_MAIN_AT: Final = 12.4
"""Information that most is spent at: for a tolerated 0.05, that of 275 requests of the canary beside nine times as many."""
_MAIN_PART: Final = 0.55
"""Of the level, at one look there."""
_MAIN_RISE: Final = 30.0
"""How fast the boundary rises beside it: its square, by the square of the logarithm of the information's ratio."""
_WIDE_AT: Final = 5.0
_WIDE_PART: Final = 0.1
"""Of the level, at one look elsewhere."""
_WIDE_RISE: Final = 0.6
"""All of these were chosen for the least requests at 2.6 and 6.6 times the tolerated index."""
LEAST_MORE: Final = 1.6
"""Information between two looks at the estimate, that of 36 requests of the canary beside nine times as many where 0.05 is tolerated: blocks
end after 40, and no block is to be passed over for a few requests of stable,"""
_GROWTH: Final = 0.13
"""or this part of what there is."""
_MANY: Final = (1.0, 0.095)
"""The smaller the level, the less the looks' chances overlap: it is divided by the first and the second times its logarithm below 0.05, so that the
integral over all looks is 0.9 to 1 times the level, from 0.0005 to 0.05."""


class SizeBeyond:
    """Whether the estimate has ever been clearly beyond a tolerated index."""

    def __init__(self, tolerated: float, level: float) -> None:
        """Before the first look.

        Args:
            tolerated: PSI, above 0.
            level: most probability that a shift which is tolerated is ever found to be beyond it.
        """
        self._tolerated, self._level = tolerated, level
        self._next_at = 0.0
        """Information from which on the estimate is looked at again."""
        self.is_clear = False
        """Whether it has been."""

    def look(self, canary: np.ndarray, stable: np.ndarray, discount: float) -> None:
        """Look at the estimate, where there is enough more to know than at the last look.

        Args:
            canary: [buckets], counts.
            stable: likewise.
            discount: what a request counts for, in (0, 1].
        """
        information = self._information(canary, stable, discount)
        if self.is_clear or information <= 0 or information < self._next_at:
            return
        self._next_at = information + max(LEAST_MORE, _GROWTH * information)
        beyond = errors_beyond(canary, stable, self._tolerated, discount)
        self.is_clear = beyond >= errors_needed(information, self._level)

    def words(self, canary: np.ndarray, stable: np.ndarray, discount: float) -> str:
        """How far it is, such as `and exceeded by 1.2 standard errors, 2.4 are clear`; empty: not at all."""
        if self.is_clear:
            return "and was clearly exceeded"
        beyond = errors_beyond(canary, stable, self._tolerated, discount)
        if beyond <= 0:
            return ""
        needed = errors_needed(self._information(canary, stable, discount), self._level)
        return f"and exceeded by {beyond:.1f} standard errors, {needed:.1f} are clear"

    def _information(self, canary: np.ndarray, stable: np.ndarray, discount: float) -> float:
        n, m = float(canary.sum()) * discount, float(stable.sum()) * discount
        return n * m / (n + m) * self._tolerated if n > 0 and m > 0 else 0.0


def errors_beyond(canary: np.ndarray, stable: np.ndarray, tolerated: float, discount: float = 1.0) -> float:
    """How far the smooth part of the index is estimated to be beyond a tolerated one.

    Args:
        canary: [buckets], counts.
        stable: likewise.
        tolerated: PSI.
        discount: what a request counts for, in (0, 1].

    Returns:
        Standard errors of its square root; minus infinity of an empty arm.
    """
    n, m = float(canary.sum()) * discount, float(stable.sum()) * discount
    if n <= 0 or m <= 0:
        return -math.inf
    buckets = len(canary)
    p, q = canary * (discount / n), stable * (discount / m)
    difference = p - q
    # Both arms' mean, which only the directions are measured by; half a request is added to each bucket, so that none is without weight.
    middle = (p + q + (1 / n + 1 / m) / 2) / (2 + buckets * (1 / n + 1 / m) / 2)
    basis = [np.ones(buckets)]
    size = 0.0
    for direction in shift_directions(middle)[[0, 2]]:
        rest = direction.copy()
        for each in basis:
            rest -= (middle @ (rest * each)) * each
        length = float(middle @ (rest * rest))
        if length < 1e-9:
            continue  # two buckets have one direction
        rest /= math.sqrt(length)
        basis.append(rest)
        size += float(difference @ rest) ** 2
    information, freedom = n * m / (n + m), len(basis) - 1
    return math.sqrt(max(0.0, information * size - (freedom - 1))) - math.sqrt(information * tolerated)


def errors_needed(information: float, level: float) -> float:
    """How many standard errors beyond the tolerated index are clear.

    Args:
        information: nu times the tolerated index, above 0.
        level: most probability that one of the tolerated index is ever found to be beyond it.
    """
    level /= max(1.0, _MANY[0] + _MANY[1] * math.log(0.05 / level))
    main = _NORMAL.inv_cdf(1 - _MAIN_PART * level) ** 2 + _MAIN_RISE * math.log(information / _MAIN_AT) ** 2
    wide = _NORMAL.inv_cdf(1 - _WIDE_PART * level) ** 2 + _WIDE_RISE * math.log(information / _WIDE_AT) ** 2
    return math.sqrt(min(main, wide))
