"""The models of the conformance server: imported by `serinus serve` by their names in model-settings.json."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from serinus import Call, InferRequest, InferResponse, Model, RequestModel, Tensor, TensorSpec
from serinus.protocol.datatypes import DATATYPES


class Identity(Model):
    """Gives every input back under its own name, whatever it is."""

    platform = "test_identity"
    batchable = False

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return dict(inputs)


class Typed(Model):
    """One optional input of each datatype, given back as an output of the same name with OUT_ before it."""

    platform = "test_typed"
    batchable = False
    inputs = tuple(TensorSpec(name, name, (-1, -1), optional=True) for name in sorted(DATATYPES))
    outputs = tuple(TensorSpec(f"OUT_{name}", name, (-1, -1), optional=True) for name in sorted(DATATYPES))

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {f"OUT_{name}": array for name, array in inputs.items()}


class Simple(Model):
    """Triton's `simple`: two inputs, their sum and their difference."""

    platform = "test_simple"
    inputs = (TensorSpec("INPUT0", "INT32", (-1, 4)), TensorSpec("INPUT1", "INT32", (-1, 4)))
    outputs = (TensorSpec("OUTPUT0", "INT32", (-1, 4)), TensorSpec("OUTPUT1", "INT32", (-1, 4)))

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {"OUTPUT0": inputs["INPUT0"] + inputs["INPUT1"], "OUTPUT1": inputs["INPUT0"] - inputs["INPUT1"]}


class Labels(Model):
    """Gives its scores back, with a name for each but the last."""

    platform = "test_labels"
    inputs = (TensorSpec("scores", "FP32", (-1, 4)),)
    outputs = (TensorSpec("classes", "FP32", (-1, 4), labels=("ant", "bee", "cat")),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {"classes": inputs["scores"]}


class Slow(Model):
    """Sleeps as many seconds as its input says."""

    platform = "test_slow"
    inputs = (TensorSpec("seconds", "FP32", (-1, 1)),)
    outputs = (TensorSpec("slept", "FP32", (-1, 1)),)
    batchable = False
    execution = "thread"

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        time.sleep(float(inputs["seconds"].max()))  # in another process, where no test can hold it
        return {"slept": inputs["seconds"]}


class Texts(Model):
    """Says how long its texts are, and gives bytes that are no text."""

    platform = "test_texts"
    inputs = (TensorSpec("text", "BYTES", (-1, 1)),)
    outputs = (TensorSpec("length", "INT64", (-1, 1)), TensorSpec("raw", "BYTES", (-1, 1), optional=True))

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        texts = inputs["text"]
        raw = np.empty(texts.shape, dtype=object)
        raw[...] = b"\xff\xfe"
        length = np.array([[len(text)] for text in texts[:, 0]], np.int64).reshape(texts.shape)
        return {"length": length, "raw": raw} if call.outputs else {"length": length}


class Broken(Model):
    """Fails as no model should."""

    platform = "test_broken"
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        raise ZeroDivisionError("secret of /opt/model.py")


class Asked(RequestModel):
    """Says what reached it: parameters, headers, wanted outputs, in order."""

    platform = "test_asked"

    async def infer(self, request: InferRequest) -> InferResponse:
        said = {
            "parameters": ",".join(f"{key}={value!r}" for key, value in sorted(request.parameters.items())),
            "inputs": ",".join(tensor.name for tensor in request.inputs),
        }
        return InferResponse(
            request.model_name,
            [Tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in request.inputs],
            id=request.id,
            parameters=said,
            headers={"x-answered-by": "asked"},
        )
