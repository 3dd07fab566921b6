"""How much of a turn of the event loop one model's coroutines may take before sockets have their turn again.

Theory of operation. A coroutine that computes holds the loop, and asyncio runs all that are ready before it looks at a socket: ten requests of 20 ms,
begun together, are 200 ms in which nothing is read, refused, or told that its client has gone. So what the coroutines of a model take is added
up, step by step (from one `await` that waits to the next). Once that is `TURN_S` in one turn, further steps stand in line, and the loop goes
around `TURNS` times before as many go on as fit, and so on: a connection needs several turns from the kernel's queue to the first bytes that are
read of it, and a gRPC call from its client's connection to the answer that refuses it. So between two long steps the loop reads all that has
come: who has gone leaves the line, and who comes is refused or queued at once.
A model whose steps are short never fills a turn. Where one request is alone nothing is measured at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, Generic, TypeVar

from .executor import INLINE_BATCH_S

__all__ = ["TURNS", "TURN_S", "LoopShare"]

_T = TypeVar("_T")

TURN_S: Final = INLINE_BATCH_S
"""What a batch may take of the loop, too."""


TURNS: Final = 8
"""Of the loop between two shares. One in which nothing comes takes some 10 us, so all of them are 2 % of a step of 5 ms."""


class LoopShare:
    """The share of one model.

    Args:
        loop: whose turns they are.
        clock: seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self.clock = clock
        self.spent_s = 0.0
        """Since the last turn began, and what those will take that it let go on."""
        self._step_s = 0.0
        """Mean time of a step."""
        self._line: deque[asyncio.Future[None]] = deque()
        self._is_counting = False
        self._turns = 0
        """Of the loop, since the last share was used up."""

    def steps(self, work: Awaitable[_T], on_wait: Callable[[float], object] = lambda waited_s: None) -> Awaitable[_T]:  # noqa: ARG005 # nobody asks
        """Give what awaits `work` within the share; `on_wait` is told the seconds of each wait in line."""
        return _Steps(work, self, on_wait)

    def count(self, took_s: float) -> None:
        """Add a step to this turn's."""
        self.spent_s += took_s
        self._step_s += (took_s - self._step_s) * (0.1 if self._step_s else 1.0)
        if not self._is_counting:
            self._is_counting = True
            self._loop.call_soon(self._turn)

    def place(self) -> asyncio.Future[None] | None:
        """Give what a step waits for; None: it may go on at once."""
        if self.spent_s < TURN_S and not self._line:
            return None
        place: asyncio.Future[None] = self._loop.create_future()
        self._line.append(place)
        return place

    def _turn(self) -> None:
        """Begin the next share, when the loop has gone around: those of the line that fit into it go on, one at the least."""
        if self.spent_s >= TURN_S and self._turns < TURNS - 1:
            self._turns += 1
            self._loop.call_soon(self._turn)
            return
        self._turns = 0
        taken_s = 0.0
        while self._line and taken_s < TURN_S:
            place = self._line.popleft()
            if not place.done():  # else its client has gone
                place.set_result(None)
                taken_s += self._step_s
        self.spent_s = taken_s
        self._is_counting = taken_s > 0
        if self._is_counting:
            self._loop.call_soon(self._turn)


class _Steps(Generic[_T]):
    """Awaits `work`; each of its steps is measured, and waits for a place."""

    __slots__ = ("_on_wait", "_share", "_work")

    def __init__(self, work: Awaitable[_T], share: LoopShare, on_wait: Callable[[float], object]) -> None:
        self._work = work
        self._share = share
        self._on_wait = on_wait

    def __await__(self) -> Generator[Any, Any, _T]:
        share, steps = self._share, self._work.__await__()
        clock = share.clock
        thrown: BaseException | None = None
        while True:
            if thrown is None and (place := share.place()) is not None:
                came = clock()
                try:
                    yield from place
                except BaseException as error:  # noqa: BLE001 # a cancellation, which is for the one who works
                    thrown = error
                self._on_wait(clock() - came)
            start = clock()
            try:
                waits = steps.send(None) if thrown is None else steps.throw(thrown)
            except StopIteration as end:
                return end.value
            finally:
                share.count(clock() - start)
            thrown = None
            try:
                yield waits
            except BaseException as error:  # noqa: BLE001 # as above
                thrown = error
