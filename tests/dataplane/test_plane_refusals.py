"""What the plane answers where no model does: bugs, bodies that were refused, names that are gone; and whom readiness waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from dataplane_support import Doubler, outcome, rows_of, serving
from serinus import InferRequest, InferResponse, ModelSettings, TensorSpec
from serinus.dataplane.batching.pending_request import QUEUED
from serinus.errors import InvalidInput, ModelFailed, NotFound, SerinusError
from serinus.model import RequestModel
from waiting import until

pytestmark = pytest.mark.asyncio


async def test_what_goes_wrong_before_a_request_begins_is_answered_and_logged(
    caplog: Any, monkeypatch: pytest.MonkeyPatch
):
    async with serving(Doubler) as plane:

        def bug(*_: Any, **__: Any) -> None:
            raise KeyError("a bug of ours")

        monkeypatch.setattr(plane.registry.find("m"), "infer_nowait", bug)
        monkeypatch.setattr(plane.registry.find("m"), "v1_nowait", bug)
        answer = await outcome(plane, rows_of(1))
        assert isinstance(answer, ModelFailed)
        assert "the server's log has the details" in str(answer)
        assert "a request could not be begun" in caplog.text
        assert "KeyError: 'a bug of ours'" in caplog.text
        caplog.clear()
        with pytest.raises(ModelFailed, match="could not be processed"):
            [each async for each in plane.infer_stream(rows_of(1))]
        with pytest.raises(ModelFailed, match="could not be processed"):
            await plane.predict_v1("m", b"{}")
        assert caplog.text.count("a request could not be begun") == 2
        assert plane.statistics("m")[0]["inference_stats"]["fail"]["count"] == 2, "a V1 body was no request yet"


async def test_a_body_that_the_protocol_refuses_is_read_as_the_model_would_where_it_would():
    loose = InferRequest("m", [])

    class Loose(RequestModel):
        async def infer(self, request: InferRequest) -> InferResponse:
            return InferResponse("", ())

        def loose_request(self, body: bytes, headers: Mapping[str, str], version: str) -> InferRequest | None:
            return loose if body == b"loose" else None

    async with serving(Loose) as plane:
        error = InvalidInput("no such member")
        assert plane.read_loosely(error, "m", "", b"loose", {}) is loose
        with pytest.raises(InvalidInput) as caught:
            plane.read_loosely(error, "m", "", b"other", {})
        assert caught.value is error
        other = NotFound("gone")
        with pytest.raises(NotFound) as missing:
            plane.read_loosely(other, "m", "", b"loose", {})
        assert missing.value is other, "only what is wrong with the body can be read otherwise"
        with pytest.raises(NotFound, match="model 'nobody' is not known"):
            plane.read_loosely(error, "nobody", "", b"loose", {})


async def test_readiness_waits_for_what_was_asked_for_and_not_for_what_was_unloaded():
    async with serving(Doubler, ModelSettings(name="a"), ModelSettings(name="b")) as plane:
        assert plane.ready()
        await plane.unload("a")
        assert plane.ready()
        assert isinstance(await outcome(plane, rows_of(1, name="b")), InferResponse)
        await plane.unload("b")
        assert not plane.ready(), "nothing answers"
        loads: list[int] = []
        plane.on_load = lambda: loads.append(1)
        await plane.load("a")
        assert loads == [1]
        assert plane.ready()


async def test_a_model_that_was_asked_for_and_does_not_answer_keeps_the_server_unready():
    class Second(Doubler):
        def load(self) -> None:
            if self.settings.name == "bad":
                raise ValueError("no file")

    plane_of = serving(Second, ModelSettings(name="m"))
    async with plane_of as plane:
        with pytest.raises(SerinusError):
            await plane.start([ModelSettings(name="bad")])
        assert not plane.ready()
        assert plane.model_ready("m")
        assert plane.live()


async def test_a_replaced_model_takes_nothing_new_and_ends_its_executor():
    async with serving(Doubler, ModelSettings(name="m", execution="thread")) as plane:
        old = plane.registry.find("m")
        await outcome(plane, rows_of(1))
        assert old.accepting
        await plane.load("m")
        while plane.registry._retiring:
            await asyncio.sleep(0)
        assert not old.accepting
        assert plane.registry.find("m").accepting
        threads = old._executor._threads
        for thread in threads:
            thread.join(5)
        assert threads
        assert not any(thread.is_alive() for thread in threads)
        old.close()
        assert not old.accepting


async def test_a_load_changes_what_readiness_waits_for_of_its_own_name_alone():
    async with serving(Doubler, ModelSettings(name="a"), ModelSettings(name="b")) as plane:
        await plane.load("a")
        entry = plane.registry.entry("b")
        servable, entry.servable = entry.servable, None
        assert not plane.ready(), "b was asked for too"
        entry.servable = servable
        assert plane.ready()


async def test_a_plane_that_drains_or_is_closed_is_not_ready_and_lives():
    async with serving(Doubler) as plane:
        assert plane.ready()
        await plane.drain(5)
        assert not plane.ready()
        assert not plane.model_ready("m")
        assert plane.live()
    async with serving(Doubler) as closed:
        registry_close, closed.registry.close = closed.registry.close, _nothing  # type: ignore[method-assign]
        await closed.close()
        assert not closed.ready(), "from the moment that it begins to close"
        closed.registry.close = registry_close  # type: ignore[method-assign]


async def _nothing() -> None:
    """Close no model, so that only the plane's own word counts."""


class Gated(Doubler):
    """Predicts 99 when it is let."""

    execution = "thread"
    outputs = (*Doubler.outputs, TensorSpec("z", "FP32", (-1, 2)))
    gate = threading.Event()

    def predict(self, inputs, call):
        if (inputs["x"] == 99).any():
            assert self.gate.wait(20)
        return {**super().predict(inputs, call), "z": inputs["x"]}


async def test_a_drain_waits_for_what_a_replaced_model_still_has():
    Gated.gate.clear()
    async with serving(Gated) as plane:
        answer = asyncio.ensure_future(outcome(plane, rows_of(99)))
        await asyncio.sleep(0)
        await plane.load("m")
        drained = asyncio.ensure_future(plane.registry.drain())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not drained.done()
        Gated.gate.set()
        await drained
        assert isinstance(await answer, InferResponse)


async def test_of_a_batch_whose_members_left_only_the_others_are_told():
    Gated.gate.clear()
    async with serving(Gated, ModelSettings(name="m", warmup=False)) as plane:
        told: list[str] = []
        pending = [plane.infer_nowait(rows_of(99), lambda _, label=label: told.append(label)) for label in "abc"]
        await until(lambda: not any(each.state == QUEUED for each in pending))
        pending[1].cancel()
        Gated.gate.set()
        await until(lambda: not plane.registry.find("m").in_flight)
        assert told == ["a", "c"]
