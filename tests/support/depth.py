"""How much of a sweep a run draws: `make test` a part of it, `make test DEEP=1` (as CI does) all of it, `make test-quick` less where a test says so.

A sweep is a test whose cases are many of one kind: mutations of a file, random bodies, every estimator of a library. Each kind is in every
run; only their number differs. A test that is left to DEEP=1 as a whole (`only_deep`) is the heavy variant of one that is in every run,
or plays whole what smaller tests hold part by part; it says which.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import pytest

__all__ = ["DEEP", "QUICK", "draws", "only_deep", "some_of"]

DEEP = os.environ.get("DEEP_TESTS") == "1"
"""Whether this run is `make test DEEP=1`."""
QUICK = os.environ.get("QUICK_TESTS") == "1"
"""Whether this run is `make test-quick`."""

T = TypeVar("T")


def only_deep(lighter: str) -> pytest.MarkDecorator:
    """Leave a test, or a case, to DEEP=1: a mark.

    Args:
        lighter: the test that shows the same in every run.
    """
    return pytest.mark.skipif(not DEEP, reason=f"with DEEP=1; in every run: {lighter}")


def draws(deep: int, few: int, quick: int | None = None) -> int:
    """How many random cases a sweep draws: `deep` with DEEP=1, `quick` in the quick run where it is given, else `few`."""
    return deep if DEEP else quick if QUICK and quick is not None else few


def some_of(cases: Sequence[T], few: int) -> list[T]:
    """All of `cases` with DEEP=1, else about `few` of them, spread evenly and always the same, the first among them."""
    if DEEP or len(cases) <= few:
        return list(cases)
    return [cases[place * len(cases) // few] for place in range(few)]
