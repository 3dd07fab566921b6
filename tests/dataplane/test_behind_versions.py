"""Models behind others, where several versions and several names have one; and what a model says of its health at once."""

from __future__ import annotations

from typing import Any

import pytest

from dataplane_support import Doubler, model_of, outcome, rows_of, serving
from serinus import InferRequest, InferResponse, ModelSettings
from serinus.errors import NotFound
from serinus.model import Model, RequestModel


class Front(RequestModel):
    """A pipeline before a model of arrays."""

    async def start(self) -> None:
        assert self.serve_behind is not None
        self.predictor = await self.serve_behind(Doubler, self.settings)

    async def infer(self, request: InferRequest) -> InferResponse:
        return await self.predictor.infer(request)


def make(settings: ModelSettings) -> Model:
    return (Doubler if settings.name == "plain" else Front)(settings)


SETTINGS = [
    ModelSettings(name="a", version="9"),
    ModelSettings(name="a", version="10"),
    ModelSettings(name="b", version="3"),
    ModelSettings(name="c"),
    ModelSettings(name="plain", version="1"),
]


async def test_the_versions_of_a_name_behind_are_those_of_its_own_front():
    async with serving(make, *SETTINGS) as plane:
        table = plane.registry
        for name, versions, known in [
            ("a-predictor", ("9", "10"), ("9", "10")),
            ("b-predictor", ("3",), ("3",)),
            ("c-predictor", (), ("",)),
            ("plain", ("1",), ("1",)),
            ("c", (), ("",)),
        ]:
            assert table.versions(name) == versions, name
            assert table.known_versions(name) == known, name


async def test_behind_the_highest_version_is_the_one_that_is_told_of_unless_another_is_asked_for():
    async with serving(make, *SETTINGS) as plane:
        table = plane.registry
        for look in (table.current, table.look_up):
            assert look("a-predictor").version == "10"
            assert look("a-predictor", "9").version == "9"
            with pytest.raises(NotFound):
                look("b-predictor", "9")
        assert table.names() == ["a", "b", "c", "plain", "a-predictor", "b-predictor", "c-predictor"]


async def test_an_unloaded_front_takes_the_model_behind_it_along():
    async with serving(make, *SETTINGS) as plane:
        await plane.unload("b")
        with pytest.raises(NotFound, match="'b-predictor' is not known"):
            plane.registry.current("b-predictor")
        assert plane.registry.versions("b-predictor") == ()
        assert "b-predictor" not in plane.registry.names()
        assert plane.model_ready("a-predictor")


async def test_what_was_unloaded_on_purpose_is_known_and_nothing_else_is():
    async with serving(make, *SETTINGS) as plane:
        await plane.unload("b")
        told = {(name, version): plane.registry.is_unloaded(name, version) for name, version in [
            ("b", "3"), ("b", "4"), ("a", "9"), ("nobody", ""), ("c", ""),
        ]}  # fmt: skip
        assert [key for key, unloaded in told.items() if unloaded] == [("b", "3")]
        await plane.load("b")
        assert not plane.registry.is_unloaded("b", "3")


class Says(RequestModel):
    """Says of itself what its settings' platform is."""

    async def is_ready(self) -> bool:
        return self.settings.platform == "well"

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse("", ())


@pytest.mark.parametrize(("platform", "healthy"), [("well", True), ("ill", False)])
async def test_a_model_is_asked_for_its_health_before_it_takes_requests(platform: str, healthy: bool):
    async with serving(Says, ModelSettings(name="m", platform=platform)) as plane:
        assert plane.registry.find("m").healthy is healthy
        assert plane.model_ready("m") is healthy
        assert plane.ready() is healthy


class FrontOfSays(RequestModel):
    """A pipeline before a model that tells its health."""

    async def start(self) -> None:
        assert self.serve_behind is not None
        self.predictor = await self.serve_behind(Says, self.settings)

    async def infer(self, request: InferRequest) -> InferResponse:
        return await self.predictor.infer(request)


@pytest.mark.parametrize(("platform", "healthy"), [("well", True), ("ill", False)])
async def test_a_front_is_as_healthy_as_what_is_behind_it(platform: str, healthy: bool):
    async with serving(FrontOfSays, ModelSettings(name="m", platform=platform)) as plane:
        assert plane.model_ready("m") is healthy
        assert plane.model_ready("m-predictor") is healthy


async def test_a_plain_model_has_no_watcher_and_is_healthy():
    class Plain(RequestModel):
        async def infer(self, request: InferRequest) -> InferResponse:
            return InferResponse("", ())

    async with serving(Plain) as plane:
        servable: Any = plane.registry.find("m")
        assert servable._watcher is None
        assert servable.healthy
        assert isinstance(await outcome(plane, rows_of(1)), InferResponse)
        assert model_of(plane).name == "m"
