"""The settings of `model-settings.json` (`parameters.extra`) that only this runtime knows, beside those of every tree model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from serinus.artifacts import Extra
from serinus.engines.tree_options import TreeOptions

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options(TreeOptions):
    """Each with its default."""

    told: ClassVar[Mapping[str, str]] = {
        **TreeOptions.told,
        "missing": "a value that counts as missing, beside NaN (default NaN)",
        "iteration_range": "trees that answer: all (default, as Booster.predict), best (up to best_iteration), or [first, end]",
    }
    missing: float = math.nan
    """A value that counts as missing, beside NaN."""
    iteration_range: str | tuple[int, int] = "all"
    """all, as `Booster.predict` does by default; best; or [first, end]; see `forest_reader.choose_iterations`."""

    @classmethod
    def parse_own(cls, extra: Extra) -> dict[str, Any]:
        """Take this runtime's own settings."""
        return {
            "missing": extra.parse("missing", _missing, math.nan),
            "iteration_range": extra.parse("iteration_range", _iteration_range, "all"),
        }


def _missing(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError("a number was expected")
    try:
        return float(value)
    except ValueError:
        raise ValueError("a number was expected") from None


def _iteration_range(value: Any) -> str | tuple[int, int]:
    if value in ("best", "all"):
        return value
    if (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(part, int) and not isinstance(part, bool) for part in value)
    ):
        return int(value[0]), int(value[1])
    raise ValueError("'best', 'all' or [first, end] was expected")
