"""Versions, states, reloads and the repository."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from dataplane_support import Doubler, model_of, outcome, rows_of, serving
from serinus import InferResponse, ModelSettings
from serinus.dataplane.plane import Plane
from serinus.errors import ConfigError, Conflict, InvalidInput, ModelFailed, NotFound, NotReady
from waiting import until


class Stage:
    """A factory whose models multiply by the number of the load, load when told, and may be told to fail."""

    def __init__(self) -> None:
        self.loads = 0
        self.unloaded: list[int] = []
        self.error: Exception | None = None
        self.gate: threading.Event | None = None
        self.predict_gate: threading.Event | None = None

    def __call__(self, settings: ModelSettings) -> Any:
        stage = self

        class Numbered(Doubler):
            execution = "thread"

            def load(self):
                stage.loads += 1
                self.number = stage.loads
                if stage.gate is not None:
                    stage.gate.wait(30)
                if stage.error is not None:
                    raise stage.error

            def predict(self, inputs, call):
                if stage.predict_gate is not None and (inputs["x"] == 99).any():
                    stage.predict_gate.wait(30)
                return {"y": inputs["x"] * np.float32(self.number)}

            def unload(self):
                stage.unloaded.append(self.number)

        return Numbered(settings)


def value(answer: Any) -> float:
    assert isinstance(answer, InferResponse), answer
    return float(answer.outputs[0].data[0, 0])


async def test_a_reload_swaps_without_a_gap_and_the_old_model_ends_what_it_has():
    stage = Stage()
    async with serving(stage, ModelSettings(name="m", instances=2)) as plane:
        stage.predict_gate = threading.Event()
        old = asyncio.ensure_future(outcome(plane, rows_of(99)))
        await asyncio.sleep(0)
        stage.gate = threading.Event()
        load = asyncio.ensure_future(plane.load("m"))
        await until(lambda: stage.loads >= 2)
        assert plane.ready()
        assert value(await outcome(plane, rows_of(1))) == 1  # the new one is not ready yet
        stage.gate.set()
        await load
        assert value(await outcome(plane, rows_of(1))) == 2
        assert not old.done()
        assert stage.unloaded == []
        stage.predict_gate.set()
        assert value(await old) == 99
        await until(lambda: stage.unloaded)
        assert stage.unloaded == [1]


async def test_a_reload_under_load_loses_no_request():
    stage = Stage()
    async with serving(stage) as plane:
        stop = False

        async def client() -> None:
            answers: list[float] = []
            while not stop:
                answers.append(value(await outcome(plane, rows_of(1))))
            answers.append(value(await outcome(plane, rows_of(1))))
            assert answers == sorted(answers)  # nobody is sent back to an older model
            assert answers[-1] == 6

        clients = [asyncio.ensure_future(client()) for _ in range(8)]
        for _ in range(5):
            await plane.load("m")
        stop = True
        await asyncio.gather(*clients)
    assert sorted(stage.unloaded) == [1, 2, 3, 4, 5, 6]


async def test_a_reload_that_fails_keeps_the_old_model_and_tells_the_reason(caplog: Any):
    stage = Stage()
    async with serving(stage) as plane:
        stage.error = ConfigError("model.ubj: not a model file")
        with pytest.raises(InvalidInput, match="not a model file"):
            await plane.load("m")
        assert plane.ready()
        assert plane.repository_index() == [{"name": "m", "state": "READY", "reason": "model.ubj: not a model file"}]
        assert value(await outcome(plane, rows_of(1))) == 1
        stage.error = ValueError("a bug")
        with pytest.raises(ModelFailed, match="model 'm' does not load: a bug"):
            await plane.load("m")
        assert [record.message for record in caplog.records if record.exc_info] == ["model 'm' does not load"]
        stage.error = None
        await plane.load("m")
        assert plane.repository_index()[0]["reason"] == ""


async def test_an_unloaded_model_refuses_and_can_be_loaded_again():
    stage = Stage()
    async with serving(stage) as plane:
        await plane.unload("m", {"unload_dependents": True})
        assert stage.unloaded == [1]
        assert not plane.ready()  # no model answers
        assert not plane.model_ready("m")
        refused = await outcome(plane, rows_of(1))
        assert isinstance(refused, NotFound)
        assert str(refused) == "model 'm' is not loaded (unloaded); load it first"
        with pytest.raises(NotFound):
            plane.model_metadata("m")
        assert plane.repository_index() == [{"name": "m", "state": "UNAVAILABLE", "reason": "unloaded"}]
        assert plane.repository_index(ready_only=True) == []
        await plane.unload("m")
        await plane.load("m")
        assert value(await outcome(plane, rows_of(1))) == 2
        assert plane.ready()


async def test_unloading_ends_the_requests_in_flight_first():
    stage = Stage()
    async with serving(stage, unload_wait_s=0.01) as plane:
        stage.predict_gate = threading.Event()
        early = asyncio.ensure_future(outcome(plane, rows_of(99)))
        await asyncio.sleep(0)
        await plane.unload("m")  # returns after unload_wait_s
        assert plane.repository_index()[0]["state"] == "UNLOADING"
        assert isinstance(await outcome(plane, rows_of(1)), NotReady)
        stage.predict_gate.set()
        assert value(await early) == 99
        await until(lambda: plane.repository_index()[0]["state"] == "UNAVAILABLE")
        assert stage.unloaded == [1]


async def test_a_name_that_nobody_knows_is_not_found():
    async with serving(Doubler) as plane:
        for change in (plane.load, plane.unload):
            with pytest.raises(NotFound, match="'n' is not known"):
                await change("n")
        for ask in (plane.model_ready, plane.model_metadata, plane.statistics):
            with pytest.raises(NotFound):
                ask("n")


async def test_parameters_of_a_load_that_are_not_offered_are_refused():
    async with serving(Doubler) as plane:
        with pytest.raises(InvalidInput, match="'file:1/model' is not offered"):
            await plane.load("m", {"file:1/model": "x"})
        with pytest.raises(InvalidInput, match="'now' is not offered"):
            await plane.unload("m", {"now": True})


def batching(plane: Plane) -> tuple[int, float]:
    config = plane.model_config("m")
    return config.max_batch_rows, config.max_delay_s


async def test_a_load_request_changes_the_batching_until_the_next_load():
    async with serving(Doubler) as plane:
        before = batching(plane)
        policy = '"default_queue_policy": {"default_timeout_microseconds": 5000}'
        queue = (
            f'{{"max_queue_delay_microseconds": "2000", "priority_levels": 3, "default_priority_level": 2, {policy}}}'
        )
        groups = '[{"count": 1}, {"count": 2}]'
        config = f'{{"name": "m", "max_batch_size": 8, "dynamic_batching": {queue}, "instance_group": {groups}}}'
        await plane.load("m", {"config": config})
        settings = plane.registry.entry("m").settings
        batch = settings.batch
        assert batching(plane) == (8, 0.002)
        assert (batch.priority_levels, batch.default_priority, batch.default_timeout_s) == (3, 2, 0.005)
        assert settings.instances == 3
        with pytest.raises(InvalidInput):
            await plane.load("m", {"config": '{"backend": "onnxruntime"}'})
        assert batching(plane) == (8, 0.002)
        await plane.load("m")
        assert batching(plane) == before


async def test_a_second_load_or_an_unload_while_loading_is_a_conflict():
    stage = Stage()
    async with serving(stage) as plane:
        stage.gate = threading.Event()
        load = asyncio.ensure_future(plane.load("m"))
        await until(lambda: stage.loads >= 2)
        for change in (plane.load, plane.unload):
            with pytest.raises(Conflict, match="loading"):
                await change("m")
        stage.gate.set()
        await load


async def test_loading_does_not_hold_up_other_models():
    stage = Stage()
    async with serving(stage) as plane:
        stage.gate = threading.Event()
        other = asyncio.ensure_future(plane.registry.add(ModelSettings(name="other")))
        await until(lambda: stage.loads >= 2)
        assert value(await outcome(plane, rows_of(1))) == 1
        refused = await outcome(plane, rows_of(1, name="other"))
        assert isinstance(refused, NotReady)
        assert str(refused) == "model 'other' is loading"
        states = {row["name"]: row["state"] for row in plane.repository_index()}
        assert states == {"m": "READY", "other": "LOADING"}
        stage.gate.set()
        await other


async def test_the_highest_numeric_version_that_is_ready_is_the_default():
    stage = Stage()
    versions = [ModelSettings(name="m", version=version) for version in ("2", "10", "beta", "9")]
    async with serving(stage, *versions) as plane:
        assert plane.model_metadata("m").versions == ("beta", "2", "9", "10")
        answer = await outcome(plane, rows_of(1))
        assert answer.model_version == "10"
        assert (await outcome(plane, rows_of(1, model_version="2"))).model_version == "2"
        assert [row["version"] for row in plane.repository_index()] == ["beta", "2", "9", "10"]
        assert [one["version"] for one in plane.statistics("m")] == ["beta", "2", "9", "10"]
        assert [one["version"] for one in plane.statistics("m", "9")] == ["9"]


class Repository:
    """Names and their versions, as a directory would give them."""

    def __init__(self, **versions: list[str]) -> None:
        self.versions = versions

    def discover(self, name: str) -> Any:
        versions = self.versions.get(name)
        if versions is None:
            return None
        return [ModelSettings(name=name, version=version) for version in versions]


async def test_a_load_takes_the_versions_that_the_repository_has_now():
    stage, repository = Stage(), Repository(a=["1", "2"], b=["1"])
    async with serving(
        stage, ModelSettings(name="z"), discover=repository.discover, index=lambda: list(repository.versions)
    ) as plane:
        assert plane.repository_index()[1:] == [
            {"name": "a", "state": "UNAVAILABLE", "reason": ""},
            {"name": "b", "state": "UNAVAILABLE", "reason": ""},
        ]
        await plane.unload("b")  # known, and not loaded
        await plane.load("a")
        assert plane.model_metadata("a").versions == ("1", "2")
        repository.versions["a"] = ["2", "3"]
        await plane.load("a")
        assert plane.model_metadata("a").versions == ("2", "3")
        states = {
            (row["name"], row.get("version", "")): (row["state"], row["reason"]) for row in plane.repository_index()
        }
        assert states["a", "1"] == ("UNAVAILABLE", "no longer in the repository")
        with pytest.raises(NotFound, match="not in the model repository"):
            await plane.load("c")


async def test_statistics_go_on_counting_over_a_reload():
    async with serving(Doubler) as plane:
        await outcome(plane, rows_of(1))
        await plane.load("m")
        await outcome(plane, rows_of(1))
        assert plane.statistics("m")[0]["inference_count"] == 2
        assert model_of(plane).sizes[-1] == 1


async def test_a_failed_first_load_is_listed_with_its_reason_and_keeps_the_server_unready():
    stage = Stage()
    stage.error = ConfigError("no model file in /models/m")
    from serinus.dataplane.plane import Plane
    from serinus.dataplane.registry import Registry

    plane = Plane(Registry(stage))
    with pytest.raises(ConfigError):
        await plane.start([ModelSettings(name="m")])
    assert plane.repository_index() == [{"name": "m", "state": "UNAVAILABLE", "reason": "no model file in /models/m"}]
    assert not plane.ready()
    assert not plane.model_ready("m")
    await plane.close()
