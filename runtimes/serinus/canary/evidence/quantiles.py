"""Where a quantile of latency lies, at all looks at once, for words and plots.

Howard & Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm identification", Bernoulli 2022,
equation 9: with l(t) = (1.4 ln ln(2.1 t) + ln(10 / alpha)) / t and f_t(p) = 1.5 sqrt(p (1 - p) l(t)) + 0.8 l(t), the p-quantile lies
between the sample's quantiles at p - f_t(1 - p) and p + f_t(p), for all t together, with probability 1 - alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["quantile_band", "quantile_bounds"]


def quantile_band(p: float, t: int, alpha: float) -> tuple[float, float]:
    """The sample quantiles between which the p-quantile lies.

    Args:
        p: in (0, 1).
        t: values seen, at least 1.
        alpha: most probability that the band is ever wrong.

    Returns:
        Lower and upper, in [0, 1]; 0 and 1 where the band says nothing on that side.
    """
    l_t = (1.4 * math.log(math.log(2.1 * max(t, 2))) + math.log(10 / alpha)) / max(t, 1)
    half = 1.5 * math.sqrt(p * (1 - p) * l_t) + 0.8 * l_t
    return max(0.0, p - half), min(1.0, p + half)


def quantile_bounds(le_s: Sequence[float], counts: Sequence[int], p: float, alpha: float) -> tuple[float, float]:
    """Seconds between which the p-quantile lies, as far as the buckets tell.

    Args:
        le_s: upper bounds of the buckets.
        counts: of each bucket, and beyond the last bound.
        p: in (0, 1).
        alpha: most probability that the bounds are ever wrong.

    Returns:
        A lower bound (0 where nothing is known) and an upper one (infinite where nothing is known).
    """
    total = sum(counts)
    if total == 0:
        return 0.0, math.inf
    low, high = quantile_band(p, total, alpha)
    edges = (0.0, *le_s, math.inf)
    lower, upper, below = 0.0, math.inf, 0
    for index, count in enumerate(counts):
        if low > 0 and below < low * total <= below + count:
            lower = edges[index]
        if high < 1 and below < high * total <= below + count:
            upper = edges[index + 1]
        below += count
    return lower, upper
