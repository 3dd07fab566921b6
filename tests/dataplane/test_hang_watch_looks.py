"""What one look at the models finds, at a time that the test sets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dataplane_support import outcome, rows_of, serving
from hanging_models import HangsInTask, HangsInThread
from serinus import InferResponse, ModelSettings
from serinus.dataplane.hang_watch import HangWatch
from serinus.dataplane.plane import Plane
from serinus.dataplane.servables.servable import Servable
from serinus.errors import TimedOut
from serinus.settings import BatchSettings
from waiting import turns, until

LIMIT_S = 8.0
HANGS = 77


class Clock:
    """Seconds, which the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Looked:
    """A plane, its watch, and requests that have begun."""

    def __init__(self, plane: Plane, clock: Clock) -> None:
        self.plane = plane
        self.clock = clock
        self.watch = HangWatch(plane.registry.in_use, clock, plane.metrics.events)
        self.watch.look()

    def servable(self, name: str = "task") -> Servable:
        return self.plane.registry.find(name)

    async def begin(self, value: float, name: str = "task") -> asyncio.Task[Any]:
        task = asyncio.ensure_future(outcome(self.plane, rows_of(value, name=name)))
        await turns(5)
        return task

    async def look(self, later_s: float) -> None:
        self.clock.now += later_s
        self.watch.look()
        await turns(5)

    def hangs(self, name: str = "task") -> float:
        found = {one.name: one.samples for one in self.plane.metrics.events.families()}
        return sum(value for labels, value in found["serinus_model_hangs_total"] if labels["model"] == name)


def of(name: str, limit_s: float = LIMIT_S, **fields: Any) -> ModelSettings:
    return ModelSettings(name=name, batch=BatchSettings(hang_timeout_s=limit_s), **fields)


@contextlib.asynccontextmanager
async def looking(*models: ModelSettings) -> AsyncIterator[Looked]:
    clock = Clock()
    kinds = {"task": HangsInTask, "thread": HangsInThread}
    async with serving(lambda settings: kinds[settings.name](settings), *models, clock=clock) as plane:
        yield Looked(plane, clock)


class Gate(threading.Event):
    """Knows whether somebody waits for it."""

    is_waited_for = False

    def wait(self, timeout: float | None = None) -> bool:
        self.is_waited_for = True
        return super().wait(timeout)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """What the thread waits for; open at the end, so that it ends."""
    event = Gate()
    monkeypatch.setattr(HangsInThread, "gate", event)
    yield event
    event.set()


async def test_a_predict_hangs_once_it_has_taken_longer_than_its_limit_and_not_before(caplog: Any):
    async with looking(of("task")) as looked:
        hanging = await looked.begin(HANGS)
        await looked.look(LIMIT_S)
        assert not hanging.done()
        assert looked.plane.ready()
        assert looked.hangs() == 0
        await looked.look(0.001)
        assert str(await hanging) == "model 'task' did not answer in 8 s (hang_timeout_s)"
        assert not looked.plane.ready()
        assert looked.hangs() == 1
    assert "could not be watched" not in caplog.text


async def test_a_cancelled_task_is_healthy_again_when_nothing_has_hung_for_the_limit():
    async with looking(of("task")) as looked:
        await looked.begin(HANGS)
        await looked.look(LIMIT_S + 1)
        await looked.look(LIMIT_S - 0.001)
        assert not looked.servable().at_work
        assert looked.hangs() == 1, "a hang counts once"
        await looked.look(0.001)
        assert looked.servable().at_work


async def test_an_answer_makes_a_task_healthy_at_once():
    async with looking(of("task")) as looked:
        await looked.begin(HANGS)
        await looked.look(LIMIT_S + 1)
        assert isinstance(await (await looked.begin(1)), InferResponse)
        await looked.look(0)
        assert looked.servable().at_work


async def test_after_three_hangs_in_a_row_all_that_wait_are_failed_and_not_after_two():
    async with looking(of("task", max_concurrency=1)) as looked:
        requests = [await looked.begin(HANGS) for _ in range(5)]
        for ended in (1, 2):
            await looked.look(LIMIT_S + 1)
            assert [task.done() for task in requests] == [True] * ended + [False] * (5 - ended)
        await looked.look(LIMIT_S + 1)
        texts = [str(await task) for task in requests]
        said = "model 'task' did not answer in 8 s (hang_timeout_s)"
        assert texts == [said] * 3 + [f"{said}, nor those before it"] * 2
        assert looked.hangs() == 3
        further = [await looked.begin(HANGS) for _ in range(2)]
        await looked.look(LIMIT_S + 1)
        assert [task.done() for task in further] == [True, False], "they are counted anew"


async def test_hangs_with_an_answer_between_them_are_not_in_a_row():
    async with looking(of("task", max_concurrency=1)) as looked:
        requests = [await looked.begin(value) for value in (HANGS, HANGS, 1, HANGS, HANGS, 1, HANGS)]
        for _ in range(5):
            await looked.look(LIMIT_S + 1)
        texts = [type(await task) for task in requests]
        assert texts == [TimedOut, TimedOut, InferResponse, TimedOut, TimedOut, InferResponse, TimedOut]
        assert looked.hangs() == 5


async def test_several_that_hang_together_count_each_and_what_came_later_has_its_own_time():
    async with looking(of("task", max_concurrency=4)) as looked:
        early = [await looked.begin(HANGS) for _ in range(2)]
        looked.clock.now += LIMIT_S - 1
        late = await looked.begin(HANGS)
        await looked.look(2)
        assert [task.done() for task in (*early, late)] == [True, True, False]
        assert looked.hangs() == 2
        await looked.look(LIMIT_S)
        assert isinstance(await late, TimedOut)
        assert looked.hangs() == 3


