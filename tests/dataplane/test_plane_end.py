"""What a plane says at its end: to requests that come while it closes, and to whoever asks whether it is ready."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from dataplane_support import Doubler, outcome, rows_of, serving
from serinus import InferRequest, InferResponse, ModelSettings, Tensor
from serinus.dataplane.plane import Plane
from serinus.errors import NotReady
from serinus.model import RequestModel

SAID = "the server is stopping and takes no new requests; try another replica"


class Leaves(Doubler):
    """Unloads when it is let."""

    gate = threading.Event()

    def unload(self) -> None:
        assert self.gate.wait(20)


async def refusals(plane: Plane, **fields: Any) -> list[str]:
    """What a request, a stream and a V1 body are told."""
    told = [await outcome(plane, rows_of(1, **fields))]
    for ask in (
        lambda: _first(plane, rows_of(1, **fields)),
        lambda: plane.predict_v1("m", b'{"instances": [[1, 2]]}', version=fields.get("model_version", "")),
    ):
        with pytest.raises(NotReady) as caught:
            await ask()
        told.append(caught.value)
    assert {type(each) for each in told} == {NotReady}, told
    return [str(each) for each in told]


async def _first(plane: Plane, request: InferRequest) -> Any:
    return [each async for each in plane.infer_stream(request)]


@pytest.mark.parametrize("fields", [{}, {"model_version": "1"}], ids=["default version", "one version"])
async def test_while_a_plane_closes_and_afterwards_new_requests_are_sent_to_another_replica(fields: dict[str, str]):
    made = type("Made", (Leaves,), {"gate": threading.Event()})
    async with serving(made, ModelSettings(name="m", version="1")) as plane:
        assert isinstance(await outcome(plane, rows_of(1, **fields)), InferResponse)
        closing = asyncio.ensure_future(plane.close())
        await asyncio.sleep(0)
        assert await refusals(plane, **fields) == [SAID] * 3
        assert not closing.done()
        made.gate.set()
        await closing
        assert await refusals(plane, **fields) == [SAID] * 3


@pytest.mark.parametrize("fields", [{}, {"model_version": "1"}], ids=["default version", "one version"])
async def test_a_drained_plane_sends_new_requests_to_another_replica_and_its_models_are_still_there(
    fields: dict[str, str],
):
    async with serving(Doubler, ModelSettings(name="m", version="1")) as plane:
        await plane.drain(5)
        assert await refusals(plane, **fields) == [SAID] * 3
        assert plane.repository_index()[0]["state"] == "READY"


async def test_a_plane_that_only_says_not_ready_answers_on():
    async with serving(Doubler) as plane:
        plane.stop_ready()
        assert not plane.ready()
        assert not plane.model_ready("m")
        assert isinstance(await outcome(plane, rows_of(1)), InferResponse)


class Moody(RequestModel):
    """Says of itself what it is told to, at once."""

    mood = True

    async def is_ready(self) -> bool:
        return self.mood

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse("", [Tensor.of("n", np.ones(1))])


async def test_a_model_that_was_loaded_again_is_still_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serinus.dataplane.servables.request_servable._HEALTH_INTERVAL_S", 0.001)

    def make(settings: ModelSettings) -> Any:
        return (Moody if settings.name == "moody" else Doubler)(settings)

    async with serving(make, ModelSettings(name="m"), ModelSettings(name="moody")) as plane:
        await plane.load("moody")
        assert plane.ready()
        monkeypatch.setattr(Moody, "mood", False)
        while plane.model_ready("moody"):
            await asyncio.sleep(0.001)
        assert not plane.ready()
        monkeypatch.setattr(Moody, "mood", True)
        while not plane.model_ready("moody"):
            await asyncio.sleep(0.001)
        assert plane.ready()


async def test_a_version_that_has_left_the_repository_is_waited_for_no_more():
    versions = ["1", "2"]
    settings = [ModelSettings(name="m", version=version) for version in versions]
    async with serving(
        Doubler,
        *settings,
        discover=lambda name: [ModelSettings(name=name, version=version) for version in versions],
    ) as plane:
        versions.remove("1")
        await plane.load("m")
        assert plane.ready()
        assert not plane.model_ready("m", "1")
        assert plane.model_ready("m", "2")


async def test_what_is_loaded_later_is_not_waited_for():
    async with serving(Doubler) as plane:
        await plane.registry.add(ModelSettings(name="later"))
        await plane.registry.unload("later", {})
        assert plane.ready()


async def test_a_plane_without_models_is_ready_from_its_start_only_where_it_may_be_empty():
    for allowed in (False, True):
        async with serving(Doubler) as other:
            plane = Plane(other.registry, ready_when_empty=allowed)
            assert plane.ready(), "a model answers"
            await other.unload("m")
            assert not plane.ready(), "it has not started"
            await plane.start([])
            assert plane.ready() is allowed
