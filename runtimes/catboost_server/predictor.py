"""CatBoost itself: what verifies the engine, serves what the engine does not cover, and explains predictions.

catboost is imported when the first of these is wanted, and not before: its import, with pandas' and plotly's, costs over a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serinus.artifacts import unchanged
from serinus.engines.thread_choice import ThreadChoice
from serinus.errors import ConfigError, InvalidInput, NotSupported

from .modelfile import ModelFile

__all__ = ["Predictor"]


class Predictor:
    """A CatBoost model that takes the rows that the walk takes; the engine's `FrameworkPredictor`.

    Args:
        file: the model's, read.
        kind: of predictions: "Probability", "Exponent" or "RawFormulaVal".
        threads: of a call.

    Raises:
        ConfigError: catboost is not installed, or refuses the file.
    """

    def __init__(self, file: ModelFile, kind: str, *, threads: int) -> None:
        try:
            import catboost
        except ImportError as error:
            raise ConfigError(
                f"{file.path}: serving this model takes catboost, which does not import here ({error}); "
                "pip install 'serinus[catboost-server]'"
            ) from None
        self._catboost = catboost
        self._error = catboost.CatBoostError
        self._kind, self._file = kind, file
        self.columns = file.columns
        self.threads = ThreadChoice(threads)
        """Of a batch; the engine measures it."""
        self._model = catboost.CatBoost()
        try:
            with unchanged(file.path, file.sha256):
                self._model.load_model(str(file.path), format=file.format)
        except catboost.CatBoostError as error:
            raise ConfigError(
                f"{file.path}: catboost {catboost.__version__} cannot load it: {_first_line(error)}"
            ) from None

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Predictions: probabilities ([n] of the second of two classes, or [n, classes]), exponentials or raw values, float64."""
        made = self._predict(rows, self._kind)
        return made[:, 1] if self._kind == "Probability" and self._file.dimension == 1 else made

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        """Predictions, which no class is chosen from."""
        return self.predict(rows)

    def margins(self, rows: np.ndarray) -> np.ndarray:
        """Raw values, float64 [n] or [n, outputs]."""
        return self._predict(rows, "RawFormulaVal")

    def contributions(self, rows: np.ndarray) -> np.ndarray:
        """SHAP values of the raw values: float64 [n, features + 1] or [n, outputs, features + 1]; the last column is the bias.

        Raises:
            NotSupported: CatBoost explains no such model.
        """
        try:
            pool = self._catboost.Pool(
                self._given(rows), cat_features=sorted(self._file.categorical) or None, thread_count=1
            )
            return np.asarray(
                self._model.get_feature_importance(
                    pool, type=self._catboost.EFstrType.ShapValues, thread_count=self.threads.of(len(rows))
                ),
                np.float64,
            )
        except self._error as error:
            raise NotSupported(f"output 'contributions' is not offered: {_first_line(error)}") from None

    def _predict(self, rows: np.ndarray, kind: str) -> np.ndarray:
        if not len(rows):
            raise InvalidInput("the model does not take a request of 0 rows; send at least one")
        try:
            made = self._model.predict(self._given(rows), prediction_type=kind, thread_count=self.threads.of(len(rows)))
        except (self._error, TypeError, ValueError) as error:
            raise InvalidInput(f"the model does not take these rows: {_first_line(error)}") from None
        return np.ascontiguousarray(made, np.float64)

    def _given(self, rows: np.ndarray) -> Any:
        if rows.dtype != object and not self._file.categorical:
            return rows
        # Categories are texts or whole numbers to CatBoost; the others are numbers.
        columns = self._file.categorical
        return [
            [_category(value) if place in columns else _number(value) for place, value in enumerate(row)]
            for row in rows.tolist()
        ]


def _category(value: Any) -> str | int:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if value is None or value != value:
        return "nan"  # as CatBoost writes a missing category of a DataFrame
    return (
        int(value)
        if isinstance(value, float) and value.is_integer()
        else str(value)
        if isinstance(value, float)
        else value
    )


def _number(value: Any) -> Any:
    if isinstance(value, bytes):
        raise InvalidInput(f"the text {value.decode(errors='replace')!r} came where the model takes a number")
    return float("nan") if value is None else value


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
