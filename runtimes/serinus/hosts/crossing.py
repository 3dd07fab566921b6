"""Pieces that are made on one event loop and read on another, in another thread.

Theory of operation. Waking a thread costs tens of microseconds, a piece far less. So the maker puts its pieces into a
deque, and wakes the reader only where that may be asleep; the reader takes all that is there. Where `_ROOM` pieces lie unread the
maker waits, and is woken when half of them have been taken. Both flags are only ever looked at after the deque, and set before it
is looked at again, so with the GIL no wake-up is lost: whoever is about to sleep sees the last change, or the other sees that it
sleeps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final, Generic, TypeVar

from ..dataplane.pipe import closing

__all__ = ["each", "nothing"]

_T = TypeVar("_T")
_I = TypeVar("_I")

_ROOM: Final = 16
"""Pieces that may lie unread; as many as in a `Pipe`."""


class _Crossing(Generic[_T]):
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
        if len(self._pieces) < _ROOM:
            return
        self._for_maker.clear()
        self._maker_sleeps = True
        if len(self._pieces) >= _ROOM:
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

    async def taken(self) -> AsyncIterator[_T]:
        """Take the pieces; the reader's loop."""
        pieces = self._pieces
        while True:
            while pieces:
                piece = pieces.popleft()
                if self._maker_sleeps and len(pieces) <= _ROOM // 2:
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


async def each(
    there: asyncio.AbstractEventLoop,
    answers: Callable[[AsyncIterator[_I]], AsyncIterator[_T]],
    given: AsyncIterator[_I],
) -> AsyncGenerator[_T, None]:
    """Iterate on another loop over what is given on this one, and give on this one what comes out.

    Args:
        there: runs in another thread.
        answers: called there; its iterator is closed there.
        given: iterated here.

    Raises:
        Exception: what `answers` or `given` raises.
    """
    here = asyncio.get_running_loop()
    crossing: _Crossing[_T] = _Crossing(here, there)

    async def following() -> tuple[_I, ...]:
        try:
            return (await anext(given),)
        except StopAsyncIteration:  # which no future can carry
            return ()

    async def given_there() -> AsyncIterator[_I]:
        while item := await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(following(), here)):
            yield item[0]

    async def make() -> None:
        try:
            pieces = answers(given_there())
            async with closing(pieces):
                async for piece in pieces:
                    await crossing.put(piece)
        finally:
            crossing.end()

    maker = asyncio.run_coroutine_threadsafe(make(), there)
    try:
        async for piece in crossing.taken():
            yield piece
        await asyncio.wrap_future(maker)
    finally:
        maker.cancel()


async def nothing() -> AsyncIterator[None]:
    """Give nothing, for `each`."""
    return
    yield
