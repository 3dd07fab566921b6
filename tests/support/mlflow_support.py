"""Models saved by MLflow itself, for the tests of mlflow_server."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from deferred import Deferred
from serinus.dataplane.plane import Plane

pd = Deferred("pandas")
mlflow_models = Deferred("mlflow.models")
pyfunc = Deferred("mlflow.pyfunc")
xgb = Deferred("xgboost")
lgb = Deferred("lightgbm")
linear = Deferred("sklearn.linear_model")

NAMES = ("a", "b", "c", "d")
FLAVOURS = (
    "sklearn",
    "sklearn_proba",
    "xgb_classifier",
    "xgb_three",
    "xgb_regressor",
    "xgb_booster",
    "lgb_booster",
    "onnx",
    "torch_export",
    "torch_script",
)
"""Those that a runtime here serves."""
TENSORS = ("onnx", "torch_export", "torch_script")
"""Those that are asked with an array."""


def frame(count: int = 64, seed: int = 0) -> Any:
    """Random rows of four named columns, float64."""
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(count, 4)), columns=list(NAMES))


def save(kind: str, folder: Path) -> Path:
    """Train a small model and save it by MLflow; gives back the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _SAVERS[kind](folder)
    return folder


def loaded(folder: Path) -> Any:
    """Load a folder as MLflow does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pyfunc.load_model(str(folder))


def labels(data: Any) -> Any:
    """Two classes that the first two columns decide."""
    return (data.a + data.b > 0).astype(int)


def _signature(data: Any, answer: Any) -> Any:
    return mlflow_models.infer_signature(data, answer)


def _sklearn(folder: Path, predict_fn: str = "predict", **named: Any) -> None:
    import mlflow.sklearn

    data = frame()
    model = linear.LogisticRegression().fit(data, labels(data))
    signature = _signature(data, getattr(model, predict_fn)(data))
    mlflow.sklearn.save_model(
        model, folder, signature=signature, pip_requirements=[], pyfunc_predict_fn=predict_fn, **named
    )


def _xgb(folder: Path, kind: str) -> None:
    import mlflow.xgboost

    data = frame()
    if kind == "booster":
        model = xgb.train({"objective": "binary:logistic"}, xgb.DMatrix(data, labels(data)), 5)
        answer = model.predict(xgb.DMatrix(data))
    elif kind == "regressor":
        model = xgb.XGBRegressor(n_estimators=30, early_stopping_rounds=2)
        model.fit(data, data.a, eval_set=[(frame(seed=3), frame(seed=4).a)], verbose=False)
        answer = model.predict(data)
    else:
        wanted = labels(data) if kind == "classifier" else np.digitize(data.a, [-0.5, 0.5])
        model = xgb.XGBClassifier(n_estimators=5).fit(data, wanted)
        answer = model.predict(data)
    mlflow.xgboost.save_model(model, folder, signature=_signature(data, answer), pip_requirements=[])


def _lgb(folder: Path, *, booster: bool) -> None:
    import mlflow.lightgbm

    data = frame()
    model = lgb.LGBMClassifier(n_estimators=5, verbose=-1).fit(data, labels(data))
    made = model.booster_ if booster else model
    mlflow.lightgbm.save_model(made, folder, signature=_signature(data, made.predict(data)), pip_requirements=[])


def _onnx(folder: Path) -> None:
    import mlflow.onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    data = frame().to_numpy(np.float32)
    signature = _signature(data, np.zeros((2, 2), np.float32))
    mlflow.onnx.save_model(model, folder, signature=signature, pip_requirements=[])


def _torch(folder: Path, kind: str) -> None:
    import mlflow.pytorch
    import torch

    torch.manual_seed(0)
    net: Any = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).eval()
    data = frame().to_numpy(np.float32)
    signature = _signature(data, np.zeros((2, 2), np.float32))
    if kind == "export":
        mlflow.pytorch.save_model(
            net, folder, signature=signature, serialization_format="pt2", input_example=data[:4], pip_requirements=[]
        )
    else:
        made = torch.jit.trace(net, torch.from_numpy(data[:4])) if kind == "script" else net
        mlflow.pytorch.save_model(made, folder, signature=signature, serialization_format="pickle", pip_requirements=[])


def _python_model(folder: Path, name: str) -> None:
    import mlflow_classes

    made, signature = getattr(mlflow_classes, name)()
    pyfunc.save_model(folder, python_model=made, signature=signature, pip_requirements=[])


_SAVERS = {
    "sklearn": _sklearn,
    "sklearn_proba": lambda folder: _sklearn(folder, "predict_proba"),
    "sklearn_pickle": lambda folder: _sklearn(folder, serialization_format="pickle"),
    "xgb_classifier": lambda folder: _xgb(folder, "classifier"),
    "xgb_three": lambda folder: _xgb(folder, "three"),
    "xgb_regressor": lambda folder: _xgb(folder, "regressor"),
    "xgb_booster": lambda folder: _xgb(folder, "booster"),
    "lgb_booster": lambda folder: _lgb(folder, booster=True),
    "lgb_classifier": lambda folder: _lgb(folder, booster=False),
    "onnx": _onnx,
    "torch_export": lambda folder: _torch(folder, "export"),
    "torch_script": lambda folder: _torch(folder, "script"),
    "torch_pickle": lambda folder: _torch(folder, "pickle"),
    "columns": lambda folder: _python_model(folder, "columns"),
    "texts": lambda folder: _python_model(folder, "texts"),
    "failing": lambda folder: _python_model(folder, "failing"),
    "parted": lambda folder: _python_model(folder, "parted"),
}


class _Asked:
    """What a route's handler is given."""

    def __init__(self, body: Any, content_type: str = "application/json") -> None:
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {"content-type": content_type}


async def invoke(plane: Plane, body: Any, content_type: str = "application/json") -> tuple[int, Any]:
    """Call the handler of POST /invocations, as the REST server does."""
    handler = next(handler for _, path, handler in plane.extra_routes() if path == "/invocations")
    status, _, answer = await handler(_Asked(body, content_type))
    return status, json.loads(answer)
