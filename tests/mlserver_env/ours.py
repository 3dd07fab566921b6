"""Serinus models: one that streams, one of arrays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import numpy as np

from serinus import Call, InferRequest, InferResponse, Model, RequestModel, Tensor, TensorSpec


class Countdown(RequestModel):
    """Counts down from each request's `count`."""

    streams = True
    inputs = (TensorSpec("count", "INT64", (1,)),)
    outputs = (TensorSpec("n", "INT64", (1,)),)

    async def infer_stream(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        async for request in requests:
            for n in range(int(request.inputs[0].data[0]), 0, -1):
                yield InferResponse(self.name, [Tensor.of("n", np.array([n]))])


class Doubler(Model):
    """y = 2 x; says something long of itself."""

    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)

    def load(self) -> None:
        self.details["long"] = "l" * 300

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {"y": inputs["x"] * 2}
