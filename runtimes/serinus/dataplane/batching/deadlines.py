"""Deadlines of many requests behind one timer.

Theory of operation. A timer per request would cost more than the request: nearly all are answered long before their
deadline. So requests lie in a heap by deadline, one loop timer is set for the earliest, and a request that is done is
thrown away when it comes up. Those that are done must not pile up behind a distant deadline, so once they could be most of
the heap (it is four times as long as the number of requests in flight) it is rebuilt from the living; that is O(1) a
request on average.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from .pending_request import DONE, PendingRequest

__all__ = ["Deadlines"]

_LONGEST_S: Final = 86_400.0
"""A timer that comes too early is set again; one of 10^300 s does not fit the loop's clock."""
_SLACK: Final = 256
"""Heap entries that are not worth a sweep."""


class Deadlines:
    """Calls `expire(pending)` at each request's deadline, unless it is done by then. Belongs to one loop; without `expire` its queue is told."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        expire: Callable[[PendingRequest], None] | None = None,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._expire = expire if expire is not None else _expire_in_its_queue
        self._heap: list[tuple[float, int, PendingRequest]] = []
        self._number = 0
        """Breaks ties, so that requests are never compared."""
        self._sweep_at = _SLACK
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def add(self, pending: PendingRequest, deadline: float) -> None:
        """Watch a request."""
        self._number += 1
        heap = self._heap
        heappush(heap, (deadline, self._number, pending))
        if len(heap) > self._sweep_at:
            self._sweep()
        if self._timer is None or deadline < self._timer_at:
            self._arm(deadline)

    def close(self) -> None:
        """Stop the timer and forget every request."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._heap.clear()

    def __len__(self) -> int:
        return len(self._heap)

    def _sweep(self) -> None:
        living = [entry for entry in self._heap if entry[2].state != DONE]
        heapify(living)
        self._heap = living
        self._sweep_at = _SLACK + 4 * len(living)

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(min(max(0.0, deadline - self._clock()), _LONGEST_S), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._clock()
        while self._heap:  # looked up each time: what `expire` calls may add, and adding may sweep
            deadline, _, pending = self._heap[0]
            if pending.state == DONE:
                heappop(self._heap)
            elif deadline <= now:
                heappop(self._heap)
                self._expire(pending)
            else:
                self._arm(deadline)
                return


def _expire_in_its_queue(pending: PendingRequest) -> None:
    if pending.queue is not None:
        pending.queue.expire(pending)
