"""Does an event happen to the canary more often than a fixed limit, whatever happens to stable?

H0: each request's probability is at most p. For q > p, (q / p)^x ((1 - q) / (1 - p))^(n - x) is a supermartingale under H0; the mean over
several q is the evidence (Robbins' mixture).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from .blocks import Block
from .event_rates import log_mean_exp

__all__ = ["AboveLimit", "with_limit"]

_PART: Final = 0.2
"""Of a guardrail's level, for its hard limit."""


class AboveLimit:
    """Evidence that the canary's share of events is above a limit; the block's one category is the event."""

    def __init__(self, limit: float) -> None:
        """Start at evidence 1.

        Args:
            limit: share, in (0, 1).
        """
        odds = limit / (1 - limit) * np.array([1.15, 1.4, 2.0, 4.0, 12.0, 60.0])
        q = odds / (1 + odds)
        self._event = np.log(q / limit)
        self._no_event = np.log1p(-q) - np.log1p(-limit)
        self._logs = np.zeros(len(q))
        self.value = 0.0
        """log E."""

    def add(self, block: Block) -> None:
        """Take in a block."""
        events = float(block.canary[0])
        self._logs = self._logs + events * self._event + (block.canary_count - events) * self._no_event
        self.value = log_mean_exp(self._logs)


def with_limit(comparison: float, limit: AboveLimit | None) -> float:
    """Log E of a guardrail: of the comparison of the arms, or its mean with that of the limit."""
    if limit is None:
        return comparison
    return float(np.logaddexp(math.log(1 - _PART) + comparison, math.log(_PART) + limit.value))
