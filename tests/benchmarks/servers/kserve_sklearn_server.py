"""A kserve.Model that loads and predicts as KServe's sklearnserver does (python/sklearnserver/sklearnserver/model.py), for benchmarks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import joblib
import kserve
from kserve.utils.utils import get_predict_input, get_predict_response


class SKLearnModel(kserve.Model):
    """Answers with `predict_proba` where PREDICT_PROBA is true, as there."""

    def __init__(self, name: str, folder: str) -> None:
        super().__init__(name)
        self._model = joblib.load(next(Path(folder).glob("*.joblib")))
        self.ready = True

    def predict(self, payload: Any, headers: Any = None) -> Any:
        instances = get_predict_input(payload)
        if os.environ.get("PREDICT_PROBA", "false").lower() == "true" and hasattr(self._model, "predict_proba"):
            result = self._model.predict_proba(instances)
        else:
            result = self._model.predict(instances)
        return get_predict_response(payload, result, self.name)


parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
parser.add_argument("--model_dir", required=True)
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    if args.configure_logging:
        kserve.logging.configure_logging(args.log_config_file)
    kserve.ModelServer().start([SKLearnModel(args.model_name, args.model_dir)])
