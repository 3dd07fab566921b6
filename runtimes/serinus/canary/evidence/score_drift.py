"""Is the population stability index more than is tolerated? Tested exactly, at every look.

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
from typing import Final

import numpy as np

from .blocks import Block
from .contrasts import Bets, fit_bets
from .psi import shift_directions

__all__ = ["DriftBeyond"]

_SIZES: Final = (1.7, 2.8, 6.0)
"""PSI of the shifts that are staked on, of the tolerated one."""
_WEIGHTS: Final = np.outer([0.3, 0.5, 0.2], [0.25, 0.25, 0.1, 0.1, 0.08, 0.08, 0.14]).ravel()
"""Of the bettors, by size and by direction (`shift_directions`, then what was seen): scores shift more often than they change shape."""
_REFIT: Final = 1.6
_SHRINK: Final = 20.0
"""Requests' worth of belief in no shift, in the bettor who follows what was seen."""


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
        self._canary = self._canary + np.asarray(block.canary, dtype=float)
        self._stable = self._stable + np.asarray(block.stable, dtype=float)
        self._known += block.stable_count + block.canary_count

    def _fit(self, share: float) -> None:
        stable = (self._stable + 0.5) / (self._stable.sum() + 0.5 * len(self._stable))
        seen = np.log((self._canary + _SHRINK * stable) / (self._canary.sum() + _SHRINK) / stable)
        directions = np.concatenate([shift_directions(stable), seen[None]])
        sizes = self._tolerated * np.array([1.0, *_SIZES])
        tilted = _tilted(stable, directions, sizes)
        ratios = np.concatenate([tilted[0] / stable] * len(_SIZES))
        logs = np.log(ratios)
        u, v = logs + 1 - 1 / ratios, 1 - ratios - logs
        alternatives = tilted[1:].reshape(-1, len(stable))
        nu, theta = fit_bets(u, v, self._tolerated, alternatives, stable, share)
        self._bets = Bets(u, v, self._tolerated, nu, theta)


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
