"""A transformer and a model for traces, served by real processes; the transformer's `{x} -> {x + 1}` asks its predictor."""

from __future__ import annotations

from collections.abc import Mapping

import kserve
import numpy as np
from kserve import InferRequest
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serinus import Call, Model, TensorSpec


class AddOne(kserve.Model):
    """A transformer, which makes a span of its own as OpenTelemetry's documents say."""

    def preprocess(self, payload, headers=None):
        context = TraceContextTextMapPropagator().extract(headers)
        with trace.get_tracer("an author's").start_as_current_span("look up", context):
            for tensor in payload.inputs:
                tensor.set_data_from_numpy(tensor.as_numpy() + 1)
        return InferRequest(model_name=self.name, infer_inputs=payload.inputs)


class Double(Model):
    """The model behind it."""

    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        if (inputs["x"] < 0).any():
            raise ZeroDivisionError("a secret")
        return {"y": inputs["x"] * 2}
