"""The settings of `model-settings.json` (`parameters.extra`) that only this runtime knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serinus.artifacts import Extra
from serinus.errors import ConfigError

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """Each with its default."""

    engine: str = "auto"
    """auto: the compiled forest where it is verified against LightGBM, else the Booster. forest: the compiled forest, unverified
    where there is no verdict; never imports lightgbm. booster: always the Booster."""
    start_iteration_predict: int = 0
    """First iteration used; LightGBM's own name, as the next one."""
    num_iteration_predict: int = -1
    """How many; below 1: all. A model that stopped early was saved with its best ones only."""
    input_name: str = "input-0"
    """Name of the matrix in the metadata, KServe's; requests may use any."""
    input_form: str = "matrix"
    """matrix: one tensor [n, features]. columns: one tensor [n] per feature, by the model's feature names."""
    output_name: str = "predict"
    """Name of the prediction, MLServer's."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Options:
        """Check the settings whole.

        Raises:
            ConfigError: with all problems at once.
        """
        extra = Extra(values, known=tuple(cls.__dataclass_fields__))
        engine = extra.choice("engine", ("auto", "forest", "booster"))
        form = extra.choice("input_form", ("matrix", "columns"))
        input_name, output_name = extra.text("input_name", "input-0"), extra.text("output_name", "predict")
        extra.close()
        numbers: dict[str, int] = {}
        for key, default in (("start_iteration_predict", 0), ("num_iteration_predict", -1)):
            value = values.get(key, default)
            if type(value) is not int:
                raise ConfigError(f"extra setting {key!r} is {value!r}; a whole number was expected")
            numbers[key] = value
        if not input_name or not output_name:
            raise ConfigError("extra settings 'input_name' and 'output_name' may not be empty")
        return cls(engine=engine, input_form=form, input_name=input_name, output_name=output_name, **numbers)
