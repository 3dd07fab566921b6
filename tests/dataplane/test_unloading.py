"""What is told of a model while it leaves, and of what becomes of its place."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from dataplane_support import Doubler, outcome, rows_of, serving
from serinus import InferResponse, ModelSettings
from serinus.dataplane.plane import Plane


class Held(Doubler):
    """A predict of 99 waits until it is let."""

    execution = "thread"
    gate = threading.Event()

    def predict(self, inputs: Any, call: Any) -> Any:
        if (inputs["x"] == 99).any():
            assert self.gate.wait(20)
        return super().predict(inputs, call)


async def begun(plane: Plane) -> asyncio.Task[Any]:
    """Send a request that is held in its predict."""
    task = asyncio.ensure_future(outcome(plane, rows_of(99)))
    while not plane.registry.find("m").batcher.running:
        await asyncio.sleep(0.001)
    return task


def told(plane: Plane) -> list[tuple[str, str, str]]:
    return [(row["name"], row["state"], row["reason"]) for row in plane.repository_index()]


async def test_a_model_that_has_left_the_repository_is_in_the_index_while_it_answers_what_it_has():
    made = type("Made", (Held,), {"gate": threading.Event()})
    there = ["m"]
    async with serving(made, unload_wait_s=0.01, index=lambda: list(there)) as plane:
        held = await begun(plane)
        there.clear()
        await plane.unload("m")
        assert told(plane) == [("m", "UNLOADING", "requests in flight are being answered")]
        made.gate.set()
        assert isinstance(await held, InferResponse)
        while plane.registry._retiring:
            await asyncio.sleep(0.001)
        assert told(plane) == []


async def test_a_model_that_did_not_load_is_told_of_though_it_is_not_in_the_repository():
    class Bad(Doubler):
        def load(self) -> None:
            raise ValueError("no such file")

    async with serving(Doubler, index=list) as plane:
        plane.registry._factory = Bad
        plane.registry._preparation = None
        with pytest.raises(Exception, match="no such file"):
            await plane.registry.add(ModelSettings(name="bad"))
        assert told(plane)[1:] == [("bad", "UNAVAILABLE", "no such file")]


async def test_a_second_unload_while_the_first_one_waits_changes_nothing_of_what_is_told():
    made = type("Made", (Held,), {"gate": threading.Event()})
    async with serving(made, unload_wait_s=0.01) as plane:
        held = await begun(plane)
        for _ in range(2):
            await plane.unload("m")
            assert told(plane) == [("m", "UNLOADING", "requests in flight are being answered")]
        made.gate.set()
        await held
        while plane.registry._retiring:
            await asyncio.sleep(0.001)
        assert told(plane) == [("m", "UNAVAILABLE", "unloaded")]


async def test_a_load_during_an_unload_keeps_its_place_when_the_old_one_has_ended():
    made = type("Made", (Held,), {"gate": threading.Event()})
    async with serving(made, unload_wait_s=0.01) as plane:
        held = await begun(plane)
        await plane.unload("m")
        await plane.load("m")
        assert told(plane) == [("m", "READY", "")]
        made.gate.set()
        await held
        while plane.registry._retiring:
            await asyncio.sleep(0.001)
        assert told(plane) == [("m", "READY", "")]
        assert isinstance(await outcome(plane, rows_of(1)), InferResponse)


async def test_an_unload_waits_for_what_is_in_flight_up_to_its_limit():
    made = type("Made", (Held,), {"gate": threading.Event()})
    async with serving(made, unload_wait_s=20) as plane:
        held = await begun(plane)
        unload = asyncio.ensure_future(plane.unload("m"))
        await asyncio.sleep(0.02)  # it may end, if it does not wait
        assert not unload.done()
        made.gate.set()
        await unload
        assert isinstance(await held, InferResponse)
        assert told(plane) == [("m", "UNAVAILABLE", "unloaded")]


async def test_drain_waits_for_a_model_that_was_replaced_too():
    made = type("Made", (Held,), {"gate": threading.Event()})
    async with serving(made) as plane:
        old = plane.registry.find("m")
        held = await begun(plane)
        await plane.load("m")
        await asyncio.sleep(0)
        assert not old.accepting, "also while it ends what it has"
        drain = asyncio.ensure_future(plane.drain(20))
        await asyncio.sleep(0.02)  # it may end, if it does not wait
        assert not drain.done()
        made.gate.set()
        await drain
        assert isinstance(await held, InferResponse)
