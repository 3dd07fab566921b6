"""Coroutines that compute share the event loop with sockets: how many of their steps one turn of it may have."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable

import numpy as np
import pytest

from dataplane_support import outcome, request_of
from serinus import InferRequest, InferResponse, Model, ModelSettings, RequestModel, Tensor
from serinus.dataplane.execution.loop_share import TURN_S, TURNS, LoopShare
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry


class Clock:
    """Seconds, which a step of work adds to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Work:
    """Coroutines that compute for so long in each of their steps, and the turn of the loop in which each did."""

    def __init__(self, *steps_s: float) -> None:
        self.clock = Clock()
        self.share = LoopShare(asyncio.get_running_loop(), self.clock)
        self.steps_s = steps_s
        self.turn = 0
        self.done: list[tuple[int, int]] = []
        """The turn, and whose step it was."""
        self._counting = asyncio.ensure_future(self._count())

    async def _count(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)

    async def compute(self, label: int) -> int:
        """Take these steps."""
        for number, step_s in enumerate(self.steps_s):
            if number:
                await asyncio.sleep(0)
            self.clock.now += step_s
            self.done.append((self.turn, label))
        return label

    def begin(self, *labels: int) -> list[asyncio.Task[int]]:
        """Begin coroutines together."""

        async def within(label: int) -> int:
            return await self.share.steps(self.compute(label))

        return [asyncio.ensure_future(within(label)) for label in labels]

    def stop(self) -> None:
        """Count no more turns."""
        self._counting.cancel()

    def most_in_a_turn(self) -> int:
        """Steps of the turn that had the most."""
        turns = [turn for turn, _ in self.done]
        return max(map(turns.count, turns))


async def test_of_long_steps_each_turn_has_one_in_the_order_of_arrival():
    work = Work(0.02)
    assert await asyncio.gather(*work.begin(*range(10))) == list(range(10))
    work.stop()
    assert work.most_in_a_turn() == 1
    assert [label for _, label in work.done] == list(range(10))


async def test_long_steps_after_an_await_are_one_a_turn_too():
    work = Work(0.0, 0.02, 0.02)
    await asyncio.gather(*work.begin(*range(6)))
    work.stop()
    turns = [turn for turn, _ in work.done[6:]]
    assert len(set(turns)) == len(turns) == 12


async def test_between_two_long_steps_the_loop_goes_around_often_enough_for_a_newcomer():
    work = Work(0.02)
    await asyncio.gather(*work.begin(*range(4)))
    work.stop()
    turns = [turn for turn, _ in work.done]
    assert all(later - earlier >= TURNS for earlier, later in itertools.pairwise(turns))


async def test_short_steps_share_a_turn_up_to_its_time():
    work = Work(TURN_S / 10)
    await asyncio.gather(*work.begin(*range(100)))
    work.stop()
    assert work.most_in_a_turn() >= 8, "a turn is used"
    assert work.most_in_a_turn() <= 11, "and not more than that"


async def test_who_leaves_the_line_never_computes_and_holds_nobody_up():
    work = Work(0.02)
    tasks = work.begin(*range(8))
    await asyncio.sleep(0)
    for task in tasks[2:7]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    work.stop()
    assert [label for _, label in work.done] == [0, 1, 7]
    assert [type(found) for found in outcomes[2:7]] == [asyncio.CancelledError] * 5


async def test_an_error_and_what_is_awaited_pass_through():
    share = LoopShare(asyncio.get_running_loop(), Clock())
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def fails() -> int:
        if await told == 3:
            raise ValueError("three")
        return 0

    async def cancelled() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "cleaned up"
        return ""

    async def within(work) -> object:
        return await share.steps(work)

    failing, leaving = asyncio.ensure_future(within(fails())), asyncio.ensure_future(within(cancelled()))
    await asyncio.sleep(0)
    told.set_result(3)
    leaving.cancel()
    with pytest.raises(ValueError, match="three"):
        await failing
    assert await leaving == "cleaned up"


class Computes(RequestModel):
    """Holds the loop for ten times a turn's share, and does so after an await, as hosted classes do."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.served: list[str | None] = []
        self.on_step: Callable[[], object] = lambda: None

    async def infer(self, request: InferRequest) -> InferResponse:
        await asyncio.sleep(0)
        self.served.append(request.id)
        self.on_step()
        until = asyncio.get_running_loop().time() + 10 * TURN_S
        while asyncio.get_running_loop().time() < until:
            pass
        return InferResponse(request.model_name, [Tensor.of("y", request.inputs[0].data)])


async def test_time_in_line_is_time_in_the_queue_and_not_the_models():
    clock = Clock()

    class Costs(RequestModel):
        async def infer(self, request: InferRequest) -> InferResponse:
            await asyncio.sleep(0)
            clock.now += 0.02
            return InferResponse(request.model_name, [Tensor.of("y", request.inputs[0].data)])

    plane = Plane(Registry(Costs, clock=clock))
    await plane.start([ModelSettings(name="m")])
    try:
        await asyncio.gather(*(outcome(plane, request_of(x=np.ones((1, 2), np.float32))) for _ in range(8)))
        stats = plane.statistics("m")[0]["inference_stats"]
        seconds = {name: stats[name]["ns"] / 1e9 for name in ("queue", "compute_input", "compute_infer")}
        # The first step of the line is seen by nobody else: it held the turn in which the seven others were to go on.
        assert seconds["compute_infer"] == pytest.approx((8 + 7) * 0.02)
        assert seconds["queue"] == pytest.approx(sum(range(7)) * 0.02), "the n-th waited for those before it"
        assert seconds["compute_input"] == pytest.approx(0)
    finally:
        await plane.close()


async def test_between_two_predicts_that_hold_the_loop_a_socket_is_read():
    made: list[Computes] = []

    def make(settings: ModelSettings) -> Model:
        made.append(Computes(settings))
        return made[0]

    plane = Plane(Registry(make))
    await plane.start([ModelSettings(name="m")])
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    reads: list[int] = []
    asyncio.get_running_loop().add_reader(ours, lambda: (ours.recv(1), reads.append(len(made[0].served))))
    made[0].on_step = lambda: theirs.send(b"x")
    try:
        answers = await asyncio.gather(*(outcome(plane, request_of(x=np.ones((1, 2), np.float32))) for _ in range(8)))
        assert all(isinstance(answer, InferResponse) for answer in answers)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(reads) >= 7, f"of what came while 8 predicts ran, the loop read at {reads}"
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        ours.close()
        theirs.close()
        await plane.close()
