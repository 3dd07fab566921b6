"""A difference between the arms, tested by betting: non-inferiority, and more drift than is tolerated.

H0: in every block, E_canary[u(X)] + E_stable[v(X)] <= tau, for functions u and v of a request's category. A bettor who stakes nu on the
contrary, in a block of n_c and n_s requests, rho = n_c / (n_c + n_s), multiplies the evidence by

    prod over the canary's requests of (1 + (nu u(x) - theta) / rho)  times  prod over stable's of (1 + (nu (v(y) - tau) + theta) / (1 - rho))

With independent requests its expectation is (1 + (nu G_c - theta)/rho)^n_c (1 + (nu (G_s - tau) + theta)/(1 - rho))^n_s, which 1 + z <= e^z
bounds by exp(n nu (G_c + G_s - tau)) <= 1: valid for every nu >= 0 and theta that were chosen before the block, with whatever split the block
had. (Betting: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSSB 2023, section 4; two samples in blocks:
Turner, Ly & Grunwald, "Generic E-variables for exact sequential k-sample tests", JSPI 2024, theorem 1.) nu and theta maximise the expected
growth under the alternative as far as it is known from the blocks before (Grunwald, de Heide & Koolen, "Safe Testing", JRSSB 2024: that is the
reverse information projection), in both of which the growth is concave.
"""

from __future__ import annotations

import math
import operator
from typing import Final

import numpy as np

from .blocks import Block, Counts

__all__ = ["Bet", "Bets", "Groups", "fit_bets"]

Groups = tuple[tuple[float, int, int], ...]
"""What a function of the category is, and from which category to before which it is that; a contrast of a few groups is added up faster so."""

_STEPS: Final = 10
_CARE: Final = 0.95
"""Most of a stake that one request can lose."""


class Bets:
    """Stakes of several bettors."""

    __slots__ = ("_canary", "_least_canary", "_least_stable", "_stable")

    def __init__(self, u: np.ndarray, v: np.ndarray, tau: float, nu: np.ndarray, theta: np.ndarray) -> None:
        """Fix the stakes for the blocks to come.

        Args:
            u: [bettors, categories].
            v: [bettors, categories].
            tau: bound of H0.
            nu: [bettors], 0 or more.
            theta: [bettors].
        """
        self._canary = nu[:, None] * u - theta[:, None]
        self._stable = nu[:, None] * (v - tau) + theta[:, None]
        self._least_canary = np.maximum(-self._canary.min(axis=1), 1e-300)
        self._least_stable = np.maximum(-self._stable.min(axis=1), 1e-300)

    def log_growth(self, block: Block) -> np.ndarray:
        """What a block multiplies the evidence by, as logarithms [bettors]."""
        share = block.share
        # A smaller share than the stakes were made for would let one request lose more than all: stake less, which is as valid.
        care = np.minimum(
            1.0, np.minimum(_CARE * share / self._least_canary, _CARE * (1 - share) / self._least_stable)
        )[:, None]
        return np.log1p(care / share * self._canary) @ np.asarray(block.canary, dtype=float) + np.log1p(
            care / (1 - share) * self._stable
        ) @ np.asarray(block.stable, dtype=float)


