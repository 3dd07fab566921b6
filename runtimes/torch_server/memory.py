"""The memory of a model's CUDA device as metrics; what they mean is in `serinus.dataplane.telemetry.cuda_memory`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from serinus.dataplane.telemetry import cuda_memory
from serinus.dataplane.telemetry.cuda_memory import families, largest_free_bytes

__all__ = ["CudaMemory", "families", "largest_free_bytes"]


class CudaMemory(cuda_memory.CudaMemory):
    """The memory of one device in this process; see the base for the arguments."""

    def __init__(self, index: int, worker: str = "0", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(torch, index, worker, clock)
