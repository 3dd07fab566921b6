"""The model behind the transformer of traced_classes.py, in a file of its own: KServe takes 1.3 s of CPU to import, and it needs none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from serinus import Call, Model, TensorSpec


class Double(Model):
    """The model behind it."""

    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        if (inputs["x"] < 0).any():
            raise ZeroDivisionError("a secret")
        return {"y": inputs["x"] * 2}
