"""A serinus model that streams."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np

from serinus import InferRequest, InferResponse, RequestModel, Tensor, TensorSpec


class Countdown(RequestModel):
    """Counts down from each request's `count`."""

    streams = True
    inputs = (TensorSpec("count", "INT64", (1,)),)
    outputs = (TensorSpec("n", "INT64", (1,)),)

    async def infer_stream(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        async for request in requests:
            for n in range(int(request.inputs[0].data[0]), 0, -1):
                yield InferResponse(self.name, [Tensor.of("n", np.array([n]))])
