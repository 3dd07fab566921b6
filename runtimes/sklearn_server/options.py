"""The settings of `sklearn_server` (`parameters.extra` of `model-settings.json`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from serinus.artifacts import Extra

__all__ = ["TOLD", "Options"]

TOLD: Final[Mapping[str, str]] = {
    "engine": "auto (default): compiled where that is verified, else scikit-learn; compiled; sklearn",
    "method": "what answers where a request names no output: predict (default), predict_proba, both, decision_function or transform",
    "input_name": "name of the matrix in the metadata (default input-0)",
    "output_name": "name of the prediction (default predict); KServe's sklearnserver calls it output-0",
}
"""A line for each setting."""

_METHODS: Final = ("predict", "predict_proba", "both", "decision_function", "transform")


@dataclass(frozen=True, slots=True)
class Options:
    """Each with its default."""

    engine: str = "auto"
    """auto: the compiled program where it is verified against scikit-learn, else scikit-learn. compiled: without a record unverified; never
    imports scikit-learn. sklearn: always scikit-learn."""
    method: str = "predict"
    """Outputs of a request that names none; both: predictions and probabilities."""
    input_name: str = "input-0"
    """Name of the matrix in the metadata, KServe's; requests may use any."""
    output_name: str = "predict"
    """Name of the prediction, MLServer's."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Options:
        """Check the settings whole.

        Raises:
            ConfigError: with all problems at once.
        """
        extra = Extra(values, known=tuple(TOLD))
        made = cls(
            engine=extra.choice("engine", ("auto", "compiled", "sklearn")),
            method=extra.choice("method", _METHODS) if "method" in values else _kserves_method(),
            input_name=extra.text("input_name", "input-0") or "input-0",
            output_name=extra.text("output_name", "predict") or "predict",
        )
        extra.close()
        return made


def _kserves_method() -> str:
    """Tell KServe's own switch: its sklearnserver answers with probabilities where PREDICT_PROBA is true (sklearnserver/model.py)."""
    return "predict_proba" if os.environ.get("PREDICT_PROBA", "").lower() == "true" else "predict"
