"""A runtime whose file says what loading it does: to the process, if need be."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping

import numpy as np

from serinus import Call, Model, TensorSpec
from serinus.engines import load_trial

__all__ = ["Tried"]


class Tried(Model):
    """Notes each load in a file `loads` beside its own."""

    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)

    def load(self) -> None:
        folder = self.settings.model_dir
        assert folder is not None
        load_trial.try_apart(self, [folder / "model"], {"framework": "1"})
        with (folder / "loads").open("a") as noted:
            noted.write(f"{os.getpid()}\n")
        self.does = (folder / "model").read_text()
        if self.does == "abort":
            print("F0000 tensor.cc:1 Check failed: size >= 0", file=sys.stderr, flush=True)
            os.abort()
        if self.does == "stopped once" and not (folder / "stopped").exists():
            (folder / "stopped").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        if self.does == "raise":
            raise ValueError("of its own")

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        if self.does == "abort at predict":
            os.abort()
        return {"y": inputs["x"]}
