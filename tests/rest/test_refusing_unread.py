"""A model that lets nobody in refuses requests before they are decoded, over REST and gRPC, and counts each."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from types import FrameType
from typing import Any

import numpy as np
import orjson
import pytest

import serinus
from serinus import Call, Model, ModelSettings, TensorSpec
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.protocol import _open_inference_pb2 as pb
from serinus.protocol.rest_codec import RestCodec
from serinus.server.grpc.answers import Failure
from serinus.server.grpc.service import Service
from serinus.server.http.exchange import Exchange, Headers
from serinus.server.rest.app import RestApp
from serinus.settings import BatchSettings, ServerSettings
from waiting import until

MOST_CALLS = 12
"""Of functions of the library, from a complete request to the bytes of its refusal; decoding and words took 41."""
GOOD = orjson.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})


class Held(Model):
    """Answers when it is let."""

    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)
    execution = "thread"
    batchable = False

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.let = threading.Event()
        self.let.set()  # for warm-up

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        self.let.wait(60)
        return {"y": inputs["x"]}


class Asked(Exchange):
    """A POST of a body to a path, and what is answered."""

    __slots__ = ("answers", "fields")

    def __init__(self, body: bytes, target: bytes, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(b"POST", target, Headers([(b"host", b"a"), *headers]), body)
        self.answers: list[tuple[int, bytes]] = []
        self.fields: dict[bytes, bytes] = {}

    def respond(self, status: int, content_type: str, chunks: Any, headers: Any = ()) -> None:
        self.answers.append((status, b"".join(bytes(chunk) for chunk in chunks)))
        self.fields = dict(headers)


class Told:
    """A gRPC call, and how it ends."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []

    def respond(self, payload: bytes, metadata: Any) -> None:
        raise AssertionError("it was answered")

    def fail(self, failure: Failure) -> None:
        self.failures.append(failure)


