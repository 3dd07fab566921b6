"""The settings of a tree model (`parameters.extra` of `model-settings.json`) that every framework's runtime has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..artifacts import Extra

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TreeOptions"]


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """Each with its default. A framework that has more derives a class and overrides `parse_own`."""

    told: ClassVar[Mapping[str, str]] = {
        "engine": "auto (default): the compiled trees where they are verified, else the framework's predictor; forest; booster",
        "input_form": "what the metadata tell: matrix (default) or columns; requests may take either where the file has feature names",
        "input_name": "name of the matrix in the metadata (default input-0)",
        "output_name": "name of the prediction (default predict); KServe's xgbserver calls it output-0",
    }
    """A line for each setting; a class that derives adds its own."""
    engines: ClassVar[tuple[str, ...]] = ("auto", "forest", "booster")
    """What `engine` may be; the last one is what the framework's own predictor is called (`TreeAdapter.predictor`)."""

    engine: str = "auto"
    """auto: the compiled forest where it is verified against the framework, else the framework's predictor. forest: the compiled
    forest, unverified where there is no record; never imports the framework. booster: always the framework's."""
    input_name: str = "input-0"
    """Name of the matrix in the metadata, KServe's; requests may use any."""
    input_form: str = "matrix"
    """What the metadata tell, where the model has feature names: matrix, one tensor [n, features], or columns, one tensor [n] per feature.
    Requests may take either form."""
    output_name: str = "predict"
    """Name of the prediction, MLServer's; KServe's xgbserver calls it "output-0"."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Check the settings whole.

        Raises:
            ConfigError: with all problems at once.
        """
        extra = Extra(values, known=tuple(cls.told))
        fields = {
            "engine": extra.choice("engine", cls.engines),
            "input_name": extra.parse("input_name", _name, "input-0"),
            "input_form": extra.choice("input_form", ("matrix", "columns")),
            "output_name": extra.parse("output_name", _name, "predict"),
            **cls.parse_own(extra),
        }
        extra.close()
        return cls(**fields)

    @classmethod
    def parse_own(cls, extra: Extra) -> dict[str, Any]:  # noqa: ARG003 # for those that derive
        """Take the framework's own settings, by field; problems are noted in `extra`."""
        return {}


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text was expected")
    if not value:
        raise ValueError("a name may not be empty")
    return value
