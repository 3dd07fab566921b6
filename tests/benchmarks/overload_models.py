"""Models of a known time for the overload benchmark: one that sleeps, one that computes; of arrays, and hosted whole requests."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping

import numpy as np

from serinus import Call, InferRequest, InferResponse, Model, RequestModel, Tensor, TensorSpec

__all__ = ["PREDICT_S", "Computing", "ComputingRequests", "Sleeping", "SleepingRequests", "compute"]

PREDICT_S = float(os.environ.get("OVERLOAD_PREDICT_S", "0.005"))


def compute(seconds: float) -> None:
    """Use the CPU, with the interpreter's lock, as a model in Python does."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


class Sleeping(Model):
    """Waits as for a device, and lets others compute meanwhile."""

    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)
    batchable = False

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Echo, later."""
        time.sleep(PREDICT_S)
        return {"y": inputs["x"]}


class Computing(Sleeping):
    """Computes in Python."""

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Echo, later."""
        compute(PREDICT_S)
        return {"y": inputs["x"]}


class SleepingRequests(RequestModel):
    """One place for all requests: a lock, as around a device."""

    _place: asyncio.Lock | None = None

    async def infer(self, request: InferRequest) -> InferResponse:
        """Echo, later."""
        self._place = self._place or asyncio.Lock()
        async with self._place:
            await asyncio.sleep(PREDICT_S)
        return InferResponse(request.model_name, [Tensor.of("y", request.inputs[0].data)])


class ComputingRequests(RequestModel):
    """Computes on the event loop."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Echo, later."""
        await asyncio.sleep(0)
        compute(PREDICT_S)
        return InferResponse(request.model_name, [Tensor.of("y", request.inputs[0].data)])
