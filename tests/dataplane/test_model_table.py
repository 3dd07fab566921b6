"""Who is found under a name and a version, and what is said of those that are not."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import pytest

from dataplane_support import Doubler, outcome, rows_of, serving
from serinus import InferResponse, ModelSettings
from serinus.dataplane.model_table import rank
from serinus.errors import ConfigError, Conflict, InvalidInput, ModelFailed, NotFound, NotReady
from serinus.model import Family, Model, RequestModel
from waiting import until


def version(number: str, name: str = "m") -> ModelSettings:
    return ModelSettings(name=name, version=number)


@pytest.mark.parametrize("order", list(itertools.permutations(["10", "9", "v2", ""])), ids="-".join)
def test_numbers_come_after_words_and_by_their_value(order: tuple[str, ...]):
    assert sorted(order, key=rank) == ["", "v2", "9", "10"]
    assert max(["2", "1a", "01"], key=rank) == "2"
    assert rank("7") == (1, 7, "")
    assert rank("x") == (0, 0, "x")


async def test_the_default_is_the_highest_number_that_answers():
    async with serving(Doubler, version("9"), version("10"), version("beta")) as plane:
        registry = plane.registry
        assert registry.find("m").version == "10"
        assert registry.versions("m") == ("beta", "9", "10")
        assert registry.entry("m").settings.version == "10"
        registry.entry("m", "10").servable = None
        registry.choose_default("m")
        assert registry.find("m").version == "9"
        assert registry.entry("m").settings.version == "9", "of those that answer"
        assert registry.versions("m") == ("beta", "9")
        for number in ("9", "beta"):
            registry.entry("m", number).servable = None
        registry.choose_default("m")
        assert "m" not in registry.defaults
        assert registry.entry("m").settings.version == "10", "nobody answers: of all"


async def test_an_unversioned_model_is_found_as_the_version_that_its_statistics_tell():
    async with serving(Doubler, ModelSettings(name="plain"), version("2")) as plane:
        (told,) = plane.statistics("plain")
        assert plane.statistics("plain", told["version"]) == [told]
        assert plane.model_ready("plain", told["version"])
        assert plane.model_metadata("plain", told["version"]).versions == ()
        assert plane.model_config("plain", told["version"]).max_batch_rows > 0
        answer = await plane.infer(rows_of(1, name="plain", model_version=told["version"]))
        assert answer.model_version == ""
        with pytest.raises(NotFound, match="has no version '1'; its versions are '2'"):
            plane.statistics("m", "1")


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("nobody", "", "model 'nobody' is not known; the models here are 'm', 'plain'"),
        ("m", "3", "model 'm' has no version '3'; its versions are 'beta', '9', '10'"),
        (
            "plain",
            "2",
            "model 'plain' has no version '2'; its versions are none: it is not versioned, and found without one or as '1'",
        ),
    ],
)
async def test_who_is_not_there_is_told_who_is(name: str, number: str, said: str):
    models = version("9"), version("10"), version("beta"), ModelSettings(name="plain")
    async with serving(Doubler, *models) as plane:
        for look in (plane.registry.find, plane.registry.current, plane.registry.look_up, plane.registry.entry):
            with pytest.raises(NotFound) as caught:
                look(name, number)
            assert str(caught.value) == said


async def test_of_many_models_eight_are_told():
    models = [ModelSettings(name=f"m{n:02}", warmup=False) for n in range(10)]
    async with serving(Doubler, *models) as plane:
        with pytest.raises(NotFound, match=r"the models here are 'm00', .*'m07'$"):
            plane.registry.find("x")
    async with serving(Doubler, ModelSettings(name="m")) as plane:
        plane.registry._entries.clear()
        plane.registry.defaults.clear()
        with pytest.raises(NotFound, match="the models here are none"):
            plane.registry.find("x")


@pytest.mark.parametrize(
    ("state", "reason", "unloaded", "error", "said"),
    [
        ("LOADING", "", False, NotReady, "model 'm' version 1 is loading"),
        ("UNLOADING", "in flight", True, NotReady, "model 'm' version 1 is being unloaded: in flight"),
        ("UNAVAILABLE", "no file", False, NotReady, "model 'm' version 1 is not loaded: no file"),
        ("UNAVAILABLE", "unloaded", True, NotFound, "model 'm' version 1 is not loaded (unloaded); load it first"),
        ("LOADING", "", True, NotReady, "model 'm' version 1 is loading"),
    ],
)
async def test_a_model_that_does_not_answer_says_why(state: Any, reason: str, unloaded: bool, error: type, said: str):
    async with serving(Doubler, version("1")) as plane:
        entry = plane.registry.entry("m", "1")
        servable, entry.servable = entry.servable, None
        entry.state, entry.reason, entry.unloaded = state, reason, unloaded
        plane.registry.choose_default("m")
        with pytest.raises(error) as caught:
            plane.registry.find("m", "1")
        assert str(caught.value) == said
        with pytest.raises(error) as bare:
            plane.registry.find("m")
        assert str(bare.value) == said.replace(" version 1", "")
        assert plane.registry.current("m") is None
        entry.servable = servable


async def test_gauges_tell_what_waits_and_runs_of_each_version_and_of_one_that_is_not_there():
    async with serving(Doubler, version("1"), version("2")) as plane:
        plane.registry.entry("m", "2").servable.batcher.queued_rows = 5
        told = {(name, number): gauges for name, number, gauges in plane.registry._gauges()}
        assert told["m", "1"] == {"ready": 1.0, "in_flight": 0.0, "queued": 0.0, "queued_rows": 0.0}
        assert told["m", "2"]["queued_rows"] == 5.0
        await plane.unload("m")
        gone = {(name, number): gauges for name, number, gauges in plane.registry._gauges()}
        assert gone["m", "1"] == {"ready": 0.0, "in_flight": 0.0, "queued": 0.0, "queued_rows": 0.0}


class Waits(RequestModel):
    """Says that it is not ready, as a transformer does whose predictor is gone."""

    async def is_ready(self) -> bool:
        return False


async def test_the_gauge_of_readiness_says_what_the_ready_path_says():
    async with serving(Waits, version("")) as plane:
        assert not plane.model_ready("m")
        assert [gauges["ready"] for _, _, gauges in plane.registry._gauges()] == [0.0]


class Tells(Doubler):
    """Metrics of its own."""

    def metrics(self) -> list[Family]:
        if self.settings.name == "broken":
            raise ValueError("a bug")
        return [
            Family("drift", "gauge", "How far", [({"feature": "a", "model": "x"}, 1.0), ({"model": self.name}, 2.0)])
        ]


async def test_models_metrics_are_joined_what_two_tell_alike_counts_once_and_a_broken_one_costs_nothing(caplog: Any):
    models = [ModelSettings(name=name, warmup=False) for name in ("a", "broken", "b")]
    async with serving(Tells, *models) as plane:
        (family,) = plane.registry._families()
        assert family.name == "drift"
        assert sorted((tuple(sorted(labels.items())), value) for labels, value in family.samples) == [
            ((("feature", "a"), ("model", "x")), 1.0),
            ((("model", "a"),), 2.0),
            ((("model", "b"),), 2.0),
        ]
        assert "model 'broken' cannot tell its metrics" in caplog.text


class Front(RequestModel):
    """A pipeline before a model of arrays."""

    async def start(self) -> None:
        assert self.serve_behind is not None
        self.predictor = await self.serve_behind(Doubler, self.settings)

    async def infer(self, request: Any) -> InferResponse:
        return await self.predictor.infer(request)


class Names(dict):
    """Makes a front of "front" and "other", a plain model of all else."""

    def __call__(self, settings: ModelSettings) -> Model:
        return (Front if settings.name in {"front", "other"} else Doubler)(settings)


async def test_a_model_behind_another_is_told_of_and_not_called():
    async with serving(Names(), ModelSettings(name="front", version="3"), ModelSettings(name="m")) as plane:
        registry = plane.registry
        behind = registry.current("front-predictor")
        assert behind is not None
        assert registry.look_up("front-predictor") is behind
        assert registry.versions("front-predictor") == ("3",)
        assert registry.versions("m") == ()
        assert registry.names() == ["front", "m", "front-predictor"]
        assert behind in registry.servables()
        assert plane.model_ready("front-predictor")
        with pytest.raises(
            NotFound, match="stands behind model 'front' and is not called past its transformer; send to 'front'"
        ):
            registry.find("front-predictor")
        with pytest.raises(NotFound):
            registry.find("front-predictor", "3")
        with pytest.raises(NotFound, match="is not known"):
            registry.current("front-predictor", "4")
        assert isinstance(await outcome(plane, rows_of(1, name="front")), InferResponse)
        with pytest.raises(ConfigError, match="the name is that of a model behind another one here"):
            await registry.add(ModelSettings(name="front-predictor"))
        gauges = {name: told for name, _, told in registry._gauges()}
        assert gauges["front-predictor"]["ready"] == 1.0


async def test_a_model_behind_another_may_be_opened():
    async with serving(Names(), ModelSettings(name="front"), expose_behind=True) as plane:
        assert plane.registry.find("front-predictor").known_as == "front-predictor"


async def test_a_model_whose_predictor_would_bear_anothers_name_does_not_load():
    async with serving(Names(), ModelSettings(name="other-predictor")) as plane:
        with pytest.raises(
            ConfigError, match="the model behind it would be 'other-predictor', which is the name of another"
        ):
            await plane.registry.add(ModelSettings(name="other"))
        assert isinstance(await outcome(plane, rows_of(1, name="other-predictor")), InferResponse)
        with pytest.raises(NotReady):
            plane.registry.find("other")


# Loads and unloads


class Gated(Doubler):
    """Loads when it is let; may fail to unload."""

    gate: threading.Event | None = None
    unload_error: Exception | None = None
    loading = 0

    def load(self) -> None:
        type(self).loading += 1
        if self.gate is not None:
            assert self.gate.wait(20)

    def unload(self) -> None:
        if self.unload_error is not None:
            raise self.unload_error


async def test_a_model_that_does_not_unload_cleanly_is_logged_and_gone(caplog: Any):
    made = type("Made", (Gated,), {"unload_error": ValueError("stuck")})
    async with serving(made) as plane:
        await plane.unload("m")
        while plane.registry._retiring:
            await asyncio.sleep(0)
        assert "model 'm' did not unload cleanly" in caplog.text
        assert plane.registry._retired == set()
        assert plane.registry.entry("m").state == "UNAVAILABLE"
        assert plane.registry.entry("m").reason == "unloaded"
        assert plane.is_unloaded("m")


async def test_a_name_that_loads_refuses_loads_and_unloads_and_is_free_afterwards():
    gate = threading.Event()
    made = type("Made", (Gated,), {})
    async with serving(made) as plane:
        made.gate = gate
        task = asyncio.ensure_future(plane.load("m"))
        await until(lambda: made.loading >= 2)
        with pytest.raises(Conflict, match="model 'm' is loading already"):
            await plane.load("m")
        with pytest.raises(Conflict, match="model 'm' is loading already"):
            await plane.registry.add(ModelSettings(name="m"))
        with pytest.raises(Conflict, match="model 'm' is loading; wait"):
            await plane.unload("m")
        gate.set()
        await task
        await plane.load("m")
        await plane.unload("m")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"unload_dependents": 1}, "unload parameter 'unload_dependents' is 1; true or false was expected"),
        ({"force": True}, "unload parameter 'force' is not offered; there is 'unload_dependents'"),
    ],
)
async def test_an_unload_takes_one_parameter(parameters: dict[str, Any], said: str):
    async with serving(Doubler) as plane:
        with pytest.raises(InvalidInput) as caught:
            await plane.unload("m", parameters)
        assert str(caught.value) == said
        for value in (True, False):
            await plane.unload("m", {"unload_dependents": value})


async def test_the_config_of_a_load_may_repeat_what_the_model_says_of_itself_while_it_is_served():
    async with serving(Doubler) as plane:
        told = '{"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}], "max_batch_size": 4}'
        await plane.load("m", {"config": told})
        assert plane.registry.entry("m").settings.batch.max_batch_rows == 4
        await plane.unload("m")
        with pytest.raises(InvalidInput, match="'input' cannot be changed by a load"):
            await plane.load("m", {"config": told})


async def test_the_repositorys_index_has_all_versions_in_order_and_names_that_are_not_loaded():
    async with serving(Doubler, version("10"), version("9"), index=lambda: ["m", "z", "y"]) as plane:
        rows = plane.repository_index()
        assert [(row["name"], row.get("version"), row["state"]) for row in rows] == [
            ("m", "9", "READY"),
            ("m", "10", "READY"),
            ("y", None, "UNAVAILABLE"),
            ("z", None, "UNAVAILABLE"),
        ]
        assert [row["name"] for row in plane.repository_index(ready_only=True)] == ["m", "m"]
        await plane.unload("y")
        with pytest.raises(NotFound, match="model 'x' is not known"):
            await plane.unload("x")


async def test_what_was_unloaded_and_has_left_the_repository_is_told_of_no_more():
    there = ["m", "n"]
    async with serving(Doubler, ModelSettings(name="m"), ModelSettings(name="n"), index=lambda: list(there)) as plane:
        await plane.unload("m")
        assert [(row["name"], row["state"]) for row in plane.repository_index()] == [
            ("m", "UNAVAILABLE"),
            ("n", "READY"),
        ]
        there.clear()
        assert [(row["name"], row["state"]) for row in plane.repository_index()] == [("n", "READY")]


async def test_a_bug_in_a_models_load_is_ours_with_its_message_and_an_empty_one_says_that_it_does_not_load(caplog: Any):
    class Bad(Doubler):
        def load(self) -> None:
            raise ValueError("no file" if self.settings.name == "said" else "")

    async with serving(Doubler) as plane:
        plane.registry._factory = Bad
        plane.registry._preparation = None
        for name, message in (("said", "no file"), ("silent", "it does not load")):
            with pytest.raises(ModelFailed, match=f"model '{name}' does not load: {message}"):
                await plane.registry.add(ModelSettings(name=name))
            entry = plane.registry.entry(name)
            assert (entry.state, entry.reason) == ("UNAVAILABLE", message)
        assert "model 'said' does not load" in caplog.text


async def test_how_long_a_load_took_is_told_with_the_models_version_and_place(caplog: Any):
    caplog.set_level("INFO")
    async with serving(Doubler, version("3"), ModelSettings(name="plain")) as plane:
        assert "model 'm' version 3 is ready: inline, loaded in " in caplog.text
        assert "model 'plain' is ready: inline" in caplog.text
        assert plane.registry.find("m").statistics.load_s > 0
