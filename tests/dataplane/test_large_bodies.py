"""Where a body is read, and what becomes of one whose client leaves while it is read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from serinus.dataplane.large_bodies import LARGE_BODY_BYTES, begin_aside, read_aside
from waiting import turns, until

QUARTER_OF_A_MEBIBYTE = 262_144


class Begun:
    """What a body began: it notes how often it was cancelled."""

    def __init__(self) -> None:
        self.cancels = 0

    def cancel(self) -> None:
        self.cancels += 1


class Reading:
    """A body that is being read until it is let go on, and who was told what."""

    def __init__(
        self, result: Callable[[], object] = lambda: "read", then: Callable[[Any], Any] = lambda _: Begun()
    ) -> None:
        self.let = threading.Event()
        self.is_read = False
        self.told: list[object] = []
        self.begun: list[Any] = []
        self._result = result
        self._then = then
        self.handle = begin_aside(self._work, self._go_on, self.told.append)

    def _work(self) -> object:
        assert self.let.wait(30)
        try:
            return self._result()
        finally:
            self.is_read = True

    def _go_on(self, result: Any) -> Any:
        assert threading.current_thread() is threading.main_thread()
        self.told.append(result)
        self.begun.append(self._then(result))
        return self.begun[-1]

    async def end(self) -> None:
        """Let it go on, and the loop hear of it."""
        self.let.set()
        await until(lambda: self.is_read)
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        await turns()


def raising(error: BaseException) -> Callable[..., Any]:
    def raises(*_: object) -> Any:
        raise error

    return raises


@pytest.mark.parametrize(
    ("size", "is_here"),
    [(0, True), (QUARTER_OF_A_MEBIBYTE - 1, True), (QUARTER_OF_A_MEBIBYTE, True), (QUARTER_OF_A_MEBIBYTE + 1, False)],
)
async def test_up_to_a_quarter_of_a_mebibyte_a_body_is_read_here_and_beyond_in_a_thread(size: int, is_here: bool):
    assert LARGE_BODY_BYTES == QUARTER_OF_A_MEBIBYTE
    thread = await read_aside(size, threading.current_thread)
    assert (thread is threading.current_thread()) is is_here


@pytest.mark.parametrize("size", [1, QUARTER_OF_A_MEBIBYTE + 1])
async def test_what_reading_raises_is_raised_wherever_it_is_read(size: int):
    with pytest.raises(ValueError, match="no body"):
        await read_aside(size, raising(ValueError("no body")))


async def test_what_was_read_goes_on_on_the_loops_thread_once_and_a_later_cancel_is_for_what_it_began():
    reading = Reading()
    await turns()
    assert reading.told == [], "it is read in a thread"
    await reading.end()
    assert reading.told == ["read"]
    assert reading.begun[0].cancels == 0
    reading.handle.cancel()
    assert reading.begun[0].cancels == 1


@pytest.mark.parametrize("result", [lambda: "read", raising(ValueError("no body"))], ids=["read", "wrong"])
async def test_a_client_that_leaves_while_its_body_is_read_begins_nothing_and_is_told_nothing(
    result: Callable[[], object],
):
    reading = Reading(result)
    reading.handle.cancel()
    await reading.end()
    assert reading.told == reading.begun == []
    reading.handle.cancel()


async def test_what_reading_and_what_going_on_raise_is_told_once():
    unread, refused = ValueError("no body"), ValueError("no such model")
    reading = Reading(raising(unread))
    await reading.end()
    assert reading.told == [unread]
    reading = Reading(then=raising(refused))
    await reading.end()
    assert reading.told == ["read", refused]
    reading.handle.cancel()
