"""Models that the monitoring tests serve: one that is well, one with the faults that dashboards and runbooks are for, one that is never ready.

The faulty one predicts slowly and row by row, keeps memory with each predict, raises on negative numbers, and has a GPU whose memory is in
pieces: PyTorch's statistics under their own keys, as `torch.cuda.memory_stats` gives them, with numbers made up, through the exporter that
torch_server uses.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping

import numpy as np

from serinus import Family, InferRequest, InferResponse, Model, RequestModel, TensorSpec

SLOW_S = 0.02
SLOW_ROW = 7.0
"""A value that takes much longer than others."""
HANG_TIMEOUT_S = 0.5
LEAKED = b"x" * 50_000
GIB = 1 << 30
SEGMENTS = [
    {"device": 0, "blocks": [{"size": 3 * GIB, "state": "active_allocated"}, {"size": GIB, "state": "inactive"}]},
    {"device": 0, "blocks": [{"size": 2 * GIB, "state": "inactive"}, {"size": 6 * GIB, "state": "active_allocated"}]},
]


class Steady(Model):
    """Doubles a number."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)
    batchable = True

    def predict(self, inputs: Mapping[str, np.ndarray], call: object) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * 2}


class Faulty(Model):
    """Doubles a number when nothing of what is named above happens."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)
    batchable = False
    execution = "thread"

    _scrapes = 0

    def load(self) -> None:
        self._kept: list[bytes] = []

    def predict(self, inputs: Mapping[str, np.ndarray], call: object) -> dict[str, np.ndarray]:
        time.sleep(0.3 if (inputs["x"] == SLOW_ROW).any() else SLOW_S)  # a fault
        self._kept.append(LEAKED + str(len(self._kept)).encode())  # another
        if (inputs["x"] < 0).any():
            raise RuntimeError("no negative numbers")
        return {"y": inputs["x"] * 2}

    def metrics(self) -> Iterable[Family]:
        from torch_server.memory import families, largest_free_bytes

        self._scrapes += 1
        stats = {
            "allocated_bytes.all.current": 70 * GIB,
            "allocated_bytes.all.peak": 76 * GIB,
            "reserved_bytes.all.current": 78 * GIB,
            "active_bytes.all.current": 71 * GIB,
            "inactive_split_bytes.all.current": 31 * GIB,
            "requested_bytes.all.current": 69 * GIB,
            "num_alloc_retries": self._scrapes,
            "num_ooms": self._scrapes // 2,
        }
        return families(stats, (2 * GIB, 80 * GIB), largest_free_bytes(SEGMENTS, 0), 0, "0")


class Hanging(Steady):
    """Doubles a number, and takes far too long for one: its process is killed and replaced."""

    execution = "process"

    def predict(self, inputs: Mapping[str, np.ndarray], call: object) -> dict[str, np.ndarray]:
        if (inputs["x"] == SLOW_ROW).any():
            time.sleep(60)  # a fault
        return super().predict(inputs, call)


class Unready(RequestModel):
    """Waits for something that never comes, as a transformer does whose predictor is gone."""

    async def is_ready(self) -> bool:
        return False

    async def infer(self, request: InferRequest) -> InferResponse:
        raise NotImplementedError


class ReadyWithAFile(RequestModel):
    """Is ready while the file that READY_FILE names is there: a fault that begins and ends when a test says so."""

    async def is_ready(self) -> bool:
        return os.path.exists(os.environ["READY_FILE"])

    async def infer(self, request: InferRequest) -> InferResponse:
        raise NotImplementedError
