"""Is something more frequent in the canary? Errors, and latencies beyond each bound of a histogram.

H0: in every block, the canary's probability of the event is at most stable's, whatever it is and however it moves from block to block.

Given a block's n requests, n_c of them the canary's, and the m among them with the event, H0's worst case deals the events out at random:
the canary's x of them are hypergeometric. For a ratio r > 1, E[r^x] is then at most (1 + rho (r - 1))^m with rho = n_c / n, and at most
(1 + f (r - 1))^n_c with f = m / n: drawing without replacement spreads less than drawing with it (Hoeffding, "Probability Inequalities for
Sums of Bounded Random Variables", JASA 1963, theorem 4, for both readings of the same urn). So

    E_r = prod over blocks of r^x / min((1 + rho (r - 1))^m, (1 + f (r - 1))^n_c)

is a supermartingale under H0, and so is a mixture of it over r (Robbins' method of mixtures; Howard et al., "Time-uniform, nonparametric,
nonasymptotic confidence sequences", Ann. Stat. 2021, section 3.2). By Ville's inequality it ever reaches 1/alpha with probability alpha at most.

This is the count test of Lindon and Malek, "Anytime-Valid Inference for Multinomial Count Data", NeurIPS 2022, equation 9, with two changes:
the split is the one that was, not the one that was asked for, so that a gateway which deals 12 % for 10 % raises no alarm; and r is one number
over all traffic steps, so that the evidence of successive steps multiplies without a new prior for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from .blocks import Block

__all__ = ["ERROR_RATIOS", "LATENCY_RATIOS", "EventRates", "log_mean_exp"]

ERROR_RATIOS: Final = {
    1.01: 1,
    1.04: 2,
    1.1: 4,
    1.25: 8,
    1.5: 12,
    2.0: 15,
    2.8: 18,
    4.0: 18,
    6.0: 12,
    12.0: 8,
    40.0: 5,
}
"""Regressions that are looked for, and how much is staked on each; what lies between two is found by both. Errors grow by factors."""
LATENCY_RATIOS: Final = {1.01: 0.3, 1.05: 1, 1.12: 1, 1.25: 1, 1.45: 1, 1.8: 1, 2.5: 1, 5.0: 1, 20.0: 1}
"""Of exceedances of a bound: those of low bounds cannot grow by much."""


def log_mean_exp(flat: np.ndarray) -> float:
    """The logarithm of the mean of e^flat, without overflow; one axis is reduced twice as fast as two."""
    most = float(np.maximum.reduce(flat))
    if most == -math.inf:
        return most
    return most + math.log(float(np.add.reduce(np.exp(flat - most))) / flat.size)


class EventRates:
    """The e-process over several events at once (the bounds of a histogram): the mean of their own."""

    __slots__ = ("_excess", "_flat", "_log_ratios", "_logs", "value")

    def __init__(self, events: int, ratios: Mapping[float, float]) -> None:
        """Start at evidence 1.

        Args:
            events: how many kinds are watched.
            ratios: of the canary's probability to stable's, above 1, each with its weight.
        """
        values, weights = np.array(list(ratios)), np.array(list(ratios.values()), dtype=float)
        self._log_ratios = np.log(values)
        self._excess = values - 1
        self._logs = np.tile(np.log(weights * (len(weights) / sum(ratios.values()))), (events, 1))
        self._flat = self._logs.reshape(-1)  # the same numbers
        self.value = 0.0
        """log E."""

    def add(self, block: Block) -> None:
        """Take in a block.

        Args:
            block: its categories are the kinds of events; one request may count in several.
        """
        if not (any(block.canary) or any(block.stable)):
            return  # no event says nothing: every factor is 1
        canary = np.array(block.canary, dtype=float)[:, None]
        events = np.array(block.stable, dtype=float)[:, None] + canary
        # Both readings of the urn are n f rho ln(1 + c (r - 1)) / c, with c = rho or c = f, which falls as c rises.
        most = np.maximum(events / (block.canary_count + block.stable_count), block.share)
        growth = np.log1p(most * self._excess)
        growth *= events * -block.share / most
        growth += canary * self._log_ratios
        self._logs += growth
        self.value = log_mean_exp(self._flat)

    def by_event(self) -> list[float]:
        """Log E of each kind alone, for words."""
        return [log_mean_exp(row) for row in self._logs]
