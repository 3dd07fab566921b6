"""Where a hosted class runs: on the server's event loop, in threads, or on a loop of its own, and how that changes."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from hosts_support import REST, here, hosted, serving
from serinus.errors import (
    InvalidInput,
    SerinusError,
)
from serinus.hosts import build_model
from serinus.hosts.loop_thread import asks_for_loop
from serinus.hosts.method_executor import MethodExecutor
from serinus.protocol.types import InferRequest, Tensor
from serinus.settings import ModelSettings
from waiting import turns, until

kserve = Deferred("kserve")
kserve_classes = Deferred("kserve_classes")


async def test_a_blocking_predict_does_not_block_the_event_loop():
    async with serving(here("Blocking")) as plane:
        kserve_classes.GATE.clear()
        slow = asyncio.ensure_future(plane.infer(InferRequest("m", [Tensor.of("s", np.zeros(1))], headers=REST)))
        await until(kserve_classes.ENTERED.is_set)
        await turns()  # the loop is free while the model blocks
        assert not slow.done()
        kserve_classes.GATE.set()
        assert (await slow).outputs[0].data[0].startswith(b"kserve-m")


async def test_synchronous_methods_that_ask_for_the_running_loop_have_one_that_they_may_block():
    async with serving(here("SpawningPredictor")) as plane:
        assert await plane.predict_v1("m", b'{"instances": [1]}') == {"predictions": [1]}
        await plane.predict_v1("m", b'{"instances": [1]}')
        ((thread, loop), second) = hosted(plane).logged
        assert second == (thread, loop)
        assert thread != threading.get_ident()
        assert type(loop).__module__.startswith("asyncio")
        stages = plane.registry.servables()[0].statistics.stages
        assert sum(stages["preprocess"].counts) == 2


async def test_a_transformer_on_a_loop_of_its_own_reaches_the_model_in_its_process():
    pixels = Tensor.of("pixels", np.float32([[100, 150, 60]]))
    async with serving(here("Pixels"), transformer=here("Spawning")) as plane:
        response = await plane.infer(InferRequest("m", [pixels], headers=REST))
        v1 = await plane.predict_v1("m", b'{"instances": [[1, 2, 3]]}')
        assert len(hosted(plane).logged) == 2
    assert response.outputs[0].data.tolist() == [310.0]
    assert v1 == {"predictions": [6.0]}


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        ("Spawning", True),
        ("SpawningPredictor", True),
        ("AsyncStages", False),
        ("Engined", False),
        ("DocumentedPredictor", False),
    ],
)
def test_only_classes_whose_requests_meet_synchronous_code_that_asks_are_given_a_loop(name: str, asks: bool):
    assert asks_for_loop(getattr(kserve_classes, name)) is asks


async def test_an_unload_does_not_wait_for_a_class_that_blocks_its_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("serinus.hosts.kserve.kserve_host._STOP_S", 0.05)
    monkeypatch.setattr("serinus.hosts.loop_thread._JOIN_S", 0.05)
    model: Any = build_model(ModelSettings(name="m", implementation=here("Stuck")))
    model.load()
    await model.start()
    asked = asyncio.ensure_future(model.predict_v1({"instances": []}, {}))
    await until(lambda: model.hosted.logged or hasattr(model.hosted, "task"))
    await asyncio.get_running_loop().run_in_executor(None, model.unload)
    model.hosted.let_go.set()
    asked.cancel()
    assert "is left at it" in caplog.text


async def test_a_stream_is_made_on_the_loop_of_its_class():
    async with serving(here("SpawningTeller")) as plane:
        answer = await plane.predict_v1("m", b'{"instances": ["a", "b"]}')
        told = [piece.split() async for piece in answer.document]
        model = hosted(plane)
        await model.task
        assert told == [[text, str(model.logged[0][0]).encode()] for text in (b"a", b"b")]
        assert told[0][1] != str(threading.get_ident()).encode()
        answer = await plane.predict_v1("m", b'{"instances": ["a", "fail"]}')
        assert (await anext(answer.document)).startswith(b"a ")
        with pytest.raises(InvalidInput, match="not that"):
            await anext(answer.document)
        answer = await plane.predict_v1("m", json.dumps({"instances": ["a"] * 1000}).encode())
        await anext(answer.document)
        await answer.document.aclose()
        await until(lambda: model.closed)


async def test_an_engine_runs_for_as_long_as_its_model_is_loaded():
    async with serving(here("Engined")) as plane:
        answers = [plane.predict_v1("m", b'{"instances": [%d]}' % value) for value in (1, 2, 3)]
        assert await asyncio.gather(*answers) == [{"predictions": [2 * value]} for value in (1, 2, 3)]
        model = hosted(plane)
        assert not model.ended
    assert model.ended


async def test_a_model_whose_engine_does_not_start_is_not_served():
    with pytest.raises(SerinusError, match="does not load: no such device"):
        async with serving(here("BrokenEngine")):
            pass


async def test_a_quick_predict_moves_to_the_loop_and_a_slow_one_moves_it_back():
    async with serving(here("Blocking")) as plane:
        quick = InferRequest("m", [Tensor.of("s", np.array([0.0]))], headers=REST)
        for _ in range(200):
            response = await plane.infer(quick)
            if response.outputs[0].data[0] == b"MainThread":
                break
        else:
            pytest.fail("never moved to the loop")
        await plane.infer(InferRequest("m", [Tensor.of("s", np.array([0.03]))], headers=REST))
        assert (await plane.infer(quick)).outputs[0].data[0].startswith(b"kserve-m")


async def test_a_handler_that_flaps_needs_ever_more_proof():
    from concurrent.futures import ThreadPoolExecutor

    now = 0.0
    cost = 0.0

    def method() -> None:
        nonlocal now
        now += cost

    with ThreadPoolExecutor(1) as threads:
        handler = MethodExecutor(method, threads, clock=lambda: now)
        moves = []
        for _ in range(3):
            cost, calls = 1e-6, 0
            while not handler.inline:
                await handler()
                calls += 1
            moves.append(calls)
            cost = 0.5
            await handler()
            assert not handler.inline
    assert moves == [4, 8, 16]


async def test_three_strikes_send_a_handler_back_and_one_good_call_forgives():
    from concurrent.futures import ThreadPoolExecutor

    now = 0.0
    cost = 1e-6

    def method() -> None:
        nonlocal now
        now += cost

    with ThreadPoolExecutor(1) as threads:
        handler = MethodExecutor(method, threads, clock=lambda: now)
        while not handler.inline:
            await handler()
        for cost in (5e-3, 5e-3, 1e-6, 5e-3, 5e-3):  # noqa: B007 # `method` reads it
            await handler()
        assert handler.inline
        cost = 5e-3
        await handler()
        assert not handler.inline
