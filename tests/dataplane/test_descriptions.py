"""What the data plane tells of its models: configuration, statistics of one worker and of all, names, and what is unloaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from dataplane_support import Doubler, outcome, rows_of, serving
from serinus import InferRequest, InferResponse, Model, ModelSettings
from serinus.errors import NotFound
from serinus.model import RequestModel
from serinus.settings import BatchSettings


class Alone(Doubler):
    """Its rows are never joined."""

    batchable = False


class Streams(RequestModel):
    """Answers any number of responses to a request."""

    streams = True
    has_generate = True
    decoupled = True

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse("", ())


def make(settings: ModelSettings) -> Model:
    return {"m": Doubler, "alone": Alone, "streams": Streams}[settings.name](settings)


NAMES = [
    ModelSettings(name=name, batch=BatchSettings(max_batch_rows=9, max_delay_s=0.25))
    for name in ("m", "alone", "streams")
]


async def test_the_configuration_tells_of_batches_only_where_there_are_any():
    async with serving(make, *NAMES) as plane:
        for name, rows, delay_s in (("m", 9, 0.25), ("alone", 0, 0.0), ("streams", 0, 0.0)):
            config = plane.model_config(name)
            assert (config.max_batch_rows, config.max_delay_s) == (rows, delay_s), name
            assert config.document()["max_batch_size"] == rows
        assert plane.model_config("streams").document()["model_transaction_policy"] == {"decoupled": True}


async def test_how_a_model_streams_is_told_and_of_one_that_is_not_there_nothing():
    async with serving(make, *NAMES) as plane:
        assert [plane.stream_kind(name) for name in ("streams", "m", "nobody")] == ["each", "", ""]
        assert plane.stream_kind("m", "7") == ""
        assert (plane.has_generate("streams"), plane.has_generate("m")) == (True, False)
        with pytest.raises(NotFound):
            plane.has_generate("nobody")


async def test_statistics_are_of_all_models_of_one_or_of_one_version():
    versions = [ModelSettings(name="m", version=version) for version in ("1", "2")] + [ModelSettings(name="n")]
    async with serving(Doubler, *versions) as plane:

        def told(*asked: str) -> list[tuple[str, str]]:
            return [(each["name"], each["version"]) for each in plane.statistics(*asked)]

        assert told() == [("m", "1"), ("m", "2"), ("n", "1")], "one that has no version is the first"
        assert told("m") == [("m", "1"), ("m", "2")]
        assert told("m", "2") == [("m", "2")]
        assert told("n") == [("n", "1")]
        for asked in (("nobody",), ("m", "3")):
            with pytest.raises(NotFound):
                plane.statistics(*asked)


async def test_statistics_of_all_workers_stand_in_for_this_ones_where_they_are_told():
    async with serving(Doubler, ModelSettings(name="a"), ModelSettings(name="b", version="1")) as plane:
        await outcome(plane, rows_of(1, name="a"))
        alone = await plane.statistics_of_all()
        assert alone == plane.statistics()
        assert [each["inference_count"] for each in alone] == [1, 0]

        async def workers() -> Mapping[tuple[str, str], dict[str, Any]]:
            return {("b", "1"): {"name": "b", "version": "1", "inference_count": 7}}

        plane.workers_statistics = workers
        together = await plane.statistics_of_all()
        assert [(each["name"], each["inference_count"]) for each in together] == [("a", 1), ("b", 7)]
        assert [each["inference_count"] for each in await plane.statistics_of_all("b")] == [7]


async def test_names_are_those_of_models_that_are_not_gone_each_once():
    versions = [ModelSettings(name="m", version=version) for version in ("1", "2")] + [ModelSettings(name="n")]
    async with serving(Doubler, *versions, index=lambda: ["m", "n", "elsewhere"]) as plane:
        assert plane.model_names() == ["m", "n"]
        await plane.unload("n")
        assert plane.model_names() == ["m"]
        assert [(name, plane.is_unloaded(name)) for name in ("m", "n")] == [("m", False), ("n", True)]
        plane.check_served("m", "2")
        with pytest.raises(NotFound):
            plane.check_served("n")


async def test_the_server_tells_its_name_its_version_and_what_it_offers():
    from serinus import __version__

    async with serving(Doubler) as plane:
        told = plane.server_metadata()
        assert (told.name, told.version) == ("serinus", __version__)
        assert "statistics" in told.extensions
        assert "model_repository" not in told.extensions, "nobody may load or unload here"


async def test_the_routes_of_every_model_are_told():
    class Routed(Doubler):
        def extra_routes(self) -> list[Any]:
            return [("GET", f"/{self.name}", None)]

    async with serving(Routed, ModelSettings(name="a"), ModelSettings(name="b")) as plane:
        assert [path for _, path, _ in plane.extra_routes()] == ["/a", "/b"]
