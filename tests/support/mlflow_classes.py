"""Python models of MLflow's, pickled by value: a process that loads one needs no module of the tests."""

from __future__ import annotations

from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, DataType, Object, Property


def columns() -> tuple[Any, ModelSignature]:
    """Columns of several types, one of them optional, a parameter, and a DataFrame of several types as the answer."""

    class Columns(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            import os

            scale = (params or {}).get("scale", 1.0)
            other = model_input["o"].fillna(0) if "o" in model_input else 0.0
            return pd.DataFrame(
                {"sum": (model_input["i"] + other) * scale, "word": model_input["s"] + "!", "pid": os.getpid()}
            )

    inputs = Schema([ColSpec("long", "i"), ColSpec("string", "s"), ColSpec("double", "o", required=False)])
    outputs = Schema([ColSpec("double", "sum"), ColSpec("string", "word"), ColSpec("long", "pid")])
    return Columns(), ModelSignature(inputs, outputs, ParamSchema([ParamSpec("scale", "float", 1.0)]))


def texts() -> tuple[Any, None]:
    """No signature, and a list of texts as the answer."""

    class Texts(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return [f"{len(model_input.columns)} columns" for _ in range(len(model_input))]

    return Texts(), None


def failing() -> tuple[Any, ModelSignature]:
    """Raises for numbers below zero, and ends its process at 13."""

    class Failing(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            import os

            if (model_input["x"] == 13).any():
                os._exit(3)
            if (model_input["x"] < 0).any():
                raise RuntimeError("a secret of the model's")
            return model_input["x"] * 2

    return Failing(), ModelSignature(Schema([ColSpec("double", "x")]), Schema([ColSpec("double")]))


def parted() -> tuple[Any, ModelSignature]:
    """Types that have parts, bytes and dates."""

    class Parted(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return [
                {"n": len(row.tags), "year": row.day.year, "city": row.place["city"], "bytes": len(row.raw)}
                for row in model_input.itertuples()
            ]

    return Parted(), ModelSignature(
        Schema(
            [
                ColSpec(Array(DataType.string), "tags"),
                ColSpec(Object([Property("city", DataType.string)]), "place"),
                ColSpec("datetime", "day"),
                ColSpec("binary", "raw"),
            ]
        )
    )
