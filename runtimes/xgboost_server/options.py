"""The settings of `model-settings.json` (`parameters.extra`) that only this runtime knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

from serinus.errors import ConfigError

__all__ = ["Engine", "InputForm", "Options"]

Engine = Literal["auto", "forest", "booster"]
InputForm = Literal["matrix", "columns"]


@dataclass(frozen=True, slots=True)
class Options:
    """Each with its default."""

    engine: Engine = "auto"
    """auto: the compiled forest where it is verified against XGBoost, else the Booster. forest: the compiled forest, unverified
    where there is no verdict; never imports xgboost. booster: always the Booster."""
    missing: float = math.nan
    """A value that counts as missing, beside NaN."""
    iteration_range: str | tuple[int, int] = "best"
    """best, all, or [first, end]; see `forest.iterations`."""
    input_name: str = "input-0"
    """Name of the matrix in the metadata, KServe's; requests may use any."""
    input_form: InputForm = "matrix"
    """matrix: one tensor [n, features]. columns: one tensor [n] per feature, by the model's feature names."""
    output_name: str = "predict"
    """Name of the prediction, MLServer's; KServe's xgbserver calls it "output-0"."""

    @classmethod
    def parse(cls, extra: Mapping[str, Any]) -> Options:
        """Check the settings whole.

        Raises:
            ConfigError: with all problems at once.
        """
        problems: list[str] = []
        values: dict[str, Any] = {}
        for name, value in extra.items():
            if name not in cls.__dataclass_fields__:
                near = get_close_matches(name, cls.__dataclass_fields__, 1)
                known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(cls.__dataclass_fields__)}"
                problems.append(f"parameters.extra.{name}: xgboost_server has no such setting; {known}")
                continue
            try:
                values[name] = _PARSERS[name](value)
            except (TypeError, ValueError) as error:
                problems.append(f"parameters.extra.{name}: {error}")
        if problems:
            raise ConfigError(problems)
        return cls(**values)


def _one_of(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}")
        return value

    return parse


def _missing(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _iteration_range(value: Any) -> str | tuple[int, int]:
    if value in ("best", "all"):
        return value
    if (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(part, int) and not isinstance(part, bool) for part in value)
    ):
        return int(value[0]), int(value[1])
    raise ValueError(f"{value!r} is neither 'best', 'all' nor [first, end]")


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a name")
    return value


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "engine": _one_of(*get_args(Engine)),
    "missing": _missing,
    "iteration_range": _iteration_range,
    "input_name": _name,
    "input_form": _one_of(*get_args(InputForm)),
    "output_name": _name,
}