def fit_bets(
    u: np.ndarray, v: np.ndarray, tau: float, canary: np.ndarray, stable: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find the stakes of fastest growth where the arms are distributed as said.

    Args:
        u: [bettors, categories].
        v: [bettors, categories].
        tau: bound of H0.
        canary: [bettors, categories] or [categories], probabilities, none 0.
        stable: likewise.
        share: the canary's of the requests.

    Returns:
        nu and theta, [bettors]; 0 where the distributions are inside H0.
    """
    bettors, categories = u.shape
    weights = np.concatenate(
        [share * np.broadcast_to(canary, u.shape), (1 - share) * np.broadcast_to(stable, v.shape)], axis=1
    )
    # Each factor is 1 + a . (nu, theta); Newton's method with steps that keep every factor positive.
    slope_nu = np.concatenate([u / share, (v - tau) / (1 - share)], axis=1)
    slope_theta = np.concatenate(
        [np.full((bettors, categories), -1 / share), np.full((bettors, categories), 1 / (1 - share))], axis=1
    )
    nu, theta = np.zeros(bettors), np.zeros(bettors)
    factors = np.ones_like(slope_nu)
    for _ in range(_STEPS):
        first, second = weights / factors, weights / factors**2
        g_nu, g_theta = (first * slope_nu).sum(1), (first * slope_theta).sum(1)
        h_nn = (second * slope_nu**2).sum(1)
        h_nt = (second * slope_nu * slope_theta).sum(1)
        h_tt = (second * slope_theta**2).sum(1)
        determinant = np.maximum(h_nn * h_tt - h_nt**2, 1e-300)
        d_nu = (h_tt * g_nu - h_nt * g_theta) / determinant
        d_theta = (h_nn * g_theta - h_nt * g_nu) / determinant
        change = d_nu[:, None] * slope_nu + d_theta[:, None] * slope_theta
        length = np.minimum(1.0, 0.8 / np.maximum((-change / factors).max(axis=1), 1e-300))
        nu, theta = nu + length * d_nu, theta + length * d_theta
        factors = 1 + nu[:, None] * slope_nu + theta[:, None] * slope_theta
        if (np.abs(length[:, None] * change) < 1e-3 * factors).all():
            break
    growth = (weights * np.log(factors)).sum(1)
    good = (nu > 0) & (growth > 0)
    return np.where(good, nu, 0.0), np.where(good, theta, 0.0)


class Bet:
    """The stakes of one bettor, on functions of few values: what `fit_bets` and `Bets` do, without arrays."""

    __slots__ = ("_canary", "_least_canary", "_least_stable", "_stable", "growth")

    def __init__(self, u: Groups, v: Groups, tau: float, canary: Counts, stable: Counts, share: float) -> None:
        """Choose the stakes of fastest growth where the arms are distributed as said.

        Args:
            u: of the canary's requests.
            v: of stable's.
            tau: bound of H0.
            canary: [categories], probabilities, none 0.
            stable: likewise.
            share: the canary's of the requests.
        """
        # Each factor is 1 + nu a + theta b; its weight is how often it comes.
        of_canary, of_stable = 1 / share, 1 / (1 - share)
        terms = [(share * sum(canary[low:high]), value * of_canary, -of_canary) for value, low, high in u]
        terms += [((1 - share) * sum(stable[low:high]), (value - tau) * of_stable, of_stable) for value, low, high in v]
        nu, theta, self.growth = _fastest(terms)
        """Of log E a request, where the arms are distributed so."""
        self._canary = tuple([(nu * value - theta, low, high) for value, low, high in u])
        self._stable = tuple([(nu * (value - tau) + theta, low, high) for value, low, high in v])
        self._least_canary = max(-min(stake for stake, _, _ in self._canary), 1e-300)
        self._least_stable = max(-min(stake for stake, _, _ in self._stable), 1e-300)

    def log_growth(self, block: Block) -> float:
        """What a block multiplies the evidence by, as a logarithm."""
        share = block.share
        # As in `Bets`: stake less where one request could lose more than all.
        care = min(1.0, _CARE * share / self._least_canary, _CARE * (1 - share) / self._least_stable)
        total, counts, scale = 0.0, block.canary, care / share
        for stake, low, high in self._canary:
            total += math.log1p(scale * stake) * sum(counts[low:high])
        counts, scale = block.stable, care / (1 - share)
        for stake, low, high in self._stable:
            total += math.log1p(scale * stake) * sum(counts[low:high])
        return float(total)


def _fastest(terms: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Stakes nu and theta of the fastest growth, by the steps of `fit_bets`, and that growth; zeros inside H0."""
    nu, theta = 0.0, 0.0
    factors = [1.0] * len(terms)
    for _ in range(_STEPS):
        g_nu = g_theta = h_nn = h_nt = h_tt = 0.0
        for (weight, a, b), factor in zip(terms, factors, strict=True):
            first = weight / factor
            second = first / factor
            g_nu += first * a
            g_theta += first * b
            h_nn += second * a * a
            h_nt += second * a * b
            h_tt += second * b * b
        determinant = max(h_nn * h_tt - h_nt * h_nt, 1e-300)
        d_nu = (h_tt * g_nu - h_nt * g_theta) / determinant
        d_theta = (h_nn * g_theta - h_nt * g_nu) / determinant
        changes = [d_nu * a + d_theta * b for _, a, b in terms]
        steepest = -min(map(operator.truediv, changes, factors))
        length = min(1.0, 0.8 / max(steepest, 1e-300))
        nu, theta = nu + length * d_nu, theta + length * d_theta
        factors = [1 + nu * a + theta * b for _, a, b in terms]
        if all(abs(length * change) < 1e-3 * factor for change, factor in zip(changes, factors, strict=True)):
            break
    growth = sum(weight * math.log(factor) for (weight, _, _), factor in zip(terms, factors, strict=True))
    return (nu, theta, growth) if nu > 0 and growth > 0 else (0.0, 0.0, 0.0)
