"""Pieces that are made on one event loop and read on another, in another thread.

Theory of operation. Waking a thread costs tens of microseconds, a piece far less. So the maker puts its pieces into a
deque, and wakes the reader only where that may be asleep; the reader takes all that is there. Where `pipe.ROOM` pieces lie unread the
maker waits, and is woken when half of them have been taken. Both flags are only ever looked at after the deque, and set before it
is looked at again, so with the GIL no wake-up is lost: whoever is about to sleep sees the last change, or the other sees that it
sleeps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Generic, TypeVar

from ..dataplane.response_stream import ROOM, closing

__all__ = ["bring", "iterate_on"]

_T = TypeVar("_T")


class CrossLoopQueue(Generic[_T]):
    """Where the pieces of one maker lie."""

    def __init__(self, here: asyncio.AbstractEventLoop, there: asyncio.AbstractEventLoop) -> None:
        self._here = here
        self._there = there
        self._pieces: deque[_T] = deque()
        self._over = False
        self._reader_sleeps = self._maker_sleeps = False
        self._for_reader = asyncio.Event()
        self._for_maker = asyncio.Event()

    async def put(self, piece: _T) -> None:
        """Add a piece; the maker's loop."""
        self._pieces.append(piece)
        self._wake_reader()
        if len(self._pieces) < ROOM:
            return
        self._for_maker.clear()
        self._maker_sleeps = True
        if len(self._pieces) >= ROOM:
            await self._for_maker.wait()
        self._maker_sleeps = False

    def end(self) -> None:
        """Say that no more will come; the maker's loop."""
        self._over = True
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader_sleeps:
            self._reader_sleeps = False
            self._here.call_soon_threadsafe(self._for_reader.set)

    async def take(self) -> AsyncIterator[_T]:
        """Take the pieces; the reader's loop."""
        pieces = self._pieces
        while True:
            while pieces:
                piece = pieces.popleft()
                if self._maker_sleeps and len(pieces) <= ROOM // 2:
                    self._maker_sleeps = False
                    self._there.call_soon_threadsafe(self._for_maker.set)
                yield piece
            if self._over:
                return
            self._for_reader.clear()
            self._reader_sleeps = True
            if not pieces and not self._over:
                await self._for_reader.wait()
            self._reader_sleeps = False


async def iterate_on(there: asyncio.AbstractEventLoop, pieces: AsyncIterator[_T]) -> AsyncGenerator[_T, None]:
    """Iterate on another loop, which runs in another thread, and give on this one what comes out.

    Args:
        there: the maker's loop.
        pieces: not begun yet; closed there.

    Raises:
        Exception: what the iterator raises.
    """
    queue: CrossLoopQueue[_T] = CrossLoopQueue(asyncio.get_running_loop(), there)

    async def make() -> None:
        try:
            async with closing(pieces):
                async for piece in pieces:
                    await queue.put(piece)
        finally:
            queue.end()

    maker = asyncio.run_coroutine_threadsafe(make(), there)
    try:
        async for piece in queue.take():
            yield piece
        await asyncio.wrap_future(maker)
    finally:
        maker.cancel()


async def bring(here: asyncio.AbstractEventLoop, given: AsyncIterator[_T]) -> AsyncIterator[_T]:
    """Give on another loop what is iterated on this one, one at a time.

    Args:
        here: where `given` belongs.
        given: asked for its next item when that is wanted.
    """

    async def following() -> tuple[_T, ...]:
        try:
            return (await anext(given),)
        except StopAsyncIteration:  # which no future can carry
            return ()

    while item := await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(following(), here)):
        yield item[0]
