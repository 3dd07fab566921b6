"""A transformer for traces, served by real processes: its `{x} -> {x + 1}` asks its predictor (traced_model.py)."""

from __future__ import annotations

import kserve
from kserve import InferRequest
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


class AddOne(kserve.Model):
    """A transformer, which makes a span of its own as OpenTelemetry's documents say."""

    def preprocess(self, payload, headers=None):
        context = TraceContextTextMapPropagator().extract(headers)
        with trace.get_tracer("an author's").start_as_current_span("look up", context):
            for tensor in payload.inputs:
                tensor.set_data_from_numpy(tensor.as_numpy() + 1)
        return InferRequest(model_name=self.name, infer_inputs=payload.inputs)
