"""How long a process that has ended waits for its next start, and from when on it is a crash loop. Pure: no clock."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CrashBackOff"]

FIRST_S, MOST_S = 0.5, 30.0
"""Doubled each time. The kubelet's 10 s and 5 min are for clusters, where nobody is waiting."""

STEADY_S = 20.0
"""A process that ran this long begins its back-off anew (kubelet: 10 min, twice the longest wait)."""


@dataclass(slots=True)
class CrashBackOff:
    """Ends of one process, in a row."""

    ends: int = 0
    """How often it has ended since it last ran steadily."""

    def ended(self, ran_s: float) -> float:
        """Take note of an end.

        Args:
            ran_s: seconds since the start of the life that has ended.

        Returns:
            Seconds until it may start again.
        """
        if ran_s > STEADY_S:
            self.ends = 0
        self.ends += 1
        return min(FIRST_S * 2.0 ** min(self.ends - 1, 16), MOST_S)

    @property
    def is_loop(self) -> bool:
        """Whether it ended twice or more without a steady life in between."""
        return self.ends >= 2
