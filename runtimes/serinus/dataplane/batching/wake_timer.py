"""A timer that is asked for many moments and keeps the earliest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["WakeTimer"]


class WakeTimer:
    """Calls somebody once, at the earliest moment that was asked for since the last call.

    Args:
        loop: whose timer it is.
        clock: seconds, as the moments are.
        wake: called on the loop's thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        self._loop, self._clock, self._wake = loop, clock, wake
        self._handle: asyncio.TimerHandle | None = None
        self._at = 0.0

    def wake_at(self, due: float) -> None:
        """Call at `due` at the latest; a moment that has passed is the next turn of the loop."""
        if self._handle is not None:
            if self._at <= due:
                return
            self._handle.cancel()
        self._at = due
        self._handle = self._loop.call_later(max(0.0, due - self._clock()), self._fire)

    def _fire(self) -> None:
        self._handle = None
        self._wake()
