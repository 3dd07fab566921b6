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

from typing import Final

import numpy as np

from .blocks import Block

__all__ = ["Bets", "expected_growth", "fit_bets"]

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
        return (
            np.log1p(care / share * self._canary) @ block.canary
            + np.log1p(care / (1 - share) * self._stable) @ block.stable
        )


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


def expected_growth(
    u: np.ndarray,
    v: np.ndarray,
    tau: float,
    nu: float,
    theta: float,
    canary: np.ndarray,
    stable: np.ndarray,
    share: float,
) -> float:
    """Growth of log E a request, of one bettor, where the arms are distributed as said and the canary has a share of the requests.

    Args:
        u: [categories].
        v: [categories].
        tau: bound of H0.
        nu: stake.
        theta: stake.
        canary: [categories], probabilities.
        stable: likewise.
        share: in (0, 1).
    """
    return float(
        share * (canary @ np.log1p((nu * u - theta) / share))
        + (1 - share) * (stable @ np.log1p((nu * (v - tau) + theta) / (1 - share)))
    )
