"""Do the model's scores differ by more than is tolerated? The population stability index between the arms, at every look.

PSI(P, Q) = sum_k (P_k - Q_k) ln(P_k / Q_k) over the buckets, P the canary's and Q stable's. It is convex in both together and homogeneous
of degree 1, so its tangent plane at any ratios r_k supports it from below: with u_k = ln r_k + 1 - 1 / r_k and v_k = 1 - r_k - ln r_k,

    E_P[u(X)] + E_Q[v(X)] <= PSI(P, Q) for every r, with equality where P_k / Q_k = r_k

(the variational form of an f-divergence: Nguyen, Wainwright & Jordan, "Estimating divergence functionals", IEEE Trans. Inf. Theory 2010,
lemma 1). So "PSI <= tau" is the intersection of the contrasts' hypotheses over all r, and a bet against any of them (`contrasts`) is a test
of it: valid at every look, for any distributions that drift together, and never alarmed by a shift that is tolerated. Bettors stake on shifts of
several directions and sizes, each at the nearest shift of that direction that is tolerated; one follows what was seen. Their mean is the evidence.

What tolerance costs: to tell a PSI of 0.13 from one of 0.05 takes log(1/alpha) / (0.36 - 0.22)^2 * 2 requests of the canary even for one who
knows everything else (a normal shift of d has PSI d^2), seven times of what it takes to tell it from 0.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

import numpy as np

from .blocks import Block
from .contrasts import Bets, fit_bets

__all__ = ["DriftBeyond", "psi", "psi_upper"]

_SIZES: Final = (1.7, 2.8, 6.0)
"""PSI of the shifts that are staked on, of the tolerated one."""
_WEIGHTS: Final = np.outer([0.3, 0.5, 0.2], [0.25, 0.25, 0.1, 0.1, 0.08, 0.08, 0.14]).ravel()
"""Of the bettors, by size and by direction (`_shapes`, then what was seen): scores shift more often than they change shape."""
_REFIT: Final = 1.6
_SHRINK: Final = 20.0
"""Requests' worth of belief in no shift, in the bettor who follows what was seen."""
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


class DriftBeyond:
    """Evidence that the index is more than a tolerated one; categories are buckets."""

    def __init__(self, canary: np.ndarray, stable: np.ndarray, tolerated: float) -> None:
        """Start at evidence 1.

        Args:
            canary: [buckets], counts before the first block (the warm-up's), to begin with.
            stable: likewise.
            tolerated: PSI, above 0.
        """
        self._canary = np.asarray(canary, dtype=float)
        self._stable = np.asarray(stable, dtype=float)
        self._tolerated = tolerated
        self._known = float(self._stable.sum() + self._canary.sum())
        self._fitted_at = 0.0
        self._bets: Bets | None = None
        self._logs: np.ndarray | None = None
        self.value = 0.0
        """log E."""

    def add(self, block: Block) -> None:
        """Take in a block."""
        known = self._known
        if known >= 5 * len(self._stable) and (self._bets is None or known >= _REFIT * self._fitted_at):
            self._fit(block.share)
            self._fitted_at = known
        if self._bets is not None:
            growth = self._bets.log_growth(block)
            self._logs = growth if self._logs is None else self._logs + growth
            most = float(self._logs.max())
            self.value = most + math.log(float(_WEIGHTS @ np.exp(self._logs - most)))
        self._canary = self._canary + block.canary
        self._stable = self._stable + block.stable
        self._known += block.stable_count + block.canary_count

    def _fit(self, share: float) -> None:
        stable = (self._stable + 0.5) / (self._stable.sum() + 0.5 * len(self._stable))
        seen = np.log((self._canary + _SHRINK * stable) / (self._canary.sum() + _SHRINK) / stable)
        directions = np.concatenate([_shapes(stable), seen[None]])
        sizes = self._tolerated * np.array([1.0, *_SIZES])
        tilted = _tilted(stable, directions, sizes)
        ratios = np.concatenate([tilted[0] / stable] * len(_SIZES))
        logs = np.log(ratios)
        u, v = logs + 1 - 1 / ratios, 1 - ratios - logs
        alternatives = tilted[1:].reshape(-1, len(stable))
        nu, theta = fit_bets(u, v, self._tolerated, alternatives, stable, share)
        self._bets = Bets(u, v, self._tolerated, nu, theta)


def _shapes(stable: np.ndarray) -> np.ndarray:
    """Directions of shifts: all scores up or down, spread out or drawn in, the top or the bottom alone fuller or emptier.

    Args:
        stable: [buckets], probabilities.

    Returns:
        [directions, buckets], in the units of a logarithm of ratios.
    """
    middle = np.clip(np.cumsum(stable) - stable / 2, 1e-12, 1 - 1e-12)
    rank = np.array([_NORMAL.inv_cdf(float(each)) for each in middle])
    top, bottom = np.zeros_like(stable), np.zeros_like(stable)
    top[-1] = bottom[0] = 1.0
    spread = rank**2
    return np.stack([rank, -rank, spread, -spread, top, bottom])


def _tilted(stable: np.ndarray, directions: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Exponential tilts of stable's distribution along directions, to about the wanted indices (bets on any tilt are valid).

    Args:
        stable: [buckets], probabilities.
        directions: [directions, buckets].
        sizes: [sizes], PSI.

    Returns:
        [sizes, directions, buckets], probabilities.
    """
    center = directions - (directions @ stable)[:, None]
    spread = np.maximum((stable * center**2).sum(axis=1), 1e-12)
    wanted = sizes[:, None]
    scale = np.sqrt(wanted / spread)  # exact for small tilts: PSI is about the squared scale times the variance
    tilted = np.broadcast_to(stable, (len(sizes), *directions.shape))
    for _ in range(6):
        tilted = stable * np.exp(np.clip(scale[:, :, None] * center, -30, 30))
        tilted = tilted / tilted.sum(axis=2, keepdims=True)
        index = ((tilted - stable) * np.log(tilted / stable)).sum(axis=2)
        scale = scale * np.sqrt(wanted / np.maximum(index, 1e-12))
    return tilted
