"""BentoML with its own API: a JSON list of rows in, a list of scores out."""

import os

import bentoml
import numpy as np
import xgboost


@bentoml.service(workers=1)
class Scorer:
    """One worker."""

    def __init__(self) -> None:
        self.booster = xgboost.Booster(params={"nthread": 1}, model_file=os.environ["BENCH_MODEL_FILE"])

    @bentoml.api
    def predict(self, data: list[list[float]]) -> list[float]:
        return self.booster.inplace_predict(np.asarray(data, dtype=np.float32)).tolist()
