"""Models that do not end: each says by a file in STUCK_FOLDER that it has begun, and would go on for ten minutes."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from serinus import InferRequest, InferResponse, Model, RequestModel, Tensor, TensorSpec

FOREVER_S = 600
HOLD_S = 1.5
"""Longer than the half second in which a drain waits for what idle connections may have on their way."""


def begun(name: str = "begun") -> None:
    """Tell the test, which is another process."""
    (Path(os.environ["STUCK_FOLDER"]) / name).touch()


class Plain(Model):
    """Answers at once; a negative number is predicted for ten minutes."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)
    execution = "thread"

    def predict(self, inputs, call):
        if (inputs["x"] < 0).any():
            begun()
            time.sleep(FOREVER_S)  # what is tested
        return {"y": inputs["x"]}


class Inline(Plain):
    execution = "inline"


class InProcess(Plain):
    execution = "process"


class Unloads(Plain):
    """Its hook never returns."""

    def unload(self):
        begun("unloading")
        time.sleep(FOREVER_S)  # what is tested


class HoldsEverything(Plain):
    """Its hook never returns, and no other thread of Python runs meanwhile."""

    def unload(self):
        begun("unloading")
        ctypes.PyDLL(None).sleep(FOREVER_S)


class Leftover(Plain):
    """Leaves a thread behind that the interpreter waits for."""

    def load(self):
        threading.Thread(target=time.sleep, args=(FOREVER_S,)).start()


class Loads(Plain):
    def load(self):
        begun("loading")
        time.sleep(FOREVER_S)  # what is tested


class Streams(RequestModel):
    """One response, and no end; or, asked for one answer, none, and it does not let itself be cancelled."""

    streams = True
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)

    async def infer(self, request: InferRequest) -> InferResponse:
        begun()
        while True:
            try:
                await asyncio.sleep(FOREVER_S)
            except asyncio.CancelledError:
                begun("cancelled")

    async def infer_stream(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        yield InferResponse("", [Tensor.of("n", np.ones(1))])
        begun()
        await asyncio.sleep(FOREVER_S)


class HoldsLoop(Model):
    """Holds the event loop for a moment where a number is positive."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)
    execution = "inline"

    def predict(self, inputs, call):
        if (inputs["x"] > 0).any():
            begun()
            time.sleep(HOLD_S)  # what is tested
        return {"y": inputs["x"]}
