"""Bodies that take milliseconds to read: read in a thread, so that nobody else waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ..model import Cancellable

__all__ = ["LARGE_BODY_BYTES", "begin_aside", "read_aside"]

LARGE_BODY_BYTES: Final = 256 * 1024
"""JSON above it is read in a thread: it takes a millisecond or more, which is what a probe may wait."""

_Result = TypeVar("_Result")


async def read_aside(size: int, work: Callable[[], _Result]) -> _Result:
    """Read a body here if it is small, else in a thread."""
    return work() if size <= LARGE_BODY_BYTES else await asyncio.get_running_loop().run_in_executor(None, work)


def begin_aside(
    work: Callable[[], _Result], then: Callable[[_Result], Cancellable], failed: Callable[[BaseException], None]
) -> Cancellable:
    """Read a body in a thread, and go on with it on the loop's.

    Args:
        work: reads it.
        then: given the result; what it returns is what is cancelled from then on.
        failed: told what `work` or `then` raises.
    """
    return _Aside(work, then, failed)


class _Aside:
    """A body that is being read, and then what it began."""

    __slots__ = ("_current", "_failed", "_gone", "_then")

    def __init__(
        self, work: Callable[[], Any], then: Callable[[Any], Cancellable], failed: Callable[[BaseException], None]
    ) -> None:
        self._then = then
        self._failed = failed
        self._current: Cancellable | None = None
        self._gone = False
        asyncio.get_running_loop().run_in_executor(None, work).add_done_callback(self._read)

    def cancel(self) -> None:
        """The client has gone."""
        self._gone = True
        if self._current is not None:
            self._current.cancel()

    def _read(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()  # looked at, so that nobody is warned of an error that a client did not wait for
        if self._gone:
            return
        if error is not None:
            self._failed(error)
            return
        try:
            self._current = self._then(future.result())
        except Exception as raised:  # noqa: BLE001 # the edge of a request
            self._failed(raised)
