"""A model whose file says what it answers, and what its load does on one of several workers."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from serinus import Model, TensorSpec

__all__ = ["Told"]


class Told(Model):
    """Answers the number in its file, and its process. Further words of the file: `fails 1`, `exits 1`, `waits 0`: on that worker, its load does."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("value", "INT64", (-1,)), TensorSpec("pid", "INT64", (-1,)))
    execution = "inline"

    def load(self):
        assert self.settings.model_dir is not None
        folder = Path(self.settings.model_dir)
        self.value, *words = (folder / "value.txt").read_text().split()
        for word, worker in zip(words[::2], words[1::2], strict=True):
            if os.environ.get("SERINUS_WORKER") != worker:
                continue
            if word == "fails":
                raise ValueError("it fails here")
            if word == "exits":
                os._exit(9)
            if word == "waits":
                (folder.parent / "waiting").touch()
                while not (folder.parent / "go").exists():
                    time.sleep(0.01)  # the test is another process

    def predict(self, inputs, call):
        if (inputs["x"] < 0).any():
            time.sleep(600)  # the loop is held
        rows = len(inputs["x"])
        return {"value": np.full(rows, int(self.value)), "pid": np.full(rows, os.getpid())}
