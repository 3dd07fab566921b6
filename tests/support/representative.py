"""A choice of a test's cases for the quick run; the whole run has them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["every"]


def every(step: int, cases: Iterable[Any]) -> list[Any]:
    """All cases for `pytest.mark.parametrize`, of which each `step`-th, the first included, is in the quick run.

    For cases that take the same way through the code as their neighbours; the others are marked slow. Ids stay what they were.
    """
    return [
        case if place % step == 0 else pytest.param(*_values(case), marks=[pytest.mark.slow, *_marks(case)])
        for place, case in enumerate(cases)
    ]


def _values(case: Any) -> tuple[Any, ...]:
    return case.values if isinstance(case, type(pytest.param())) else (case,)


def _marks(case: Any) -> tuple[Any, ...]:
    return tuple(case.marks) if isinstance(case, type(pytest.param())) else ()
