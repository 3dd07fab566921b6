"""A choice of a test's cases for the quick run; the whole run has them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["every"]


def every(step: int, cases: Iterable[Any], *, names: int = 1) -> list[Any]:
    """All cases for `pytest.mark.parametrize`, of which each `step`-th, the first included, is in the quick run.

    For cases that take the same way through the code as their neighbours; the others are marked slow. Ids stay what they were.

    Args:
        step: 1 or more.
        cases: values, none of them a `pytest.param`.
        names: how many arguments a case gives; a tuple of so many values where more than one.
    """
    return [
        pytest.param(*(case if names > 1 else (case,)), marks=[pytest.mark.slow] if place % step else [])
        for place, case in enumerate(cases)
    ]
