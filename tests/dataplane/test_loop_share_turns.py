"""The turns that a share asks of its loop: as many as are between two shares, and none when nobody computes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from serinus.dataplane.execution.loop_share import TURN_S, TURNS, LoopShare


class Turns:
    """What is to be called in the next turns of a loop, which the test makes."""

    def __init__(self) -> None:
        self.next: list[Callable[[], object]] = []
        self.places: list[asyncio.Future[None]] = []

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.next.append(callback)

    def create_future(self) -> asyncio.Future[None]:
        self.places.append(asyncio.get_running_loop().create_future())
        return self.places[-1]

    def turn(self) -> None:
        now, self.next = self.next, []
        for callback in now:
            callback()


def share_of(turns: Turns) -> LoopShare:
    loop: Any = turns
    return LoopShare(loop, lambda: 0.0)


async def test_a_share_that_is_not_used_up_asks_for_one_turn_however_many_steps_it_has():
    turns = Turns()
    share = share_of(turns)
    for _ in range(5):
        share.count(TURN_S / 10)
    assert len(turns.next) == 1
    turns.turn()
    assert (turns.next, share.spent_s) == ([], 0.0)
    share.count(TURN_S / 10)
    assert len(turns.next) == 1, "and again when it computes again"


async def test_a_share_that_is_used_up_lets_the_loop_go_round_and_then_ends():
    turns = Turns()
    share = share_of(turns)
    share.count(TURN_S)
    for _ in range(TURNS - 1):
        turns.turn()
        assert (len(turns.next), share.spent_s) == (1, TURN_S)
    turns.turn()
    assert (turns.next, share.spent_s) == ([], 0.0), "nobody stands in line: no turn is asked for"


async def test_who_stands_in_line_goes_on_after_those_turns_and_is_counted_beforehand():
    turns = Turns()
    share = share_of(turns)
    assert share.place() is None
    share.count(TURN_S)
    places = [share.place() for _ in range(2)]
    for _ in range(TURNS):
        assert not any(place.done() for place in turns.places)
        turns.turn()
    assert [place is not None and place.done() for place in places] == [True, False], "of long steps one"
    assert share.spent_s == TURN_S
    assert len(turns.next) == 1, "the line is looked at again"
    for _ in range(TURNS):
        turns.turn()
    assert all(place.done() for place in turns.places)


async def test_who_has_left_the_line_takes_nothing_of_the_share():
    turns = Turns()
    share = share_of(turns)
    share.count(TURN_S)
    gone = share.place()
    assert gone is not None
    gone.cancel()
    for _ in range(TURNS):
        turns.turn()
    assert (turns.next, share.spent_s) == ([], 0.0)
    assert share.place() is None
