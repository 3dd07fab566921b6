"""Changes of a plane's models: a load or unload in two steps, and the set that other processes have."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dataplane_support import Doubler, outcome, rows_of
from serinus import InferResponse, ModelSettings
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.errors import ConfigError, Conflict, InvalidInput, NotFound, UntrustedModel

A = ModelSettings(name="a")
B = ModelSettings(name="b")
A1, A2 = (ModelSettings(name="a", version=version) for version in ("1", "2"))


class Models:
    """Makes models, and fails the loads that a test names."""

    def __init__(self, *, errors: dict[str, Exception] | None = None) -> None:
        self.errors = errors or {}
        self.loaded: list[tuple[str, str]] = []

    def __call__(self, settings: ModelSettings) -> Doubler:
        if settings.name in self.errors:
            raise self.errors[settings.name]
        self.loaded.append((settings.name, settings.version))
        return Doubler(settings)


@contextlib.asynccontextmanager
async def plane_of(models: Models, *started: ModelSettings, **options: Any) -> AsyncIterator[Plane]:
    """A plane that notes files, as that of one of several workers; without `started` nothing has been started."""
    registry = Registry(models)
    registry.notes_files = True
    plane = Plane(registry, **options)
    try:
        if started:
            await plane.start(started)
        yield plane
    finally:
        await plane.close()


def have(plane: Plane) -> dict[str, list[str]]:
    """Name to versions of what answers."""
    return {name: sorted(versions) for name, versions in plane.loaded().items()}


def present(**versions: Sequence[str] | dict[str, dict[str, str]]) -> dict[str, tuple[dict[str, dict[str, str]], Any]]:
    return {
        name: (found if isinstance(found, dict) else {version: {} for version in found}, {})
        for name, found in versions.items()
    }


# Two steps


async def test_nothing_changes_before_the_commit_and_all_of_it_with_it():
    models = Models()
    loads: list[str] = []
    async with plane_of(models, A) as plane:
        plane.on_load = lambda: loads.append("load")
        old = plane.registry.find("a")
        staged = await plane.stage("load", "a", {})
        assert plane.registry.find("a") is old
        assert loads == []
        await plane.commit(staged)
        assert plane.registry.find("a") is not old
        assert loads == ["load"]
        staged = await plane.stage("unload", "a", {})
        assert have(plane) == {"a": [""]}
        await plane.commit(staged)
        assert have(plane) == {}
        assert loads == ["load"], "an unload brings no model"


async def test_a_change_that_is_given_up_leaves_what_was_there_and_the_name_free():
    async with plane_of(Models(), A) as plane:
        old = plane.registry.find("a")
        staged = await plane.stage("load", "a", {})
        with pytest.raises(Conflict):
            await plane.stage("load", "a", {})
        await plane.discard(staged)
        assert plane.registry.find("a") is old
        await plane.load("a")
        assert plane.registry.find("a") is not old


async def test_whoever_hears_of_no_load_is_not_needed():
    async with plane_of(Models(), A) as plane:
        await plane.load("a")
        assert have(plane) == {"a": [""]}


@pytest.mark.parametrize(
    ("error", "refusals"),
    [(ConfigError("no such file"), 0), (UntrustedModel("no signature"), 1)],
    ids=["file", "trust"],
)
async def test_wrong_settings_are_the_fault_of_who_asks_for_the_load_and_distrust_is_counted(
    error: ConfigError, refusals: int
):
    models = Models()
    async with plane_of(models, A) as plane:
        models.errors["a"] = error
        with pytest.raises(InvalidInput) as refused:
            await plane.load("a")
        assert str(refused.value) == f"model 'a' cannot be loaded: {error.problems[0]}"
        counts = {one.name: one.samples for one in plane.metrics.events.families()}
        assert counts["serinus_model_signature_refusals_total"] == [({}, refusals)]
        assert have(plane) == {"a": [""]}
        with pytest.raises(NotFound):
            await plane.load("nobody")


async def test_an_unload_frees_readiness_of_its_own_name_only():
    models = Models()
    async with plane_of(models, A1, A2, B) as plane:
        assert plane.ready()
        plane.registry.find("b").at_work = False
        assert not plane.ready()
        await plane.unload("a")
        assert not plane.ready(), "b is still waited for"
        plane.registry.find("b").at_work = True
        assert plane.ready()
        await plane.unload("b")
        await plane.load("a")
        assert plane.ready()


async def test_a_name_that_was_spared_is_missing_until_it_is_loaded_or_unloaded():
    for change in ("load", "unload"):
        models = Models(errors={"a": ConfigError("no such file")})
        async with plane_of(models, strict_readiness=True) as plane:
            await plane.start([A, B], spared=["a"])
            assert not plane.ready()
            models.errors.clear()
            await (plane.load if change == "load" else plane.unload)("a")
            assert plane.ready(), change


async def test_what_is_loaded_is_told_with_its_files_and_without_what_is_not_there(tmp_path: Path):
    (tmp_path / "model.bin").write_bytes(b"one")
    async with plane_of(Models(), ModelSettings(name="a", version="1", model_dir=tmp_path), A2, B) as plane:
        told = plane.loaded()
        assert told["a"]["1"].keys() == {"model.bin"}
        assert {name: dict(versions) for name, versions in told.items() if name == "b"} == {"b": {"": {}}}
        assert told["a"]["2"] == {}
        await plane.unload("b")
        assert have(plane) == {"a": ["1", "2"]}


# The set that others have


async def test_what_is_missing_is_loaded_what_is_too_many_unloaded_and_the_rest_left_alone():
    models = Models()
    async with plane_of(models, A1, A2, B) as plane:
        old = plane.registry.find("b")
        found = await plane.restore(present(b=[""], c=[""]), [A1, A2, B, ModelSettings(name="c")], changed=())
        assert found == []
        assert have(plane) == {"b": [""], "c": [""]}
        assert plane.registry.find("b") is old
        assert models.loaded[3:] == [("c", "")]


@pytest.mark.parametrize(
    ("changed", "versions", "loads"),
    [([], ["1"], 0), (["a"], ["1"], 1), ([], ["1", "2"], 2), (["b"], ["1"], 0)],
    ids=["the same", "another's", "one more", "another name's"],
)
async def test_a_name_is_loaded_where_its_versions_differ_or_are_anothers(
    changed: list[str], versions: list[str], loads: int
):
    models = Models()
    async with plane_of(models, A1) as plane:
        await plane.registry.add(A2)
        await plane.unload("a")
        await plane.registry.add(A1)
        before = len(models.loaded)
        assert await plane.restore(present(a=versions), [A1, A2], changed=changed) == []
        assert have(plane) == {"a": versions}
        assert len(models.loaded) - before == loads


async def test_a_plane_that_begins_loads_all_by_the_settings_of_a_start_and_is_ready():
    models = Models()
    async with plane_of(models) as plane:
        assert not plane.ready()
        assert await plane.restore(present(a=["1", "2"], b=[""]), [B, A1, A2], changed=()) == []
        assert have(plane) == {"a": ["1", "2"], "b": [""]}
        assert isinstance(await outcome(plane, rows_of(1, name="a", model_version="2")), InferResponse)
        assert plane.ready()


@pytest.mark.parametrize("when_empty", [True, False])
async def test_a_plane_that_is_brought_to_no_models_has_started(when_empty: bool):
    async with plane_of(Models(), ready_when_empty=when_empty) as plane:
        assert not plane.ready(), "nothing has started"
        assert await plane.restore({}, [], changed=()) == []
        assert plane.ready() is when_empty


async def test_readiness_waits_for_the_versions_that_are_present_and_no_others():
    models = Models()
    async with plane_of(models) as plane:
        assert await plane.restore(present(a=["1"], b=[""]), [A1, A2, B], changed=()) == []
        assert plane.ready(), "version 2 is another's no more"
        plane.registry.find("a").at_work = False
        assert not plane.ready()


async def test_a_version_that_is_present_and_cannot_be_loaded_keeps_the_plane_unready_and_is_told():
    models = Models(errors={"a": ConfigError("no such file")})
    async with plane_of(models) as plane:
        problems = await plane.restore(present(a=["1"], b=[""]), [A1, B], changed=())
        assert problems == ["model 'a': no such file"]
        assert have(plane) == {"b": [""]}
        assert not plane.ready()


async def test_a_name_that_others_have_unloaded_is_listed_so_and_can_be_loaded():
    models = Models()
    async with plane_of(models, ready_when_empty=True) as plane:
        assert await plane.restore(present(a=[], b=[""]), [A, B], changed=()) == []
        assert have(plane) == {"b": [""]}
        assert plane.ready()
        rows = {row["name"]: row for row in plane.registry.index()}
        assert rows["a"] == {"name": "a", "state": "UNAVAILABLE", "reason": "unloaded"}
        with pytest.raises(NotFound, match=r"model 'a' is not loaded \(unloaded\)"):
            plane.registry.find("a")
        await plane.load("a")
        assert have(plane) == {"a": [""], "b": [""]}


async def test_a_name_that_others_do_not_know_is_not_listed():
    async with plane_of(Models()) as plane:
        assert await plane.restore(present(b=[""]), [A, B], changed=()) == []
        assert [row["name"] for row in plane.registry.index()] == ["b"]


@pytest.mark.parametrize("strict", [True, False])
async def test_what_a_start_could_not_load_is_listed_and_missing_unless_others_have_it(strict: bool):
    async with plane_of(Models(), strict_readiness=strict) as plane:
        broken = {"a": "no such file", "b": "no such file either"}
        assert await plane.restore(present(b=[""]), [B], changed=(), broken=broken) == []
        rows = {row["name"]: (row["state"], row["reason"]) for row in plane.registry.index()}
        assert rows == {"a": ("UNAVAILABLE", "no such file"), "b": ("READY", "")}
        assert plane.ready() is not strict


async def test_files_that_are_not_those_of_the_others_are_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    (tmp_path / "model.bin").write_bytes(b"one")
    settings = [ModelSettings(name=name, model_dir=tmp_path) for name in ("a", "b")]
    async with plane_of(Models(), *settings) as plane:
        old = plane.registry.find("a")
        files = dict(old.files)
        same = present(a={"": files}, b={"": files})
        (tmp_path / "later.txt").write_text("beside them")
        assert await plane.restore(same, settings, changed=["a"]) == []
        new = plane.registry.find("a")
        assert new is not old
        (tmp_path / "model.bin").write_bytes(b"two")
        assert await plane.restore(same, settings, changed=["a"]) == [
            "model 'a': its files have changed since the others loaded them; load it by request"
        ]
        assert plane.registry.find("a") is new
        await plane.load("a")
        assert plane.registry.find("a") is not new
