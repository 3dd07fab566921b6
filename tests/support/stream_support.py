"""A model that answers in streams, and says what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np

from serinus import InferRequest, InferResponse, RequestModel, Tensor, TensorSpec
from serinus.errors import InvalidInput, ModelFailed
from serinus.model import V1Answer


class Counting(RequestModel):
    """Counts up to each request's `count`. Parameters: `hold` waits for `go` before each number, `fail_at` and `break_at` raise
    there, `size` adds so many bytes to each response."""

    platform = "test_counting"
    streams = True
    takes_bytes = True
    inputs = (TensorSpec("count", "INT64", (1,)),)
    outputs = (TensorSpec("n", "INT64", (1,)), TensorSpec("text", "BYTES", (1,)))

    def load(self) -> None:
        self.given = self.opened = self.closed = 0
        COUNTING[self.name] = self

    async def start(self) -> None:
        self.go = asyncio.Semaphore(0)

    async def infer(self, request: InferRequest) -> InferResponse:
        return self._response(request, int(request.inputs[0].data[0]))

    async def infer_stream(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        self.opened += 1
        try:
            async for request in requests:
                wanted = request.parameters
                for n in range(int(request.inputs[0].data[0])):
                    if wanted.get("hold"):
                        await self.go.acquire()
                    if n == wanted.get("fail_at", -1):
                        raise InvalidInput(f"it does not count to {n}")
                    if n == wanted.get("break_at", -1):
                        raise ZeroDivisionError("secret of the model")
                    self.given += 1
                    yield self._response(request, n)
        finally:
            self.closed += 1

    def _response(self, request: InferRequest, n: int) -> InferResponse:
        text = np.array([b"x" * int(request.parameters.get("size", 1))], dtype=object)
        return InferResponse(
            request.model_name,
            [Tensor.of("n", np.array([n])), Tensor("text", "BYTES", (1,), text)],
            headers={"x-first": "yes"},
        )

    async def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> V1Answer:
        """Answer V1 bodies `{"instances": [count], ...}` with a line for each number."""

        async def lines() -> AsyncIterator[bytes]:
            self.opened += 1
            try:
                for n in range(payload["instances"][0]):
                    if payload.get("hold"):
                        await self.go.acquire()
                    if n == payload.get("break_at"):
                        raise ZeroDivisionError("secret of the model")
                    self.given += 1
                    yield b"%d\n" % n
            finally:
                self.closed += 1

        return V1Answer(lines(), {"x-own": "1"}, "text/x-lines")


class Conversing(Counting):
    """Takes whole streams, as MLServer's classes do."""

    whole_streams = True


COUNTING: dict[str, Counting] = {}
"""The models that were loaded last, by name."""


def count(number: int, **more: Any) -> dict[str, Any]:
    """A request in JSON."""
    return {"inputs": [{"name": "count", "datatype": "INT64", "shape": [1], "data": [number]}], **more}


class Writing(RequestModel):
    """Repeats its prompt: Triton's model for tests of the generate extension, in its own names. `REPETITION` responses, 1 unless
    it is said; `FAIL_LAST` raises after them."""

    platform = "test_writing"
    streams = True
    inputs = (
        TensorSpec("PROMPT", "BYTES", (1,)),
        TensorSpec("STREAM", "BOOL", (1,)),
        TensorSpec("input_ids", "INT64", (1, -1), optional=True),
    )
    outputs = (TensorSpec("TEXT", "BYTES", (-1,)),)

    async def infer_stream(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        async for request in requests:
            (prompt,) = request.inputs[[tensor.name for tensor in request.inputs].index("PROMPT")].data
            for _ in range(int(request.parameters.get("REPETITION", 1))):
                texts = np.array([prompt] * int(request.parameters.get("TEXTS", 1)), dtype=object)
                yield InferResponse(
                    "", [Tensor("TEXT", "BYTES", texts.shape, texts)], self.version, parameters={"triton_final": False}
                )
            if request.parameters.get("FAIL_LAST"):
                raise ModelFailed("An Error Occurred")
