"""For callers that await: one request begun by callback, as a coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ..errors import SerinusError
from ..model import Cancellable

__all__ = ["wait_for_answer"]


async def wait_for_answer(begin: Callable[[Callable[[Any], None]], Cancellable]) -> Any:
    """Begin a request and wait for its outcome; cancelling the task that awaits cancels the request.

    Args:
        begin: given what is to be told the outcome, once; returns what cancels the request.

    Raises:
        SerinusError: the outcome, or what `begin` raises.
    """
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def on_complete(outcome: Any) -> None:
        if future.done():
            return
        if isinstance(outcome, SerinusError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    pending = begin(on_complete)
    try:
        return await future
    except asyncio.CancelledError:
        pending.cancel()
        raise
