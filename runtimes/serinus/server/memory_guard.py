"""Memory that grows: told as metrics, and, past a limit, ended by a clean start instead of the kernel's OOM killer.

Theory of operation. The memory of this process and its children is read every two seconds. Past the limit on three looks in a row (one large batch
is no leak) the free pages of the allocator are given back first (malloc_trim(3)); where that does not help, readiness goes off, the requests in
flight are answered, and the process ends with `ExitStatus.MEMORY` for Kubernetes to start it again; the reason is in the log, in the metric
`serinus_memory_restart_pending`, and in the container's termination message. Of several workers each has an even share of the limit, and their
supervisor ends one at a time, when all others listen.

A server that is past its limit when it has just loaded its models would be no better after another start: it says so, and the guard is off.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from ..model import Family
from .memory_readings import MemoryReading

__all__ = ["MemoryGuard", "default_limit"]

_log = logging.getLogger("serinus.memory")

_INTERVAL_S: Final = 2.0
_LOOKS: Final = 3
_SAMPLE_S: Final = 60.0
_SAMPLES: Final = 61
"""An hour of them, and its beginning."""
_SHARE: Final = 0.9
"""Of the container's limit: what is left is for the requests that are answered during the drain, and for what is no process's (page tables, sockets)."""


def default_limit(container_bytes: int | None) -> int:
    """Give the limit where none is set: nine tenths of the container's; 0, which is none, where that has none."""
    return 0 if container_bytes is None else int(container_bytes * _SHARE)


class MemoryGuard:
    """Watches memory for one process.

    Args:
        limit_bytes: of resident memory, children included; 0: none.
        gpu_limit_bytes: of what PyTorch has reserved on GPUs; 0: none.
        read: reads memory.
        clock: seconds, monotonic.
        on_passed: told once, with the reason, when the process should end.
        trim: gives free pages back to the system.
    """

    def __init__(
        self,
        limit_bytes: int,
        *,
        gpu_limit_bytes: int = 0,
        read: Callable[[], MemoryReading],
        clock: Callable[[], float],
        on_passed: Callable[[str], None],
        trim: Callable[[], None] | None = None,
    ) -> None:
        self._limit = limit_bytes
        self._gpu_limit = gpu_limit_bytes
        self._read = read
        self._clock = clock
        self._on_passed = on_passed
        self._trim = trim if trim is not None else _trim
        self._over = 0
        self._first = True
        self._last = MemoryReading(0)
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self.reason = ""
        """Why the process is to end; empty: it is not."""

    async def run(self) -> None:
        """Look every two seconds, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_INTERVAL_S)

    def look(self) -> None:
        """Read memory once, and judge it."""
        now, reading = self._clock(), self._read()
        self._last = reading
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now, reading.own + reading.children))
        passed = self._passed(reading)
        if self._first:
            self._first = False
            if passed:
                _log.error("%s with its models just loaded: another start would not help, and the limit is off", passed)
                self._limit = self._gpu_limit = 0
            return
        self._over = self._over + 1 if passed else 0
        if self.reason or self._over < _LOOKS:
            return
        self._trim()
        self._last = self._read()
        passed = self._passed(self._last)
        if not passed:
            self._over = 0
            return
        self.reason = f"{passed}: the server ends for a clean start"
        _log.error("%s", self.reason)
        self._on_passed(self.reason)

    def growth(self) -> float:
        """Bytes that memory grows by in an hour, over the last hour at the most; 0 before five minutes have passed."""
        if len(self._samples) < 6:
            return 0.0
        (begin, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) * 3600 / (end - begin)

    def families(self) -> Iterable[Family]:
        """Give what is known, for /metrics."""
        last = self._last
        gauges = {
            "serinus_memory_children_bytes": ("Resident memory of the processes of models.", last.children),
            "serinus_memory_limit_bytes": (
                "What the server's memory may be until it starts again; 0: no limit.",
                self._limit,
            ),
            "serinus_memory_growth_bytes_per_hour": ("Growth of memory, processes of models included.", self.growth()),
            "serinus_memory_restart_pending": (
                "1 while the server ends because its memory has passed the limit.",
                bool(self.reason),
            ),
        }
        for name, (text, value) in gauges.items():
            yield Family(name, text, "gauge", [({}, float(value))])

    def _passed(self, reading: MemoryReading) -> str:
        total = reading.own + reading.children
        if self._limit and total > self._limit:
            return f"memory is {total >> 20} MiB, past the limit of {self._limit >> 20} MiB (memory_limit_bytes)"
        if self._gpu_limit and reading.gpu > self._gpu_limit:
            return f"GPU memory is {reading.gpu >> 20} MiB, past the limit of {self._gpu_limit >> 20} MiB (gpu_memory_limit_bytes)"
        return ""


def _trim() -> None:
    """Give free pages of glibc's allocator back; other allocators have no such call."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        return
