"""A timer that is asked for many moments: which of them it keeps, and when it calls."""

from __future__ import annotations

from typing import Any

import pytest

from serinus.dataplane.batching.wake_timer import WakeTimer
from simulated_time import SimulatedLoop

BEGIN = 1000.0
"""What the clock shows when the loop's is at 0: moments are the clock's, waits the loop's."""


class World:
    """A loop, and when it woke somebody."""

    def __init__(self) -> None:
        self.loop = SimulatedLoop()
        self.woken: list[float] = []
        loop: Any = self.loop
        self.timer = WakeTimer(loop, lambda: BEGIN + self.loop.time(), lambda: self.woken.append(self.loop.time()))


@pytest.mark.parametrize(
    ("asked", "woken"),
    [
        ([], []),
        ([5.0], [5.0]),
        ([5.0, 5.0], [5.0]),
        ([5.0, 9.0], [5.0]),
        ([9.0, 5.0], [5.0]),
        ([9.0, 5.0, 7.0, 6.0, 5.5], [5.0]),
        ([9.0, 8.0, 7.0], [7.0]),
        ([0.0], [0.0]),
        ([-3.0], [0.0]),
        ([9.0, -3.0], [0.0]),
        ([-3.0, -9.0], [0.0]),
    ],
)
def test_it_calls_once_at_the_earliest_moment_that_was_asked_for(asked: list[float], woken: list[float]):
    world = World()
    for due_s in asked:
        world.timer.wake_at(BEGIN + due_s)
    assert world.woken == [], "a moment that has passed is the next turn's, not this one's"
    world.loop.run()
    assert world.woken == woken


def test_after_a_call_it_takes_later_moments_again():
    world = World()
    for due_s, woken in ((5.0, [5.0]), (6.0, [5.0, 6.0]), (20.0, [5.0, 6.0, 20.0]), (1.0, [5.0, 6.0, 20.0, 20.0])):
        world.timer.wake_at(BEGIN + due_s)
        world.loop.run()
        assert world.woken == woken


def test_a_moment_is_counted_from_when_it_is_asked_for():
    world = World()
    world.loop.run(until=3.0)
    world.timer.wake_at(BEGIN + 5.0)
    world.loop.run(until=4.5)
    assert world.woken == []
    world.timer.wake_at(BEGIN + 4.75)
    world.loop.run()
    assert world.woken == [4.75]


def test_who_is_called_may_ask_for_the_next_moment():
    loop = SimulatedLoop()
    woken: list[float] = []
    timer: Any = None

    def wake() -> None:
        woken.append(loop.time())
        if len(woken) < 3:
            timer.wake_at(loop.time() + 2.0)

    simulated: Any = loop
    timer = WakeTimer(simulated, loop.time, wake)
    timer.wake_at(1.0)
    loop.run()
    assert woken == [1.0, 3.0, 5.0]
