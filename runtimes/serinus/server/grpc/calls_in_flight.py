"""How many calls a server has not answered yet, whether it takes more, and how many streams may be open that only wait.

Health.Watch and reflection need no model, and end when their client likes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

from ...errors import InvalidInput, Overloaded

__all__ = ["IDLE_STREAMS", "CallsInFlight", "IdleStreams", "check_small"]

IDLE_STREAMS: Final = 1024
"""One for each client that balances by health; a stream is a task of grpc.aio and some 20 KB."""
_MESSAGE_BYTES: Final = 4096
"""Of a message that holds one name: an Envoy resource name or a symbol's has a few hundred."""
_RETRY_S: Final = 10.0


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


def check_small(message: bytes, kind: str) -> None:
    """Refuse a message that is larger than any of its kind, before it is decoded.

    Raises:
        InvalidInput: it is.
    """
    if len(message) > _MESSAGE_BYTES:
        raise InvalidInput(
            f"the {kind} has {len(message)} bytes; one holds a name, and at most {_MESSAGE_BYTES} are taken"
        )


class IdleStreams:
    """The places of one server."""

    def __init__(self, most: int = IDLE_STREAMS) -> None:
        self._most = most
        self.open = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places.

        Raises:
            Overloaded: all are taken.
        """
        if self.open >= self._most:
            raise Overloaded(
                f"{self.open} streams of Health.Watch and reflection are open, which is the most; use Health.Check, or come back later",
                _RETRY_S,
            )
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
