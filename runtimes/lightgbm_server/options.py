"""The settings of `model-settings.json` (`parameters.extra`) that only this runtime knows, beside those of every tree model."""

from __future__ import annotations

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
        "start_iteration_predict": "first iteration used (default 0)",
        "num_iteration_predict": "how many iterations are used; below 1: all (default -1)",
    }
    start_iteration_predict: int = 0
    """First iteration used; LightGBM's own name, as the next one."""
    num_iteration_predict: int = -1
    """How many; below 1: all. A model that stopped early was saved with its best ones only."""

    @classmethod
    def parse_own(cls, extra: Extra) -> dict[str, Any]:
        """Take this runtime's own settings."""
        return {
            "start_iteration_predict": extra.parse("start_iteration_predict", _whole, 0),
            "num_iteration_predict": extra.parse("num_iteration_predict", _whole, -1),
        }


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("a whole number was expected")
    return value
