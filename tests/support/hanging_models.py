"""Models whose predict hangs on 77, wherever they run; a process imports them by name."""

from __future__ import annotations

import asyncio
import os
import threading

import numpy as np

from dataplane_support import Doubler
from serinus import InferRequest, InferResponse, RequestModel, Tensor, TensorSpec

__all__ = ["HangsInProcess", "HangsInTask", "HangsInThread"]


class HangsInThread(Doubler):
    """Until it is let."""

    execution = "thread"
    gate = threading.Event()

    def predict(self, inputs, call):
        if (inputs["x"] == 77).any():
            assert self.gate.wait(60)
        return super().predict(inputs, call)


class HangsInProcess(HangsInThread):
    """For a minute; says its process."""

    execution = "process"
    outputs = (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("pid", "INT64", (-1,)))

    def predict(self, inputs, call):
        return {**super().predict(inputs, call), "pid": np.full(len(inputs["x"]), os.getpid())}


class HangsInTask(RequestModel):
    async def infer(self, request: InferRequest) -> InferResponse:
        value = request.inputs[0].data
        if (value == 77).any():
            await asyncio.sleep(60)
        return InferResponse("", [Tensor.of("y", value)])
