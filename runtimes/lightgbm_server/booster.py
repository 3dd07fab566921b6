"""LightGBM's own Booster: what verifies the engine, serves what the engine does not cover, and explains predictions.

lightgbm is imported when the first of these is wanted, and not before: its import, with SciPy's, costs about a second.
"""

from __future__ import annotations

import numpy as np

from serinus.engines.thread_choice import ThreadChoice
from serinus.errors import ConfigError, NotSupported

from . import modeltext
from .forest_reader import Iterations
from .modelfile import ModelFile

__all__ = ["Booster"]


class Booster:
    """A Booster that takes the rows that the walk takes; the engine's `FrameworkPredictor`.

    Raises:
        ConfigError: lightgbm is not installed, or refuses the file.
    """

    def __init__(self, file: ModelFile, chosen: Iterations, *, threads: int) -> None:
        try:
            import lightgbm
        except (ImportError, OSError) as error:  # OSError: the system's libgomp is missing
            raise ConfigError(
                f"{file.path}: serving this model takes lightgbm, which does not import here ({error}); "
                "pip install 'serinus[lightgbm-server]', and Debian's libgomp1"
            ) from None
        self._range = {"start_iteration": chosen[0], "num_iteration": chosen[1] - chosen[0]}
        self.columns, self._groups = file.columns, file.groups
        self._linear = any(tree.linear is not None for tree in file.trees)
        self.iterations = chosen
        try:
            self.booster = lightgbm.Booster(model_str=modeltext.write(file))
        except lightgbm.basic.LightGBMError as error:
            raise ConfigError(f"{file.path}: lightgbm {lightgbm.__version__} cannot load it: {error}") from None
        self.threads = ThreadChoice(threads)
        """Of a batch; the engine measures it."""

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Predictions as lightgbm shapes them: float64 [n] or [n, outputs]. rows: float64 [n, features]."""
        return self._predict(rows)

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        """Predictions, which no class is chosen from."""
        return self._predict(rows)

    def margins(self, rows: np.ndarray) -> np.ndarray:
        """Raw scores, shaped likewise."""
        return self._predict(rows, raw_score=True)

    def contributions(self, rows: np.ndarray) -> np.ndarray:
        """SHAP values of the raw score: float64 [n, features + 1] or [n, outputs, features + 1]; the last column is the bias.

        Raises:
            NotSupported: a model with linear trees.
        """
        if self._linear:
            raise NotSupported("output 'contributions' is not offered: lightgbm explains no linear trees")
        values = self._predict(rows, pred_contrib=True)
        shape = (len(rows), self.columns + 1) if self._groups == 1 else (len(rows), self._groups, self.columns + 1)
        return values.reshape(shape)

    def _predict(self, rows: np.ndarray, **kind: bool) -> np.ndarray:
        threads = self.threads.of(len(rows))
        result = self.booster.predict(rows, num_threads=threads, verbosity=-1, **self._range, **kind)
        return np.ascontiguousarray(result, np.float64)
