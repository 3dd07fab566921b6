"""The formula of counts by arm: whether requests are split as asked.

Lindon & Malek, "Anytime-Valid Inference for Multinomial Count Data", NeurIPS 2022, equation 9, for two arms: under H0 each of the c + p
requests of a kind is the canary's with probability rho; the alternative is a Beta(a rho, a (1 - rho)) mixture.

    ln E = ln B(a rho + c, a (1 - rho) + p) - ln B(a rho, a (1 - rho)) - c ln rho - p ln(1 - rho)
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["CONCENTRATION", "log_split_evidence"]

CONCENTRATION: Final = 20.0
"""a: how closely the alternative's splits lie around rho."""
_LARGE: Final = 1e5
"""From here on Stirling's series is exact to the last digit, and the difference of two large logarithms of Gamma is not."""


def log_split_evidence(canary: int, stable: int, share: float, concentration: float = CONCENTRATION) -> float:
    """Evidence against every request being the canary's with probability `share`.

    Args:
        canary: requests (or users, where they are what is randomised).
        stable: likewise.
        share: rho, in (0, 1).
        concentration: a.

    Returns:
        ln E.
    """
    return _log_marginal(canary, stable, share, concentration, share)


def _log_marginal(c: float, p: float, share: float, a: float, reference: float) -> float:
    """Ln of the mixture's probability of the labels, less that under the reference share."""
    low, high = a * share, a * (1 - share)
    x, y = low + c, high + p
    if x < _LARGE or y < _LARGE:
        return _log_beta(x, y) - _log_beta(low, high) - c * math.log(reference) - p * math.log1p(-reference)
    n = x + y
    share_seen = x / n
    # The two large terms as one divergence, by log1p of small differences.
    difference = (c - (c + p) * reference + low - a * reference) / n  # share_seen - reference
    divergence = c * math.log1p(difference / reference) + p * math.log1p(-difference / (1 - reference))
    rest = low * math.log(share_seen) + high * math.log1p(-share_seen)
    stirling = 0.5 * math.log(2 * math.pi) - 0.5 * math.log(x * (y / n)) + (1 / x + 1 / y - 1 / n) / 12
    return divergence + rest + stirling - _log_beta(low, high)


def _log_beta(x: float, y: float) -> float:
    return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)
