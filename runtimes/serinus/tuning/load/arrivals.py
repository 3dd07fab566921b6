"""When an open-loop generator sends: a Poisson process, drawn before the run so that no answer can move it."""

from __future__ import annotations

import numpy as np

__all__ = ["poisson_arrivals"]


def poisson_arrivals(rate_per_s: float, duration_s: float, seed: int) -> np.ndarray:
    """Draw the arrival times of a Poisson process.

    Args:
        rate_per_s: mean arrivals per second.
        duration_s: length of the window.
        seed: equal seeds give equal times.

    Returns:
        float64 [n], ascending seconds in [0, duration_s); at least one.
    """
    generator = np.random.default_rng(seed)
    # Given their number, the arrivals of a Poisson process are independent and uniform.
    count = max(1, int(generator.poisson(rate_per_s * duration_s)))
    return np.sort(generator.uniform(0.0, duration_s, count))
