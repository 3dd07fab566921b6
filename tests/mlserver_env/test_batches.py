"""`max_batch_size` and `max_batch_time` of an `MLModel`: what waits is one request for the class, and nobody gets another's answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.errors import InvalidInput
from serinus.hosts import build_model
from serinus.loading import settings_from_directory
from serinus.protocol.types import InferRequest, RequestedOutput, Tensor

REST, GRPC = {"host": "a"}, {"user-agent": "grpc"}


@contextlib.asynccontextmanager
async def serving(folder: Path, rows: int = 8, seconds: float = 0.2) -> AsyncIterator[Plane]:
    document = {"name": "m", "implementation": "models.Merged", "max_batch_size": rows, "max_batch_time": seconds}
    (folder / "model-settings.json").write_text(json.dumps(document))
    plane = Plane(Registry(build_model))
    await plane.start(settings_from_directory(folder, allow_implementation=["models.*"]))
    try:
        yield plane
    finally:
        await plane.close()


def request(*rows: Any, headers: dict[str, str] = REST, dtype: Any = np.float64, **more: Any) -> InferRequest:
    return InferRequest("m", [Tensor.of("x", np.array(rows, dtype))], headers=headers, **more)


def seen(plane: Plane) -> list[int]:
    return plane.registry.find("m").model.hosted.seen  # type: ignore[attr-defined] # the host's and the class's own


async def together(plane: Plane, *requests: InferRequest) -> list[Any]:
    answers = await asyncio.gather(*map(plane.infer, requests), return_exceptions=True)
    return [answer if isinstance(answer, Exception) else answer.outputs[0].data.tolist() for answer in answers]


async def test_requests_that_wait_are_one_for_the_class(tmp_path: Path):
    async with serving(tmp_path) as plane:
        requests = [request([n, n + 1], id=str(n)) for n in range(5)]
        answers = await asyncio.gather(*map(plane.infer, requests))
        assert [answer.id for answer in answers] == ["0", "1", "2", "3", "4"]
        assert [answer.outputs[0].data.tolist() for answer in answers] == [[[2 * n, 2 * n + 2]] for n in range(5)]
        assert seen(plane) == [5]


async def test_a_full_batch_does_not_wait_and_a_large_request_is_alone(tmp_path: Path):
    async with serving(tmp_path, rows=4, seconds=60) as plane:
        answers = await together(
            plane, request([1], [2]), request([3]), request([4]), request(*[[n] for n in range(9)])
        )
        assert answers == [[[2], [4]], [[6]], [[8]], [[2 * n] for n in range(9)]]
        assert sorted(seen(plane)) == [4, 9]
        # What does not fit any more goes into the next one.
        pending = asyncio.ensure_future(together(plane, request([1], [2], [3]), request([5], [6], [7]), request([8])))
        assert await pending == [[[2], [4], [6]], [[10], [12], [14]], [[16]]]
        assert sorted(seen(plane)) == [3, 4, 4, 9]


async def test_requests_of_other_forms_do_not_meet(tmp_path: Path):
    async with serving(tmp_path) as plane:
        answers = await together(
            plane,
            request([1, 2]),
            request([1, 2, 3]),
            request([1, 2], dtype=np.int64),
            request([1, 2], headers=GRPC),
            request([1, 2], parameters={"a": 1}),
            request([1, 2], outputs=[RequestedOutput("y")]),
            request([3, 4]),
        )
        assert answers == [[[2, 4]], [[2, 4, 6]], *[[[2, 4]]] * 4, [[6, 8]]]
        assert sorted(seen(plane)) == [1, 1, 1, 1, 1, 2]


async def test_one_that_fails_fails_alone(tmp_path: Path):
    async with serving(tmp_path) as plane:
        good, bad, other = await together(plane, request([1]), request([13]), request([3]))
        assert (good, other) == ([[2]], [[6]])
        assert isinstance(bad, InvalidInput)
        assert "13 is refused" in str(bad)
        assert sorted(seen(plane)) == [1, 1, 1, 3]


async def test_an_answer_of_other_rows_is_nobodys(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with serving(tmp_path) as plane:
        plane.registry.find("m").model.hosted.mode = "sum"  # type: ignore[attr-defined] # as above
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert await together(plane, request([1], [2]), request([5])) == [[[3]], [[5]]]
        assert caplog.text.count("predicted alone") == 1


async def test_a_request_whose_client_has_gone_is_not_predicted(tmp_path: Path):
    async with serving(tmp_path) as plane:
        leaving = asyncio.ensure_future(plane.infer(request([1])))
        staying = asyncio.ensure_future(plane.infer(request([2])))
        await asyncio.sleep(0.05)  # within the delay of MLServer's batch, whose queue nothing outside can see
        leaving.cancel()
        assert (await staying).outputs[0].data.tolist() == [[4]]
        assert seen(plane) == [1]


async def test_requests_without_rows_are_left_to_the_class(tmp_path: Path):
    async with serving(tmp_path, seconds=60) as plane:
        nothing = InferRequest("m", [Tensor.of("x", np.zeros((0, 2)))], headers=REST)
        assert await together(plane, nothing) == [[]]
        assert seen(plane) == [0]
