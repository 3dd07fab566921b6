"""`ResponseStream`: what a model answers piece by piece, on its way from the model to one client.

Theory of operation. The model's task puts pieces in and the transport's takes them out, both on the event loop's thread. At
most `ROOM` pieces lie in between: a client that reads slowly holds the model back, not the memory. The pieces that are
there are read before an error that came after them. Whoever reads must read to the end or call `aclose`, which
cancels the request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar

from ..errors import Cancelled, SerinusError
from ..model import Cancellable

__all__ = ["ROOM", "ResponseStream", "closing"]

_T = TypeVar("_T")

ROOM: Final = 16
"""Pieces that may wait for their reader: a burst's worth, so that the two ends need not take turns."""


@asynccontextmanager
async def closing(pieces: AsyncIterator[Any]) -> AsyncIterator[None]:
    """Close an iterator at the end, if it can be closed: what it holds goes at once, not when it is collected."""
    try:
        yield
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


class ResponseStream(AsyncIterator[_T], Generic[_T]):
    """Pieces of one answer, in order; iterating raises the `SerinusError` with which the model ended."""

    def __init__(self) -> None:
        self.source: Cancellable | None = None
        """Set by the plane: cancelled when the reader leaves."""
        self._pieces: deque[_T] = deque()
        self._over = False
        self._error: SerinusError | None = None
        self._changed = asyncio.Event()

    # The model's end

    async def put(self, piece: _T) -> None:
        """Add a piece; waits while there is no room.

        Raises:
            Cancelled: the reader has left.
        """
        while len(self._pieces) >= ROOM and not self._over:
            self._changed.clear()
            await self._changed.wait()
        if self._over:
            raise Cancelled("the client went away")
        self._pieces.append(piece)
        self._changed.set()

    async def fill(self, pieces: AsyncIterator[_T]) -> None:
        """Add all pieces of an iterator, and close it, whatever happens."""
        async with closing(pieces):
            async for piece in pieces:
                await self.put(piece)

    def end(self, error: SerinusError | None = None) -> None:
        """Say that no more will come, or what went wrong."""
        if not self._over:
            self._over, self._error = True, error
            self._changed.set()

    def end_with_request(self, answer: Any) -> None:
        """End as the request did that the pieces came of; for the plane to call with its outcome."""
        self.end(answer if isinstance(answer, SerinusError) else None)

    def end_with_only(self, answer: Any) -> None:
        """End with one piece, of a model that gives just one; for the plane to call with a request's outcome."""
        if not isinstance(answer, SerinusError):
            self._pieces.append(answer)
        self.end_with_request(answer)

    # The reader's end

    def __aiter__(self) -> ResponseStream[_T]:
        """Read it."""
        return self

    async def __anext__(self) -> _T:
        """Take the next piece."""
        while not self._pieces:
            if self._over:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        self._changed.set()  # there is room
        return self._pieces.popleft()

    def cancel(self) -> None:
        """Leave: the request is cancelled unless it has ended."""
        self._over, self._error = True, None
        self._pieces.clear()
        self._changed.set()
        source, self.source = self.source, None
        if source is not None:
            source.cancel()

    async def aclose(self) -> None:
        """Leave; as an asynchronous generator's."""
        self.cancel()