class Served:
    """A model behind both transports."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        model = plane.registry.find("m").model
        assert isinstance(model, Held)
        self.model = model
        self.app = RestApp(
            plane, metrics=plane.metrics, render_metrics=plane.metrics.render, codec=RestCodec(), body_bytes=1 << 20
        )
        self.service = Service(plane, ServerSettings(), metrics=plane.metrics)

    @property
    def rejected(self) -> int:
        return self.plane.registry.find("m").statistics.failures.get("rejected", 0)

    def ask(self, body: bytes = GOOD, target: bytes = b"/v2/models/m/infer", *headers: tuple[bytes, bytes]) -> Asked:
        asked = Asked(body, target, *headers)
        self.app(asked)
        return asked

    async def answer(self, *request: Any) -> Asked:
        asked = self.ask(*request)
        await until(lambda: asked.answers)
        return asked

    def call(self, message: pb.ModelInferRequest) -> Told:
        told = Told()
        self.service.infer(message.SerializeToString(), {}, None, told)
        return told

    async def fill(self) -> Asked:
        """Have one request run and two wait, and one be refused."""
        for _ in range(3):
            self.ask()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return await self.answer()


@contextlib.asynccontextmanager
async def served(**batch: Any) -> AsyncIterator[Served]:
    plane = Plane(Registry(Held))
    settings = ModelSettings(name="m", batch=BatchSettings(max_queue_rows=2, **batch))

    try:
        await plane.start([settings])
        made = Served(plane)
        made.model.let.clear()
        try:
            yield made
        finally:
            made.model.let.set()
    finally:
        await plane.close()


def message_of(name: str = "m", version: str = "") -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", shape=[1, 2], datatype="FP32")
    tensor.contents.fp32_contents.extend([1, 2])
    return pb.ModelInferRequest(model_name=name, model_version=version, inputs=[tensor])


async def test_whoever_comes_to_a_full_model_is_refused_at_once_with_the_same_words_and_counted():
    async with served() as server:
        first = await server.fill()
        status, body = first.answers[0]
        assert (status, server.rejected) == (429, 1)
        for count in range(2, 12):
            asked = server.ask()
            assert asked.answers == [(status, body)], "in the same turn of the loop"
            assert asked.fields[b"Retry-After"] == first.fields[b"Retry-After"]
            assert server.rejected == count
        told = server.call(message_of())
        assert told.failures[0].message == orjson.loads(body)["error"]
        assert (told.failures[0].code, server.rejected) == (8, 12)
        assert dict(told.failures[0].trailing)["retry-after"] == first.fields[b"Retry-After"].decode()
        assert server.plane.statistics("m")[0]["inference_stats"]["fail"]["count"] == 12


async def test_a_refusal_costs_no_decoding():
    async with served() as server:
        await server.fill()
        folder = str(serinus.__path__[0])
        calls: Counter[str] = Counter()

        def count(frame: FrameType, event: str, _: Any) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(folder):
                calls[f"{frame.f_code.co_filename[len(folder) :]}:{frame.f_code.co_name}"] += 1

        server.ask()
        sys.setprofile(count)
        try:
            asked = server.ask(b"[" * 100_000)
        finally:
            sys.setprofile(None)
        assert asked.answers[0][0] == 429
        assert calls.total() <= MOST_CALLS, dict(calls)
        assert not [name for name in calls if "codec" in name or "checks" in name], dict(calls)


async def test_as_soon_as_there_is_room_the_next_request_is_let_in():
    async with served() as server:
        await server.fill()
        assert server.ask().answers
        server.model.let.set()
        await until(lambda: not server.plane.registry.find("m").in_flight)
        assert (await server.answer()).answers[0][0] == 200
        assert not server.plane.full


async def test_what_it_says_is_said_anew_while_it_goes_on(monkeypatch: pytest.MonkeyPatch):
    async with served() as server:
        first = await server.fill()
        monkeypatch.setattr("serinus.dataplane.batching.admission._STALE_S", -1.0)
        asked = server.ask()
        assert not asked.answers, "the long way"
        await until(lambda: asked.answers)
        assert asked.answers[0][0] == first.answers[0][0] == 429
        assert server.rejected == 2


async def test_the_request_of_a_model_with_levels_of_priority_is_read():
    async with served(priority_levels=2, default_priority=2) as server:
        await server.fill()
        high = server.ask(orjson.dumps({**orjson.loads(GOOD), "parameters": {"priority": 1}}))
        await asyncio.sleep(0)
        assert not high.answers, "one of the lower level leaves for it"
        assert server.rejected == 2


@pytest.mark.parametrize("case", ["a version", "another model", "after unloading"])
async def test_what_is_not_for_that_model_is_not_refused_for_it(case: str):
    async with served() as server:
        await server.fill()
        target = {"a version": b"/v2/models/m/versions/9/infer", "another model": b"/v2/models/other/infer"}.get(case)
        if case == "after unloading":
            server.model.let.set()
            await server.plane.unload("m")
        asked = await server.answer(GOOD, target or b"/v2/models/m/infer")
        assert asked.answers[0][0] in (400, 404), asked.answers


async def test_over_grpc_a_version_or_another_order_of_fields_is_read():
    async with served() as server:
        await server.fill()
        before = server.rejected
        told = server.call(message_of(version="9"))
        await until(lambda: told.failures)
        assert told.failures[0].code == 5
        message = message_of().SerializeToString()
        told = Told()
        server.service.infer(message[3:] + message[:3], {}, None, told)
        await until(lambda: told.failures)
        assert (told.failures[0].code, server.rejected) == (8, before + 1)


async def test_a_refused_request_is_given_its_id_back():
    async with served() as server:
        await server.fill()
        asked = server.ask(GOOD, b"/v2/models/m/infer", (b"x-request-id", b"seven"))
        assert asked.answers[0][0] == 429
        assert asked.fields[b"X-Request-Id"] == b"seven"
