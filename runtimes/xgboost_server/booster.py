"""XGBoost's own Booster: what verifies the engine, serves what the engine does not cover, and explains predictions.

xgboost is imported when the first of these is wanted, and not before: its import costs over a second and 85 MB.
"""

from __future__ import annotations

import threading

import numpy as np
import orjson

from serinus.artifacts import unchanged
from serinus.engines.thread_choice import ThreadChoice
from serinus.errors import ConfigError

from .forest_reader import Iterations
from .modelfile import ModelFile
from .soundness import check_readable

__all__ = ["Booster"]

_USED = threading.local()
"""What xgboost's own setting of this thread is (`xgboost.set_config`); setting it costs 12 us, half of a small predict's rest."""


class Booster:
    """A Booster that takes the rows that the walk takes; the engine's `FrameworkPredictor`.

    Raises:
        ConfigError: xgboost is not installed, or refuses the file.
    """

    def __init__(self, file: ModelFile, chosen: Iterations, *, missing: float, threads: int) -> None:
        try:
            import xgboost
        except ImportError:
            raise ConfigError(
                f"{file.path}: serving this model takes xgboost, which is not installed; pip install 'serinus[xgboost-server]'"
            ) from None
        self._xgboost = xgboost
        self.iterations = chosen
        self._missing = missing
        self._chooses = "nthread" in xgboost.get_config()
        """xgboost takes the threads of a call; before that was so, the Booster's own number is every call's."""
        self.threads = ThreadChoice(threads)
        """Of a batch; the engine measures it."""
        self._groups = file.groups
        self._inplace = file.booster != "gblinear"
        self._alone = threading.Lock()
        """Held where a prediction goes by way of a DMatrix, which xgboost documents as thread-safe for trees only."""
        try:
            check_readable(file.model, xgboost.__version__)
        except ValueError as error:
            raise ConfigError(f"{file.path}: not loaded: {error}") from None
        try:
            self.booster = xgboost.Booster()
            if file.format != "ubj":
                # Since 3.1 xgboost reads the old binary format no more; the same model as JSON it does. Of JSON it is given what was
                # checked: of a key that is there twice, two readers may take different values. UBJSON's reader refuses such.
                self.booster.load_model(bytearray(orjson.dumps(file.document, option=orjson.OPT_SERIALIZE_NUMPY)))
            else:
                with unchanged(file.path, file.sha256):
                    if file.path.suffix == ".ubj":
                        self.booster.load_model(file.path)
                    else:  # of a file's name xgboost would believe the suffix
                        self.booster.load_model(bytearray(file.path.read_bytes()))
            self.booster.set_param({"nthread": threads})
            self.columns: int = self.booster.num_features()
        except xgboost.core.XGBoostError as error:
            first = str(error).strip().splitlines()[0]
            raise ConfigError(f"{file.path}: xgboost {xgboost.__version__} cannot load it: {first}") from None

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Predictions as xgboost shapes them: float32 [n] or [n, outputs]. rows: float32 [n, features]."""
        return self._predict(rows, "value")

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        """Predictions; of multi:softmax, which predicts the class, the probabilities that it chooses from."""
        predictions = self.predict(rows)
        if self._groups == 1 or predictions.ndim == 2:
            return predictions
        margins = self.margins(rows)
        raised = np.exp(margins - margins.max(axis=1, keepdims=True))
        return raised / raised.sum(axis=1, keepdims=True)

    def margins(self, rows: np.ndarray) -> np.ndarray:
        """Margins, shaped likewise."""
        return self._predict(rows, "margin")

    def contributions(self, rows: np.ndarray) -> np.ndarray:
        """SHAP values in margin space: float32 [n, features + 1] or [n, outputs, features + 1]; the last column is the bias."""
        matrix = self._xgboost.DMatrix(rows, missing=self._missing, nthread=self._use_threads(len(rows)))
        with self._alone:
            return self.booster.predict(
                matrix, pred_contribs=True, iteration_range=self.iterations, validate_features=False
            )

    def _use_threads(self, rows: int) -> int:
        """Choose the threads of this thread's next call; xgboost keeps a number for each thread beside the Booster's own."""
        threads = self.threads.of(rows)
        if self._chooses and getattr(_USED, "threads", 0) != threads:
            self._xgboost.set_config(nthread=threads)
            _USED.threads = threads
        return threads

    def _predict(self, rows: np.ndarray, kind: str) -> np.ndarray:
        threads = self._use_threads(len(rows))
        if self._inplace:
            result = self.booster.inplace_predict(
                rows, iteration_range=self.iterations, predict_type=kind, missing=self._missing, validate_features=False
            )
        else:
            matrix = self._xgboost.DMatrix(rows, missing=self._missing, nthread=threads)
            with self._alone:
                result = self.booster.predict(
                    matrix, output_margin=kind == "margin", iteration_range=self.iterations, validate_features=False
                )
        return np.asarray(result, np.float32)
