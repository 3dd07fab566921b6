"""A small model of each classic format and of MLflow, each in a folder with its settings, and with its verification record where one is wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lightgbm_support
from deferred import Deferred

__all__ = ["COLUMNS", "FORMATS", "MODULES", "WITH_RECORDS", "expected", "rows", "write", "write_mlflow", "write_record"]

catboost = Deferred("catboost")
ensemble = Deferred("sklearn.ensemble")
skops_io = Deferred("skops.io")
xgboost = Deferred("xgboost")

COLUMNS = 6


def rows(count: int = 200) -> np.ndarray:
    """Random rows, float32 [count, 6], the same ones each time."""
    return np.random.default_rng(0).normal(size=(count, COLUMNS)).astype(np.float32)


def _xgboost(folder: Path) -> np.ndarray:
    model = xgboost.train({"max_depth": 2, "nthread": 1}, xgboost.DMatrix(rows(), rows()[:, 0]), 5)
    model.save_model(folder / "model.ubj")
    return model.inplace_predict(rows(3))


def _lightgbm(folder: Path) -> np.ndarray:
    model = lightgbm_support.train(trees=5)
    lightgbm_support.save(model, folder)
    return model.predict(rows(3))


def _sklearn(folder: Path) -> np.ndarray:
    model = ensemble.RandomForestRegressor(5, random_state=0).fit(rows(), rows()[:, 0])
    skops_io.dump(model, folder / "model.skops")
    return model.predict(rows(3))


def _catboost(folder: Path, form: str) -> np.ndarray:
    model = catboost.CatBoostRegressor(5, thread_count=1, logging_level="Silent", allow_writing_files=False)
    model.fit(rows(), rows()[:, 0]).save_model(str(folder / f"model.{form}"), format=form)
    return model.predict(rows(3))


def _onnx(folder: Path) -> np.ndarray:
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Mul", ["x", "two"], ["y"])
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", COLUMNS]) for name in "xy"]
    graph = helper.make_graph([node], "g", value[:1], value[1:], [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    return 2 * rows(3)


FORMATS: dict[str, Callable[[Path], np.ndarray]] = {
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
    "sklearn": _sklearn,
    "catboost cbm": lambda folder: _catboost(folder, "cbm"),
    "catboost json": lambda folder: _catboost(folder, "json"),
    "onnx": _onnx,
}
"""Writes a model of each format that `classic_server` serves; gives what its framework predicts for `rows(3)`."""
WITH_RECORDS = tuple(name for name in FORMATS if name != "onnx")
"""Those that a verification record frees from their framework."""
MODULES = {
    "xgboost": "xgboost_server",
    "lightgbm": "lightgbm_server",
    "sklearn": "sklearn_server",
    "catboost": "catboost_server",
}


def write(kind: str, folder: Path, **settings: Any) -> np.ndarray:
    """Write a model of a format into a folder that is made, with settings where some are given; gives what it predicts for `rows(3)`."""
    folder.mkdir(parents=True, exist_ok=True)
    answer = FORMATS[kind](folder)
    if settings:
        (folder / "model-settings.json").write_text(json.dumps(settings))
    return np.asarray(answer)


def write_mlflow(folder: Path) -> np.ndarray:
    """Have MLflow save an XGBoost model; gives what it predicts for `rows(3)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, at its import
        import mlflow.xgboost
        from mlflow.models import infer_signature

        model = xgboost.train({"max_depth": 2, "nthread": 1}, xgboost.DMatrix(rows(), rows()[:, 0]), 5)
        signature = infer_signature(rows(), model.inplace_predict(rows()))
        mlflow.xgboost.save_model(model, folder, signature=signature, pip_requirements=[])
    return model.inplace_predict(rows(3))


def write_record(name: str, folder: Path) -> list[Path]:
    """Run a runtime's `verify` on a model's folder, as while an image is built; gives the records that it wrote beside the model."""
    module = MODULES[name.split()[0]]
    before = set(folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"{module}.verify", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(set(folder.iterdir()) - before)


def expected(answer: np.ndarray, found: Any) -> None:
    """Whether what came over the wire is what the framework predicts, to float32's precision."""
    np.testing.assert_allclose(np.reshape(found, answer.shape), answer, rtol=2e-6, atol=1e-6)
