"""A small model of each framework as its own library saves it, for stock servers: `write(FOLDER)`, or as a program with the folder.

What stock servers do with a model of ours is the same whichever framework has it. So every run has the frameworks that are soon imported, and a deep
one (tests/support/depth.py) also those that take seconds of CPU in each process.

`FOLDER/NAME` holds the model of NAME and, where its file does not say its tensors, a `model-settings.json` that does. `FOLDER/rows.npy` are rows,
`FOLDER/NAME.npy` is what the framework answers to them; `FOLDER/ensemble.json` is what the fraud ensemble answers, as a class of KServe's;
`FOLDER/packages.txt` says where the frameworks are installed.
"""

from __future__ import annotations

import json
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from depth import DEEP

__all__ = ["COLUMNS", "WRITERS", "in_this_run", "write", "write_ensemble_answers"]

ROWS, COLUMNS = 60, 5
ENSEMBLE = Path(__file__).resolve().parents[2] / "inferenceservices" / "fraud" / "model"


def _xgboost(folder: Path, rows: np.ndarray) -> np.ndarray:
    import xgboost

    matrix = xgboost.DMatrix(rows, (rows.sum(axis=1) > 0).astype(int))
    booster = xgboost.train({"objective": "binary:logistic"}, matrix, 5)
    booster.save_model(folder / "model.ubj")
    return booster.inplace_predict(rows)


def _lightgbm(folder: Path, rows: np.ndarray) -> np.ndarray:
    import lightgbm

    labels = (rows.sum(axis=1) > 0).astype(int)
    booster = lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(rows, labels), 10)
    booster.save_model(folder / "model.txt")
    return np.asarray(booster.predict(rows))


def _sklearn(folder: Path, rows: np.ndarray) -> np.ndarray:
    import skops.io
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(5, random_state=0).fit(rows, rows[:, 0])
    skops.io.dump(model, folder / "model.skops")
    return model.predict(rows)


def _catboost(folder: Path, rows: np.ndarray) -> np.ndarray:
    import catboost

    model = catboost.CatBoostRegressor(5, thread_count=1, logging_level="Silent", allow_writing_files=False)
    model.fit(rows, rows[:, 0]).save_model(str(folder / "model.cbm"))
    return model.predict(rows)


def _mlflow(folder: Path, rows: np.ndarray) -> np.ndarray:
    import mlflow.xgboost
    import xgboost
    from mlflow.models import infer_signature

    model = xgboost.train({"max_depth": 2}, xgboost.DMatrix(rows, rows[:, 0]), 5)
    answer = model.predict(xgboost.DMatrix(rows))
    mlflow.xgboost.save_model(model, folder, signature=infer_signature(rows, answer), pip_requirements=[])
    return answer


def _onnx(folder: Path, rows: np.ndarray) -> np.ndarray:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.arange(2 * COLUMNS, dtype=np.float32).reshape(COLUMNS, 2)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    return rows @ weights


def _torch(folder: Path, rows: np.ndarray) -> np.ndarray:
    """TorchScript: a program of `torch.export` takes two seconds of CPU to write and two more wherever it is loaded."""
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(COLUMNS, 3), torch.nn.ReLU()).eval()
    example = torch.from_numpy(rows)
    torch.jit.trace(model, example).save(str(folder / "model.pt"))
    specs: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, COLUMNS]}]}
    specs["outputs"] = [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
    (folder / "model-settings.json").write_text(json.dumps(specs))
    return model(example).detach().numpy()


def _tensorflow(folder: Path, rows: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    weights = tf.constant(np.arange(2 * COLUMNS, dtype=np.float32).reshape(COLUMNS, 2))
    spec = tf.TensorSpec([None, COLUMNS], tf.float32, name="x")
    module = tf.Module()
    module.answer = tf.function(lambda x: {"y": tf.matmul(x, weights)}, input_signature=[spec])
    tf.saved_model.save(module, str(folder / "1"), signatures=module.answer)
    return rows @ weights.numpy()


WRITERS: dict[str, Callable[[Path, np.ndarray], np.ndarray]] = {
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
    "sklearn": _sklearn,
    "catboost": _catboost,
    "mlflow": _mlflow,
    "onnx": _onnx,
    "torch": _torch,
    "tensorflow": _tensorflow,
}
"""Each writes a model into its folder, and gives what the framework itself answers to rows, float32 [ROWS, COLUMNS]."""


ONLY_DEEP = frozenset({"mlflow", "torch", "tensorflow"})
"""What takes a second of CPU and more to import."""


def in_this_run(names: Iterable[str] = WRITERS) -> list[str]:
    """Those of the frameworks that a run like this one has."""
    return [name for name in names if DEEP or name not in ONLY_DEEP]


def write(folder: Path) -> None:
    """Write those of this run."""
    rows = np.random.default_rng(5).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    (folder / "packages.txt").write_text(sysconfig.get_path("platlib"))
    for name in in_this_run():
        writer, made = WRITERS[name], folder / name
        if name != "mlflow":  # which wants to make it
            made.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the frameworks' own, of what they deprecate
            np.save(folder / f"{name}.npy", writer(made, rows))


def write_ensemble_answers(folder: Path) -> None:
    """Write requests for the fraud ensemble, as V2 tensors, and its answers to them in a process that has KServe."""
    import kserve  # noqa: F401 # with it the ensemble is a class of KServe's; the other form is to be compared with

    from ensemble_server.model import Ensemble

    rng, rows = np.random.default_rng(3), 40
    terminals = np.empty(rows, object)
    terminals[:] = [b"t%d" % (i % 7) for i in range(rows)]
    inputs = {
        "features": rng.normal(size=(rows, 39)).astype("float32"),
        "amount": rng.uniform(1, 3000, rows),
        "terminal_id": terminals,
    }
    model = Ensemble("fraud", str(ENSEMBLE))
    model.load()
    kinds = {spec.name: spec.datatype for spec in (*model.input_specs, *model.output_specs)}
    written = [_tensors(arrays, kinds) for arrays in (inputs, model.predict_arrays(inputs, {}))]
    (folder / "ensemble.json").write_text(json.dumps(written))


def _tensors(arrays: dict[str, np.ndarray], kinds: dict[str, str]) -> list[dict[str, Any]]:
    def plain(value: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value

    return [
        {
            "name": name,
            "datatype": kinds[name],
            "shape": list(array.shape),
            "data": [plain(value) for value in array.reshape(-1).tolist()],
        }
        for name, array in arrays.items()
    ]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    write_ensemble_answers(Path(sys.argv[1]))
