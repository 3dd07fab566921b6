"""A clock and its callbacks without an event loop: what a batcher asks of one, for millions of steps a minute."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Handle:
    """What `call_later` gives."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        """Do not call."""
        self.cancelled = True


class SimulatedLoop:
    """Has `time`, `call_soon`, `call_later` and `call_at`, and runs them in the order of an event loop."""

    def __init__(self) -> None:
        self._now = 0.0
        self._soon: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._later: list[tuple[float, int, Handle, Callable[..., Any], tuple[Any, ...]]] = []
        self._number = itertools.count()

    def time(self) -> float:
        """Seconds since it was made."""
        return self._now

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call it before time goes on."""
        self._soon.append((callback, args))

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Handle:
        """Call it after `delay` seconds."""
        return self.call_at(self._now + delay, callback, *args)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any) -> Handle:
        """Call it at `when`."""
        handle = Handle()
        heappush(self._later, (when, next(self._number), handle, callback, args))
        return handle

    def run(self, until: float = float("inf")) -> None:
        """Go on until a time, which is then reached, or until nothing is left to call."""
        while True:
            while self._soon:
                callback, args = self._soon.popleft()
                callback(*args)
            if not self._later or self._later[0][0] > until:
                break
            when, _, handle, callback, args = heappop(self._later)
            if not handle.cancelled:
                self._now = max(self._now, when)
                callback(*args)
        if until != float("inf"):
            self._now = max(self._now, until)
