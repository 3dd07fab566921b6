"""Chance that can be had again: every fuzz draws from a seed that it prints, which pytest shows where the test fails."""

from __future__ import annotations

import os
import random

__all__ = ["seeded"]


def seeded(default: int) -> random.Random:
    """Draw from the seed that FUZZ_SEED names, or from the test's own.

    Args:
        default: the seed of a run that nobody chose one for; the same each time, so that a failure is not a matter of luck.
    """
    seed = int(os.environ.get("FUZZ_SEED", default))
    print(f"seed {seed} (FUZZ_SEED={seed} makes it again)")
    return random.Random(seed)
