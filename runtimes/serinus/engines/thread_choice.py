"""How many native threads a predict of so many rows gets: measured once, when the model is loaded.

Theory of operation. A framework that is allowed N threads wakes all of them for one row, too, and waits for the slowest: on CPUs that others
use as well, that costs more than the row. For many rows the threads are worth it. Where the turn comes depends on the model and the
machine, so batches of growing sizes are timed with one thread and with all that the container's CPU limit allows, until all are clearly
faster or the time for measuring is over. Who names a number (`--nthread`) gets it for every batch, and nothing is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["ThreadChoice", "measure"]

BUDGET_S: Final = 0.5
"""Time for the whole measurement of one model, as for its warm-up (`dataplane.execution.warmup`); one call more at most."""
_SIZES: Final = (1, 8, 64, 512, 4096)
_CALLS: Final = 7
_GAIN: Final = 0.8
"""Share of one thread's time that all threads must stay below to be worth it: their CPU seconds are others' too."""


@dataclass(frozen=True, slots=True)
class ThreadChoice:
    """One thread for small batches, `most` from `from_rows` on."""

    most: int
    from_rows: int = 1
    """Rows of the smallest batch that gets all threads; 0: none does."""
    is_measured: bool = False

    def of(self, rows: int) -> int:
        """Threads for a batch."""
        return self.most if self.from_rows and rows >= self.from_rows else 1

    def __str__(self) -> str:
        how = " (measured at load)" if self.is_measured else ""
        if self.most == 1 or self.from_rows == 1:
            return f"{self.most}{how}"
        return f"1, and {self.most} from {self.from_rows} rows{how}" if self.from_rows else f"1{how}"


def measure(
    predict: Callable[[int, int], object],
    most: int,
    *,
    most_rows: int = _SIZES[-1],
    clock: Callable[[], float] = time.perf_counter,
) -> ThreadChoice:
    """Find from which batch on all threads are worth it.

    Args:
        predict: given rows and threads, predicts a batch of them.
        most: threads that there are to give.
        most_rows: largest batch to try; 1 where rows cannot be joined.
        clock: seconds.

    Raises:
        Exception: what `predict` raises.
    """
    if most == 1:
        return ThreadChoice(1)
    until = clock() + BUDGET_S
    sizes = [size for size in _SIZES if size <= most_rows]
    for size in sizes:
        one, many = _time(predict, size, most, clock, until)
        if all(average(many) < _GAIN * average(one) for average in (statistics.fmean, statistics.median)):
            return ThreadChoice(most, size, is_measured=True)
        if clock() > until:
            # What was too large to be tried has more work for each thread.
            return ThreadChoice(most, 8 * size if size < sizes[-1] else 0, is_measured=True)
    return ThreadChoice(most, 8 * sizes[-1] if sizes[-1] > 1 else 0, is_measured=True)


def _time(
    predict: Callable[[int, int], object], rows: int, most: int, clock: Callable[[], float], until: float
) -> tuple[list[float], list[float]]:
    """Seconds of a few calls with one thread and with all, in turns, so that a busy moment of the machine is both's.

    The mean shows threads that now and then wait for a CPU that others use; the median leaves out one call that met with something. The first
    call of each, which allocates, counts only where there is no time for more.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for call in range(_CALLS + 1):
        for threads, taken in zip((1, most), times, strict=True):
            start = clock()
            predict(rows, threads)
            end = clock()
            if call or end > until:
                taken.append(end - start)
        if clock() > until:
            break
    one, many = times
    return one or [0.0], many or [0.0]
