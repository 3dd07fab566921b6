"""Models that run in a process of their own, which must be able to import them by name."""

from __future__ import annotations

import os

import numpy as np

from dataplane_support import Doubler
from serinus import TensorSpec
from serinus.errors import ConfigError
from serinus.model import Provenance

__all__ = ["Exits", "Isolated", "Missing", "Summed", "Unpicklable"]


class Isolated(Doubler):
    """Says its process; 66 ends the process; 44 raises something that does not pickle."""

    execution = "process"
    outputs = (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("pid", "INT64", (-1,)))

    def load(self):
        self.details["made_in"] = os.getpid()

    def predict(self, inputs, call):
        x = inputs["x"]
        if (x == 66).any():
            os._exit(7)
        if (x == 44).any():
            raise Unpicklable
        return {"y": x * 2, "pid": np.full(len(x), os.getpid())}


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("lambda inside")
        self.inside = lambda: None


class Missing(Isolated):
    def load(self):
        raise ConfigError("model.bin: no such file")


class Exits(Isolated):
    def load(self):
        os._exit(9)


class Summed(Isolated):
    """A file of somebody else's: what it answers is in the file beside it. "rows": each its double; "sums": running sums."""

    execution = "process"
    batching = "earned"
    outputs = (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("told", "INT64", (-1,)))

    def load(self):
        super().load()
        path = self.settings.model_dir
        self.kind = path.read_text()
        self.provenance = Provenance((path,), {"kind": "text"})

    def predict(self, inputs, call):
        x = inputs["x"]
        y = np.cumsum(x, axis=0) if self.kind == "sums" else x * 2
        return {"y": y, "told": np.full(len(x), int(self.batchable))}
