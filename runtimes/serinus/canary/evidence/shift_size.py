"""Is the shift of the scores clearly more than is tolerated? By an estimate, against a boundary that holds at every look.

Of the difference of the arms' distributions the two smoothest directions are measured: all scores up or down, and spread out or drawn in (a
model's scores move so; what moves otherwise is left to `score_drift`). With p and q the arms' shares, m = (p + q) / 2 and phi_j orthonormal
under m, sum_j (sum_k (p_k - q_k) phi_j(k))^2 is at most sum_k (p_k - q_k)^2 / m_k (Bessel's inequality), which is at most the population
stability index (each term: (x - 1)^2 / ((x + 1) / 2) <= (x - 1) ln x, of x = p / q). So it is never more than is tolerated where the index is not.

Counted, its mean is the truth's plus d / nu, with d = 2 directions and 1 / nu = 1 / n + 1 / m, and its variance (4 tau nu + 2 d) / nu^2 where the
truth is tau (a noncentral chi-squared over nu; all ten buckets would have d = 9, that is more noise and more skew). The estimate less d / nu
and tau, in its standard errors, is near normal; as nu grows it goes like a Brownian motion over the square root of time. exp(l S - l^2 t / 2) is a
martingale of that, so that the motion ever crosses the line ln(1 / alpha) / l + l t / 2 with probability alpha (Ville): in standard errors, at the time
t, it takes (a / 2) (sqrt(t0 / t) + sqrt(t / t0)) with a = sqrt(2 ln(1 / alpha)) and t0 = (a / l)^2, where it takes least. l is so chosen that t0 is
when a shift of 2.6 times the tolerated index is found. Asymptotic, not exact: the counts are of hundreds and the estimate is skewed.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from .psi import normal_ranks

__all__ = ["errors_beyond", "errors_needed"]

_LEAST_AT: Final = 7.5
"""t0 times the tolerated index: 150 for 0.05, which is a canary of 170 requests beside nine times as many."""
_SKEW: Final = 1.14
"""The boundary is for the level divided by this. Simulated (2,000 rollouts of 60,000 requests at 10 %, looks every 100, 0.05 tolerated, level 5 %): with
it, an index of 0.0499 is beyond it in 4.7 %, one of 0.04 in 3.0 %."""


def errors_beyond(canary: np.ndarray, stable: np.ndarray, tolerated: float, discount: float = 1.0) -> float:
    """How far the smooth part of the index is estimated to be beyond a tolerated one.

    Args:
        canary: [buckets], counts.
        stable: likewise.
        tolerated: PSI.
        discount: what a request counts for, in (0, 1].

    Returns:
        Standard errors that it has at the tolerated index; minus infinity of an empty arm.
    """
    n, m = float(np.add.reduce(canary)) * discount, float(np.add.reduce(stable)) * discount
    if n <= 0 or m <= 0:
        return -math.inf
    buckets = len(canary)
    p = (canary * discount + 0.5) / (n + 0.5 * buckets)
    q = (stable * discount + 0.5) / (m + 0.5 * buckets)
    middle, difference = (p + q) / 2, p - q
    ranks = normal_ranks(middle)
    basis: list[np.ndarray] = []
    size = 0.0
    for direction in (ranks, ranks * ranks):
        rest = direction - middle @ direction
        for each in basis:
            rest -= (middle @ (rest * each)) * each
        length = float(middle @ (rest * rest))
        if length < 1e-9:
            continue  # two buckets have one direction
        rest /= math.sqrt(length)
        basis.append(rest)
        size += float(difference @ rest) ** 2
    inverse, freedom = 1 / n + 1 / m, len(basis)
    return (size - freedom * inverse - tolerated) / math.sqrt(inverse * (4 * tolerated + 2 * freedom * inverse))


def errors_needed(canary: float, stable: float, tolerated: float, level: float) -> float:
    """How many standard errors beyond the tolerated index roll back.

    Args:
        canary: requests, each counted as what it counts for; above 0.
        stable: likewise.
        tolerated: PSI, above 0.
        level: most probability that one of the tolerated index is ever found to be beyond it.
    """
    least = math.sqrt(2 * math.log(_SKEW / level))
    late = math.sqrt(canary * stable / (canary + stable) * tolerated / _LEAST_AT)
    return least / 2 * (late + 1 / late)
