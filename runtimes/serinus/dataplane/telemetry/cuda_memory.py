"""What PyTorch's CUDA allocator knows of a device's memory, as metrics: above all how much is fragmented.

From outside (NVML, DCGM) the allocator's cache looks used. Inside it is (torch/cuda/memory.py, `memory_stats`):

  allocated        in tensors now.
  reserved         taken from the driver. Reserved minus allocated is cache, which later tensors take: no harm by itself.
  inactive_split   parts of blocks that are free while another part of the same block is in use: no `empty_cache` gives them back.
                   Their share of reserved is the fragmentation.
  requested        asked for by the program. Allocated minus requested is lost to rounding.
  largest_free     the largest free block: a tensor larger than it needs new memory from the driver.

An allocation that fails and succeeds after the cache was emptied is a retry, the earliest sign that memory runs short; one that
fails altogether is an out-of-memory error. The backend cudaMallocAsync reports several of these as 0.

The library imports no PyTorch: it looks whether a model has.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ...model import Family

__all__ = ["CudaMemory", "LoadedFramework", "families", "largest_free_bytes"]

_GAUGES: Final = {
    "allocated": ("allocated_bytes.all.current", "Bytes in tensors."),
    "reserved": ("reserved_bytes.all.current", "Bytes that the allocator holds of the driver."),
    "active": ("active_bytes.all.current", "Bytes in blocks that are in use or about to be freed."),
    "inactive_split": (
        "inactive_split_bytes.all.current",
        "Bytes free in blocks that are partly in use: fragmentation.",
    ),
    "requested": ("requested_bytes.all.current", "Bytes that the program asked for, before rounding."),
    "peak": ("allocated_bytes.all.peak", "Most bytes in tensors since the start."),
}
_COUNTERS: Final = {
    "alloc_retries": ("num_alloc_retries", "Allocations that succeeded only after the cache was emptied."),
    "ooms": ("num_ooms", "Allocations that failed: out of memory."),
}
_SNAPSHOT_S: Final = 15.0
"""How long a walk over all blocks is good for: with thousands of blocks it takes milliseconds."""


@dataclass(slots=True)
class CudaMemory:
    """The memory of one device in this process.

    Args:
        torch: the module.
        index: of the device.
        worker: number of this process among the server's, "0" where it is alone.
        clock: seconds, monotonic.
    """

    torch: Any
    index: int
    worker: str = "0"
    clock: Callable[[], float] = time.monotonic
    _seen: tuple[float, int] | None = None

    def metrics(self) -> Sequence[Family]:
        """Read the allocator; nothing before CUDA is in use."""
        stats = self.torch.cuda.memory_stats(self.index)
        if not stats:
            return ()
        now = self.clock()
        if self._seen is None or now - self._seen[0] >= _SNAPSHOT_S:
            snapshot = self.torch.cuda.memory_snapshot()
            self._seen = (now, largest_free_bytes(snapshot, self.index))
        return families(stats, self.torch.cuda.mem_get_info(self.index), self._seen[1], self.index, self.worker)


class LoadedFramework:
    """Tells of all devices that this process uses, where some model of it has loaded PyTorch and none tells by itself.

    Args:
        worker: see `CudaMemory`.
        modules: those that are loaded; tests give others.
    """

    def __init__(self, worker: str, modules: Mapping[str, Any] | None = None) -> None:
        self._worker = worker
        self._modules = sys.modules if modules is None else modules
        self._devices: list[CudaMemory] = []

    def metrics(self) -> Sequence[Family]:
        """Read the allocator of each device; nothing before CUDA is in use."""
        torch = self._modules.get("torch")
        if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
            return ()
        if not self._devices:
            self._devices = [CudaMemory(torch, index, self._worker) for index in range(torch.cuda.device_count())]
        return [family for device in self._devices for family in device.metrics()]


def largest_free_bytes(segments: Sequence[Mapping[str, Any]], device: int) -> int:
    """Find the largest free block of a device in what `torch.cuda.memory_snapshot` returns; 0 where none is free."""
    return max(
        (
            block["size"]
            for segment in segments
            if segment["device"] == device
            for block in segment["blocks"]
            if block["state"] == "inactive"
        ),
        default=0,
    )


def families(
    stats: Mapping[str, int], device_bytes: tuple[int, int], largest_free: int, device: int, worker: str
) -> list[Family]:
    """Write the metrics of one device.

    Args:
        stats: of `torch.cuda.memory_stats`.
        device_bytes: free and total, of the driver: all processes on the device.
        largest_free: see `largest_free_bytes`.
        device: its index.
        worker: which process; its samples are not added to those of another.
    """
    labels = {"device": str(device), "worker": worker}

    def family(name: str, text: str, kind: Literal["counter", "gauge"], value: float) -> Family:
        return Family(f"serinus_cuda_memory_{name}", text, kind, [(labels, float(value))])

    found = [
        family(f"{name}_bytes", text, "gauge", stats[key]) for name, (key, text) in _GAUGES.items() if key in stats
    ]
    found.append(family("largest_free_bytes", "Largest free block of the allocator.", "gauge", largest_free))
    found.append(family("device_free_bytes", "Bytes free on the device, as the driver says.", "gauge", device_bytes[0]))
    found.append(family("device_total_bytes", "Bytes of the device.", "gauge", device_bytes[1]))
    found += [
        family(f"{name}_total", text, "counter", stats[key]) for name, (key, text) in _COUNTERS.items() if key in stats
    ]
    return found
