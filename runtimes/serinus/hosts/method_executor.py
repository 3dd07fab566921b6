"""Where one synchronous method of a hosted class runs: on the event loop, or in the host's thread.

KServe calls synchronous `preprocess`, `predict` and `postprocess` on its event loop: a predict of 3 s makes the
liveness probe wait 3 s (facts: KServe issue 5019). Handing every call to a thread costs ~60 us, several times what a
small method takes. So each method is measured. It begins in the thread, where it can block nobody; after
`PROBE_CALLS` calls of which the fastest took no more than `INLINE_S` it runs inline; one call over `ABRUPT_S`, or
`STRIKES` in a row over `BLOCKING_S`, sends it back. Between the two bounds it stays where it is, and each return to
the thread doubles the number of good calls that it takes to leave it again.

A host has one thread: KServe never runs two synchronous methods of a model at a time, so its classes need not stand it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final, Literal

__all__ = ["MethodExecutor"]

INLINE_S: Final = 200e-6
"""The data plane's own bound for running a model on the event loop."""
BLOCKING_S: Final = 2e-3
ABRUPT_S: Final = 20e-3
PROBE_CALLS: Final = 4
STRIKES: Final = 3


class MethodExecutor:
    """One method, and where it runs now."""

    def __init__(
        self,
        function: Callable[..., Any],
        executor: Executor,
        *,
        execution: Literal["auto", "inline", "thread", "process"] = "auto",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.inline = execution == "inline"
        self._fixed = execution != "auto"
        self._executor = executor
        self._clock = clock
        self._good = 0
        self._strikes = 0
        self._needed = PROBE_CALLS

    async def __call__(self, *args: Any) -> Any:
        """Call the method, wherever it runs, and await what it returns where that is awaitable."""
        if self.is_async:
            return await self.function(*args)
        if self.inline:
            result = self.call_inline(*args)
        else:
            call = functools.partial(contextvars.copy_context().run, self._timed, args)
            result, elapsed_s = await asyncio.get_running_loop().run_in_executor(self._executor, call)
            if not self._fixed:
                self._observe_thread(elapsed_s)
        if inspect.isawaitable(result):
            return await result
        return result

    def call_inline(self, *args: Any) -> Any:
        """Call a synchronous method here and now."""
        if self._fixed:
            return self.function(*args)
        start = self._clock()
        try:
            return self.function(*args)
        finally:
            elapsed_s = self._clock() - start
            if elapsed_s > BLOCKING_S:
                self._strike(elapsed_s)
            elif self._strikes:
                self._strikes = 0

    def _timed(self, args: tuple[Any, ...]) -> tuple[Any, float]:
        start = self._clock()
        result = self.function(*args)
        return result, self._clock() - start

    def _observe_thread(self, elapsed_s: float) -> None:
        if elapsed_s <= INLINE_S:
            self._good += 1
            if self._good >= self._needed:
                self.inline = True
                self._good = self._strikes = 0
        elif elapsed_s > BLOCKING_S:
            self._good = 0

    def _strike(self, elapsed_s: float) -> None:
        self._strikes += 1
        if elapsed_s > ABRUPT_S or self._strikes >= STRIKES:
            self.inline = False
            self._good = self._strikes = 0
            self._needed = min(self._needed * 2, 1024)
