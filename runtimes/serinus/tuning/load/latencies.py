"""A histogram of latencies with bounded relative error, as HdrHistogram's: constant cost per value, mergeable.

Buckets are linear within each power of two (128 a power, so a value is known to 1/128 = 0.8 %), from 1 us on. A quantile
is the upper edge of its bucket: never less than the true nearest-rank quantile, and at most 0.8 % more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["LatencyHistogram"]

_STEPS = 128
_UNIT_S = 1e-6 / _STEPS


class LatencyHistogram:
    """Counts of latencies in seconds; an infinite one is a request that failed."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.failed = 0
        """Infinite values."""
        self.count = 0
        """All values, failed ones included."""
        self.largest_s = 0.0
        self.total_s = 0.0
        """Sum of the finite ones."""

    def add(self, seconds: float) -> None:
        """Count one value."""
        self.count += 1
        if seconds == math.inf:
            self.failed += 1
            return
        self.total_s += seconds
        self.largest_s = max(self.largest_s, seconds)
        index = _index(seconds)
        self._counts[index] = self._counts.get(index, 0) + 1

    def merge(self, other: LatencyHistogram) -> None:
        """Add another's counts."""
        for index, count in other._counts.items():
            self._counts[index] = self._counts.get(index, 0) + count
        self.count += other.count
        self.failed += other.failed
        self.total_s += other.total_s
        self.largest_s = max(self.largest_s, other.largest_s)

    def quantile(self, quantile: float) -> float:
        """The nearest-rank quantile, seconds; infinite where so many failed; NaN of nothing.

        Args:
            quantile: in (0, 1].
        """
        if not self.count:
            return math.nan
        rank = max(1, math.ceil(round(quantile * self.count, 6)))
        seen = 0
        for index in sorted(self._counts):
            seen += self._counts[index]
            if seen >= rank:
                return min(_upper(index), self.largest_s)
        return math.inf

    def quantiles(self, wanted: Iterable[float]) -> dict[float, float]:
        """Several at once."""
        return {quantile: self.quantile(quantile) for quantile in wanted}

    @property
    def mean_s(self) -> float:
        """Mean of the finite values; NaN of none."""
        answered = self.count - self.failed
        return self.total_s / answered if answered else math.nan


def _index(seconds: float) -> int:
    """Bucket of a value: exponent times the steps, plus the step within its power of two."""
    units = int(seconds / _UNIT_S)
    if units < _STEPS:
        return max(0, units)
    exponent = units.bit_length() - _STEPS.bit_length()
    return (exponent + 1) * _STEPS + (units >> exponent) - _STEPS


def _upper(index: int) -> float:
    """Upper edge of a bucket, seconds."""
    if index < _STEPS:
        return (index + 1) * _UNIT_S
    exponent, step = divmod(index, _STEPS)
    return ((step + _STEPS + 1) << (exponent - 1)) * _UNIT_S
