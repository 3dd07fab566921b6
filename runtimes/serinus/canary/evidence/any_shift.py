"""Do the model's scores differ at all between the arms?

H0: in every block, a request's bucket has the same distribution in both arms, whatever it is. Given the block's numbers of
requests, rho = n_c / (n_c + n_s), and any ratios r_k that were chosen before the block,

    E_r = prod over buckets of r_k^x_k / (1 + rho (r_k - 1))^(x_k + y_k)        x_k the canary's requests in bucket k, y_k stable's

is of expectation 1 at most: it is the two-sample e-variable of Turner, Ly & Grunwald, "Generic E-variables for exact sequential k-sample
tests", JSPI 2024, theorem 1, with P_k = r_k Q_k for the canary (a request of the canary multiplies by a_k = r_k / (1 + rho (r_k - 1)), one of
stable by b_k = 1 / (1 + rho (r_k - 1)), and rho a_k + (1 - rho) b_k = 1 in every bucket). So the mean over several r is a supermartingale,
which ever reaches 1/alpha with probability alpha at most (Ville). It is the count formula of Lindon & Malek, "Anytime-Valid Inference for
Multinomial Count Data", NeurIPS 2022, equation 9, bucket by bucket, with the split that was and with priors on shifts that scores make; one
of the r follows what was seen, as their Beta mixture does.

By how much is asked in `shift_size`.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from .blocks import Block
from .psi import shift_directions

__all__ = ["AnyShift"]

_SIZES: Final = np.array([1.6, 4.0, 12.0])
"""PSI of the shifts that are staked on, of a scale: the least that is of interest, to the obvious."""
_SEEN_WEIGHT: Final = 0.14
"""Of the stake that follows what was seen, whatever its direction."""
_WEIGHTS: Final = np.append(np.outer([0.4, 0.4, 0.2], [0.25, 0.25, 0.1, 0.1, 0.08, 0.08]).ravel(), _SEEN_WEIGHT)
"""By size and by direction (`shift_directions`), then what was seen: scores shift more often than they change shape."""
_REFIT: Final = 2.0
"""The fixed stakes are aimed anew when this times as much is known,"""
_FOLLOW: Final = 1.2
"""and the stake that follows what was seen, when this times as much is."""
_SHRINK: Final = 20.0
"""Requests' worth of belief in no shift, in the stake that follows what was seen."""


class AnyShift:
    """Evidence that the arms' scores are distributed otherwise; categories are buckets."""

    __slots__ = (
        "_canary",
        "_excess",
        "_fitted_at",
        "_followed_at",
        "_known",
        "_log_ratios",
        "_logs",
        "_scale",
        "_stable",
        "value",
    )

    def __init__(self, canary: np.ndarray, stable: np.ndarray, scale: float) -> None:
        """Start at evidence 1.

        Args:
            canary: [buckets], counts before the first block (the warm-up's), to begin with.
            stable: likewise.
            scale: PSI, above 0, about which shifts are looked for.
        """
        self._canary = np.array(canary, dtype=float)
        self._stable = np.array(stable, dtype=float)
        self._scale = scale
        self._known = float(self._canary.sum() + self._stable.sum())
        self._fitted_at = self._followed_at = 0.0
        self._log_ratios = np.zeros((len(_WEIGHTS), len(self._stable)))
        self._excess = np.zeros_like(self._log_ratios)
        self._logs = np.log(_WEIGHTS / _WEIGHTS.sum())
        self.value = 0.0
        """log E."""

    def add(self, block: Block) -> None:
        """Take in a block."""
        known = self._known
        if known >= 5 * len(self._stable):
            if known >= _REFIT * self._fitted_at:
                self._fit()
            if known >= _FOLLOW * self._followed_at:
                self._follow()
        canary, stable = np.asarray(block.canary, dtype=float), np.asarray(block.stable, dtype=float)
        if self._fitted_at:
            self._logs += self._log_ratios @ canary
            self._logs -= np.log1p(block.share * self._excess) @ (canary + stable)
            most = float(np.maximum.reduce(self._logs))
            self.value = most + math.log(float(np.add.reduce(np.exp(self._logs - most))))
        self._canary += canary
        self._stable += stable
        self._known += block.canary_count + block.stable_count

    def _fit(self) -> None:
        """Aim the fixed stakes, whose directions are of stable's distribution."""
        both = self._canary + self._stable + 0.5
        both /= np.add.reduce(both)
        center = shift_directions(both)
        center -= (center @ both)[:, None]
        spread = np.maximum((center * center) @ both, 1e-12)
        scales = np.sqrt(_SIZES[:, None] * self._scale / spread)  # PSI is about the squared scale times the variance
        logs = (scales[:, :, None] * center).reshape(-1, len(both))
        np.minimum(np.maximum(logs, -30, out=logs), 30, out=logs)
        logs -= np.log(np.exp(logs) @ both)[:, None]
        self._log_ratios[:-1] = logs
        self._excess[:-1] = np.expm1(logs)
        self._fitted_at = self._known

    def _follow(self) -> None:
        """Set the last stake to the ratios that were seen."""
        both = self._canary + self._stable + 0.5
        both *= _SHRINK / np.add.reduce(both)
        ratios = (self._canary + both) / (self._stable + both)
        ratios *= (np.add.reduce(self._stable) + _SHRINK) / (np.add.reduce(self._canary) + _SHRINK)
        self._log_ratios[-1] = np.log(ratios)
        self._excess[-1] = ratios - 1
        self._followed_at = self._known
