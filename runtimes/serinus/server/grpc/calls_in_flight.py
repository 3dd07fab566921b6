"""How many calls a server has not answered yet, and whether it takes more."""

from __future__ import annotations

import asyncio
import contextlib

__all__ = ["CallsInFlight"]


class CallsInFlight:
    """Counts calls, for a server that is to end when none is left."""

    def __init__(self) -> None:
        self.draining = False
        """The server takes no more calls: new ones are refused with UNAVAILABLE."""
        self.pending = 0
        """Requests that have come and are not answered. The engines count them by `began` and `ended`."""
        self.idle = asyncio.Event()
        """Set when the server is draining and nothing is pending."""

    def began(self) -> None:
        """Count a request that has come."""
        self.pending += 1

    def ended(self) -> None:
        """Count a request that has been answered, or given up by its client."""
        self.pending -= 1
        if self.draining and not self.pending:
            self.idle.set()

    def drain(self) -> None:
        """Refuse new calls from now on."""
        self.draining = True
        if not self.pending:
            self.idle.set()

    async def wait_idle(self, timeout_s: float) -> None:
        """Wait, once draining, until nothing is pending or the time is over."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.idle.wait(), timeout_s)