async def test_of_two_threads_one_may_hang_while_the_other_answers(gate: Gate, caplog: Any):
    caplog.set_level(logging.INFO, "serinus.model")
    async with looking(of("thread", instances=2)) as looked:
        hanging = await looked.begin(HANGS, "thread")
        await looked.look(LIMIT_S + 1)
        assert isinstance(await hanging, TimedOut)
        assert not looked.servable("thread").at_work
        await looked.look(2 * LIMIT_S)
        assert not looked.servable("thread").at_work, "nobody can stop a thread"
        assert isinstance(await (await looked.begin(1, "thread")), InferResponse)
        await looked.look(0.5)
        assert looked.servable("thread").at_work
        gate.set()
    told = [(record.levelno, record.message) for record in caplog.records]
    assert [one for one in told if one[1].endswith(("not ready", "again"))] == [
        (logging.ERROR, "model 'thread' hangs, and is not ready"),
        (logging.INFO, "model 'thread' predicts again"),
    ]


async def test_where_all_threads_hang_the_model_does_whatever_was_answered(gate: Gate):
    async with looking(of("thread", instances=2)) as looked:
        await looked.begin(HANGS, "thread")
        await looked.look(LIMIT_S + 1)
        assert isinstance(await (await looked.begin(1, "thread")), InferResponse)
        await looked.begin(HANGS, "thread")
        await looked.look(1)
        assert looked.servable("thread").at_work
        await looked.look(LIMIT_S)
        await looked.look(10 * LIMIT_S)
        assert not looked.servable("thread").at_work
        gate.set()
        await until(lambda: not looked.servable("thread").batcher.under_way)
        await looked.look(0)
        assert looked.servable("thread").at_work


async def test_the_log_says_where_a_thread_is_four_frames_deep_and_that_a_task_has_none(gate: Gate, caplog: Any):
    async with looking(of("thread"), of("task")) as looked:
        await looked.begin(HANGS, "thread")
        await looked.begin(HANGS)
        await until(lambda: gate.is_waited_for)
        await looked.look(LIMIT_S + 1)
        gate.set()
    lines = {record.args[0]: record.getMessage() for record in caplog.records if "has not ended" in record.message}
    assert lines["task"] == "model 'task': a predict has not ended in 8 s. It is at: a task of the event loop"
    frames = ", called by ".join([r"\w+ \(\S+\.py:\d+\)"] * 4)
    assert re.fullmatch(rf"model 'thread': a predict has not ended in 8 s\. It is at: {frames}", lines["thread"])
    assert "predict (" in lines["thread"]


async def test_a_model_in_processes_hangs_as_often_as_processes_were_killed_and_is_ready_while_some_is_at_work(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    async with looking(of("task", max_concurrency=1)) as looked:
        servable = looked.servable()
        killed = iter([0, 1, 1, 0, 1])
        monkeypatch.setattr(servable, "end_overdue", lambda limit_s: next(killed) if limit_s == LIMIT_S else None)
        waiting = await looked.begin(HANGS)
        for _ in range(4):
            await looked.look(1)
        assert looked.hangs() == 2
        assert not waiting.done(), "its request is the pool's to answer"
        monkeypatch.setattr(type(servable), "is_at_work", property(lambda self: False))
        assert servable.at_work
        await looked.look(1)
        assert not servable.at_work
        assert str(await waiting).endswith(", nor those before it")
    end = "has not ended in 8 s; its process is killed, and another one started"
    assert [record.getMessage().endswith(end) for record in caplog.records if "has not" in record.message] == [True] * 3


async def test_a_model_that_cannot_be_watched_keeps_no_other_from_it(monkeypatch: pytest.MonkeyPatch, caplog: Any):
    async with looking(of("thread"), of("task")) as looked:

        def fails(limit_s: float) -> int:
            raise RuntimeError("no such process")

        monkeypatch.setattr(looked.servable("thread"), "end_overdue", fails)
        hanging = await looked.begin(HANGS)
        await looked.look(LIMIT_S + 1)
        assert isinstance(await hanging, TimedOut)
    assert "model 'thread' could not be watched" in caplog.text


async def test_only_models_with_a_limit_are_watched_and_each_from_when_it_is_there():
    async with looking(of("thread", 0), of("task")) as looked:
        names = [
            labels["model"]
            for one in looked.plane.metrics.events.families()
            for labels, _ in one.samples
            if one.name == "serinus_model_hangs_total"
        ]
        assert names == ["task"]
        hanging = await looked.begin(HANGS)
        looked.servable().hang_timeout_s = 0
        await looked.look(100 * LIMIT_S)
        assert not hanging.done()
        hanging.cancel()


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("limits_s", "every_s"),
    [((), 1.0), ((0,), 1.0), ((60,), 1.0), ((8,), 1.0), ((4, 0, 60), 0.5), ((0.2,), 0.025), ((0.01,), 0.02)],
)
async def test_it_looks_eight_times_in_the_shortest_limit_once_a_second_and_fifty_times_at_the_most(
    limits_s: tuple[float, ...], every_s: float
):
    looks: list[float] = []

    class Watch(HangWatch):
        def look(self) -> None:
            looks.append(asyncio.get_running_loop().time())

    servables: Any = [SimpleNamespace(hang_timeout_s=limit_s) for limit_s in limits_s]
    task = asyncio.ensure_future(Watch(lambda: servables, Clock(), None).run())  # pyright: ignore[reportArgumentType] # nothing is counted
    await asyncio.sleep(3.5 * every_s)
    task.cancel()
    assert looks == pytest.approx([every_s, 2 * every_s, 3 * every_s])
