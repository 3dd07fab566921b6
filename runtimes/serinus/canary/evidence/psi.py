"""The population stability index between the arms' scores: what it is, a bound that holds at every look, and the directions of shifts.

PSI(P, Q) = sum_k (P_k - Q_k) ln(P_k / Q_k) over the buckets, P the canary's and Q stable's: Jeffreys' divergence.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

import numpy as np

__all__ = ["normal_ranks", "psi", "psi_upper", "shift_directions"]

_NORMAL: Final = NormalDist()


def psi(canary: np.ndarray, stable: np.ndarray) -> float:
    """The index between two histograms of counts; half a request is added to each bucket, so that an empty one is not infinity.

    Args:
        canary: [buckets].
        stable: [buckets].
    """
    p = (canary + 0.5) / (canary.sum() + 0.5 * len(canary))
    q = (stable + 0.5) / (stable.sum() + 0.5 * len(stable))
    return float(((p - q) * np.log(p / q)).sum())


def psi_upper(canary: np.ndarray, stable: np.ndarray, limit: float, alpha: float) -> float:
    """A bound that the index stays under at all looks at once, for testing whether it is below `limit`.

    The index is asymptotically the mean of u over the canary's requests and v over stable's; the one-sided asymptotic confidence sequence
    of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences", Ann. Stat.
    2024, proposition 2.2 (one-sided form), with the variance that it has at `limit` or the one seen, whichever is more.

    Args:
        canary: [buckets], counts.
        stable: [buckets], counts.
        limit: the index that is to be excluded.
        alpha: most probability to be wrong ever, if the index is `limit` or more.
    """
    n_canary, n_stable = float(canary.sum()), float(stable.sum())
    if min(n_canary, n_stable) < 50:
        return math.inf
    p = (canary + 0.5) / (n_canary + 0.5 * len(canary))
    q = (stable + 0.5) / (n_stable + 0.5 * len(stable))
    logs = np.log(p / q)
    u, v = logs + 1 - q / p, 1 - p / q - logs
    variance_u, variance_v = p @ u**2 - (p @ u) ** 2, q @ v**2 - (q @ v) ** 2
    # Of a normal shift by d: PSI d^2, u about 2 ln r, of variance 4 d^2.
    variance = max(4 * limit, variance_u) / n_canary + max(4 * limit, variance_v) / n_stable
    n = n_canary * n_stable / (n_canary + n_stable)
    r2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / 1000  # tightest at a thousand requests
    root = n * r2 + 1
    width = math.sqrt(2 * root / (n * r2) * math.log1p(math.sqrt(root) / (2 * alpha)))
    return float(((p - q) * logs).sum()) + width * math.sqrt(variance)


def normal_ranks(shares: np.ndarray) -> np.ndarray:
    """Each bucket's middle as a quantile of the normal distribution: what a shift of a normal score is along.

    Args:
        shares: [buckets], probabilities.
    """
    middle = np.minimum(np.maximum(np.add.accumulate(shares) - shares / 2, 1e-12), 1 - 1e-12)
    return np.array([_NORMAL.inv_cdf(each) for each in middle.tolist()])


def shift_directions(stable: np.ndarray) -> np.ndarray:
    """Directions of shifts: all scores up or down, spread out or drawn in, the top or the bottom alone fuller or emptier.

    Args:
        stable: [buckets], probabilities.

    Returns:
        [directions, buckets], in the units of a logarithm of ratios.
    """
    rank = normal_ranks(stable)
    directions = np.zeros((6, len(stable)))
    directions[0] = rank
    directions[2] = rank * rank
    np.negative(directions[0:4:2], out=directions[1:4:2])
    directions[4, -1] = directions[5, 0] = 1.0
    return directions
