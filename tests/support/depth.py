"""How much of a sweep a run draws: `make test` a part of it, `make test DEEP=1` (as CI does) all of it.

A sweep is a test whose cases are many of one kind: mutations of a file, random bodies, every estimator of a library. Each kind is in every
run; only their number differs. What is not a sweep is never cut.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["DEEP", "draws", "some_of"]

DEEP = os.environ.get("DEEP_TESTS") == "1"
"""Whether this run is `make test DEEP=1`."""

T = TypeVar("T")


def draws(deep: int, few: int) -> int:
    """How many random cases a sweep draws: `deep` with DEEP=1, else `few`."""
    return deep if DEEP else few


def some_of(cases: Sequence[T], few: int) -> list[T]:
    """All of `cases` with DEEP=1, else about `few` of them, spread evenly and always the same, the first among them."""
    if DEEP or len(cases) <= few:
        return list(cases)
    return [cases[place * len(cases) // few] for place in range(few)]
