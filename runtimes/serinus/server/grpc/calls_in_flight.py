"""How many calls a server has not answered yet, whether it takes more, and how many streams may be open that only wait.

Health.Watch and reflection need no model, and end when their client likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

from ...errors import InvalidInput, Overloaded

__all__ = ["IDLE_STREAMS", "SETTLED_S", "CallsInFlight", "IdleStreams", "check_small", "given_up"]

IDLE_STREAMS: Final = 1024
"""One for each client that balances by health; a stream is a task of grpc.aio and some 20 KB."""
_MESSAGE_BYTES: Final = 4096
"""Of a message that holds one name: an Envoy resource name or a symbol's has a few hundred."""
SETTLED_S: Final = 10.0
"""How long a stream has its place at the least."""


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
    """The places of one server.

    Where all are taken, the eldest stream of the client that holds the most gives its place to a newcomer, so that nobody can keep the others out: its
    client is told, and may come back. One is left alone for `SETTLED_S`, as long as who is refused is told to wait.
    """

    def __init__(self, most: int = IDLE_STREAMS, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._places: dict[str, dict[asyncio.Future[None], float]] = {}
        """Of each client, in the order in which they were taken, and when."""
        self.open = 0

    @contextlib.contextmanager
    def place(self, client: str) -> Iterator[asyncio.Future[None]]:
        """Hold one of the places.

        Args:
            client: whose stream it is, as far as the transport tells (`ServicerContext.peer`).

        Yields:
            Done, when the place is somebody else's now; the stream is to end with `given_up`.

        Raises:
            Overloaded: all are taken, and the eldest of whoever has the most has only just come.
        """
        now = self._clock()
        if self.open >= self._most and not self._give_up(now):
            raise Overloaded(
                f"{self.open} streams of Health.Watch and reflection are open, which is the most; use Health.Check, or come back later",
                SETTLED_S,
            )
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._places.setdefault(client, {})[place] = now
        self.open += 1
        try:
            yield place
        finally:
            self._leave(client, place)

    def _give_up(self, now: float) -> bool:
        client = max(self._places, key=lambda client: len(self._places[client]))
        eldest, since = next(iter(self._places[client].items()))
        if now - since < SETTLED_S:
            return False
        self._leave(client, eldest)
        eldest.set_result(None)
        return True

    def _leave(self, client: str, place: asyncio.Future[None]) -> None:
        places = self._places.get(client, {})
        if places.pop(place, None) is not None:
            self.open -= 1
            if not places:
                del self._places[client]


def given_up() -> Overloaded:
    """Tell why a stream ends that has lost its place."""
    return Overloaded(
        "all streams of Health.Watch and reflection are taken, and this one had its place for longest; open it again, or use Health.Check",
        SETTLED_S,
    )
