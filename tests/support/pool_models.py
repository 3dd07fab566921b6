"""A model that tells how many threads the libraries of this process have."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from serinus import Model, TensorSpec


class Pools(Model):
    """Answers with the threads of NumPy's OpenBLAS, as OpenBLAS itself says."""

    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("openblas", "INT64", (-1,)),)

    def load(self):
        """Find OpenBLAS among the libraries that the wheel of NumPy has beside it: it is loaded already."""
        (library,) = (Path(np.__file__).parents[1] / "numpy.libs").glob("libscipy_openblas64_*.so")
        self._openblas = ctypes.CDLL(str(library))

    def predict(self, inputs, call):
        threads = self._openblas.scipy_openblas_get_num_threads64_()
        return {"openblas": np.full(len(inputs["x"]), threads, np.int64)}
