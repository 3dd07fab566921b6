"""A model that does what it is asked to by a number: answer, raise, hang, leak, exit, die, NaN, wrong shapes; and its well neighbour."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

import numpy as np

from serinus import InferRequest, InferResponse, Model, RequestModel, Tensor, TensorSpec

__all__ = ["LEAK_BYTES", "Big", "IllInProcess", "IllInThread", "Reads", "SlowToLoad", "Steady"]

WELL, RAISES, HANGS, LEAKS, EXITS, NAN, WRONG_SHAPE, SEGMENTATION, NO_OUTPUT, ALLOCATES = range(10)
HANG_S = 4.0
HANGING = "the model hangs\n"
"""What it writes to standard error by then."""
LEAK_BYTES = 32 << 20


class Steady(Model):
    """Doubles a number."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: object) -> Mapping[str, np.ndarray]:
        return {"y": inputs["x"] * 2}


class IllInThread(Steady):
    """Does what the first number says, see above."""

    execution = "thread"

    def load(self) -> None:
        self.kept: list[np.ndarray] = []

    def predict(self, inputs: Mapping[str, np.ndarray], call: object) -> Mapping[str, np.ndarray]:
        x = inputs["x"]
        match int(x[0, 0]):
            case 1:
                raise RuntimeError("a model's own fault")
            case 2:
                os.write(2, HANGING.encode())
                time.sleep(HANG_S)  # what is tested
            case 3:
                self.kept.append(np.ones(LEAK_BYTES, np.uint8))
            case 4:
                os._exit(3)
            case 5:
                return {"y": np.full_like(x, np.nan)}
            case 6:
                return {"y": np.zeros((len(x) + 1, 7), np.float32)}
            case 7:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 8:
                return {}
            case 9:
                return {"y": np.empty(1 << 55, np.float32)}
        return {"y": x * 2}


class IllInProcess(IllInThread):
    """Likewise, in a process of its own."""

    execution = "process"


class SlowToLoad(Steady):
    """Takes a moment to load."""

    def load(self) -> None:
        time.sleep(0.02)  # what is tested is many at once


class Reads(Steady):
    """Reads its file when it is loaded: a number to multiply by, and nothing else is one."""

    def load(self) -> None:
        assert self.settings.model_dir is not None
        self.factor = float((self.settings.model_dir / "factor.txt").read_text())

    def predict(self, inputs: Mapping[str, np.ndarray], call: object) -> Mapping[str, np.ndarray]:
        return {"y": inputs["x"] * np.float32(self.factor)}


class Big(RequestModel):
    """Answers 16 MiB, whatever it is asked."""

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse("", [Tensor.of("y", np.ones(16 << 20, np.uint8))])
