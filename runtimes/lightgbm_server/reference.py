"""LightGBM's own Booster: what verifies the engine, serves what the engine does not cover, and explains predictions.

lightgbm is imported when the first of these is wanted, and not before: its import, with SciPy's, costs about a second.
"""

from __future__ import annotations

import importlib.metadata

import numpy as np

from serinus.errors import ConfigError

from . import modeltext
from .forest import Iterations
from .modelfile import ModelFile

__all__ = ["Reference", "installed_version"]


def installed_version() -> str:
    """Version of the installed lightgbm, found without importing it; empty: it is not installed."""
    try:
        return importlib.metadata.version("lightgbm")
    except importlib.metadata.PackageNotFoundError:
        return ""


class Reference:
    """A Booster that takes the rows that the engine takes.

    Raises:
        ConfigError: lightgbm is not installed, or refuses the file.
    """

    def __init__(self, file: ModelFile, chosen: Iterations, *, threads: int) -> None:
        try:
            import lightgbm
        except (ImportError, OSError) as error:  # OSError: the system's libgomp is missing
            raise ConfigError(
                f"{file.path}: serving this model takes lightgbm, which does not import here ({error}); "
                "pip install 'serinus[lightgbm_server]', and Debian's libgomp1"
            ) from None
        self._range = {"start_iteration": chosen[0], "num_iteration": chosen[1] - chosen[0]}
        self._columns, self._groups = file.columns, file.groups
        self.iterations = chosen
        try:
            self.booster = lightgbm.Booster(model_str=modeltext.write(file))
        except lightgbm.basic.LightGBMError as error:
            raise ConfigError(f"{file.path}: lightgbm {lightgbm.__version__} cannot load it: {error}") from None
        self._threads = threads

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Predictions as lightgbm shapes them: float64 [n] or [n, outputs]. rows: float64 [n, features]."""
        return self._predict(rows)

    def margins(self, rows: np.ndarray) -> np.ndarray:
        """Raw scores, shaped likewise."""
        return self._predict(rows, raw_score=True)

    def contributions(self, rows: np.ndarray) -> np.ndarray:
        """SHAP values of the raw score: float64 [n, features + 1] or [n, outputs, features + 1]; the last column is the bias."""
        values = self._predict(rows, pred_contrib=True)
        shape = (len(rows), self._columns + 1) if self._groups == 1 else (len(rows), self._groups, self._columns + 1)
        return values.reshape(shape)

    def _predict(self, rows: np.ndarray, **kind: bool) -> np.ndarray:
        result = self.booster.predict(rows, num_threads=self._threads, verbosity=-1, **self._range, **kind)
        return np.ascontiguousarray(result, np.float64)
