"""A predict that hangs: its requests are answered, its model is not ready, its process is restarted, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dataplane_support import Doubler, outcome, outcomes, rows_of, serving
from hanging_models import HangsInProcess, HangsInTask, HangsInThread
from serinus import InferRequest, InferResponse, ModelSettings, RequestModel
from serinus.dataplane.hang_watch import HangWatch
from serinus.dataplane.plane import Plane
from serinus.errors import TimedOut
from serinus.settings import BatchSettings
from waiting import until

pytestmark = pytest.mark.asyncio


def settings(name: str = "m", hang_timeout_s: float = 0.2, **batch: Any) -> ModelSettings:
    return ModelSettings(name=name, batch=BatchSettings(hang_timeout_s=hang_timeout_s, **batch))


def made(model: ModelSettings) -> Any:
    kinds = {"thread": HangsInThread, "process": HangsInProcess, "task": HangsInTask, "other": Doubler}
    return kinds[model.name](model)


@contextlib.asynccontextmanager
async def watched(*models: ModelSettings, factory: Any = made) -> AsyncIterator[Plane]:
    async with serving(factory, *models) as plane:
        watch = HangWatch(plane.registry.in_use, plane.registry.clock, plane.metrics.events)
        task = asyncio.ensure_future(watch.run())
        try:
            yield plane
        finally:
            task.cancel()


def count(plane: Plane, family: str, **labels: str) -> float:
    found = {one.name: one.samples for one in plane.metrics.events.families()}
    return sum(value for have, value in found.get(family, ()) if labels.items() <= have.items())


async def test_a_thread_that_hangs_makes_its_model_unready_until_it_ends_and_its_requests_time_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(HangsInThread, "gate", threading.Event())
    async with watched(settings("thread"), settings("other")) as plane:
        answer = await outcome(plane, rows_of(77, name="thread"))
        assert isinstance(answer, TimedOut)
        assert str(answer) == "model 'thread' did not answer in 0.2 s (hang_timeout_s)"
        assert not plane.ready()
        assert not plane.model_ready("thread")
        assert plane.model_ready("other")
        assert isinstance(await outcome(plane, rows_of(1, name="other")), InferResponse)
        assert count(plane, "serinus_model_hangs_total", model="thread") == 1
        assert count(plane, "serinus_model_hangs_total", model="other") == 0
        HangsInThread.gate.set()
        await until(plane.ready)
        assert isinstance(await outcome(plane, rows_of(1, name="thread")), InferResponse)
    assert "predict (" in caplog.text
    assert "hanging_models.py" in caplog.text
    assert "predicts again" in caplog.text or "is not ready" in caplog.text


@pytest.mark.slow  # it starts processes
async def test_a_process_that_hangs_is_restarted_and_only_the_request_that_hangs_it_is_failed():
    async with watched(settings("process", 1.0), settings("other")) as plane:
        before = await outcome(plane, rows_of(1, name="process"))
        assert isinstance(before, InferResponse)
        ready = []
        look = asyncio.ensure_future(_record(plane, ready))
        beside = asyncio.ensure_future(outcome(plane, rows_of(5, name="other")))
        answers = await outcomes(plane, *(rows_of(value, name="process") for value in (1, 77, 2)))
        assert [type(answer) for answer in answers] == [InferResponse, TimedOut, InferResponse]
        assert isinstance(await beside, InferResponse)
        assert False in ready
        await until(plane.ready)
        look.cancel()
        after = await outcome(plane, rows_of(1, name="process"))
        assert isinstance(after, InferResponse)
        assert after.outputs[1].data[0] != before.outputs[1].data[0]
        assert count(plane, "serinus_model_process_restarts_total", reason="hung") == 2  # joined, and alone
        assert count(plane, "serinus_model_hangs_total", model="process") == 2


async def _record(plane: Plane, ready: list[bool]) -> None:
    while True:
        ready.append(plane.model_ready("process"))
        await asyncio.sleep(0.005)


@pytest.mark.slow  # it starts processes
async def test_a_model_of_which_every_predict_hangs_fails_all_that_wait_after_three():
    async with watched(settings("process", 0.3)) as plane:
        answers = await outcomes(plane, *(rows_of(77, name="process") for _ in range(12)))
        assert {type(answer) for answer in answers} == {TimedOut}
        assert count(plane, "serinus_model_hangs_total", model="process") == 3


async def test_a_task_that_hangs_is_cancelled_and_its_place_is_free_again():
    model = ModelSettings(name="task", max_concurrency=1, batch=BatchSettings(hang_timeout_s=0.1))
    async with watched(model) as plane:
        hung, waits = await outcomes(plane, rows_of(77, name="task"), rows_of(3, name="task"))
        assert isinstance(hung, TimedOut)
        assert isinstance(waits, InferResponse)
        await until(plane.ready)


class Streams(RequestModel):
    """A response, a pause as long as three predicts may take, and another."""

    streams = True

    async def infer_stream(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        yield InferResponse("", [])
        await asyncio.sleep(0.3)
        yield InferResponse("", [])


async def test_a_stream_may_last_as_long_as_it_likes():
    async with watched(settings("m", 0.1), factory=Streams) as plane:
        stream = plane.infer_stream(InferRequest("m", ()))
        assert len([one async for one in stream]) == 2
        assert plane.ready()
        assert count(plane, "serinus_model_hangs_total") == 0


async def test_a_limit_of_zero_watches_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HangsInThread, "gate", threading.Event())
    async with watched(settings("thread", 0.0), settings("other", 0.05)) as plane:
        task = asyncio.ensure_future(outcome(plane, rows_of(77, name="thread")))
        await asyncio.sleep(0.3)  # three looks at the other one's limit
        assert not task.done()
        assert plane.ready()
        HangsInThread.gate.set()
        assert isinstance(await task, InferResponse)
