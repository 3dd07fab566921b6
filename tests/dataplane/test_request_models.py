"""Models that are not batchable, and models that answer whole requests, behind the plane."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import orjson
import pytest

from dataplane_support import Doubler, model_of, outcome, outcomes, request_of, rows_of, serving
from serinus import InferRequest, InferResponse, Model, ModelSettings, RequestedOutput, RequestModel, Tensor, TensorSpec
from serinus.errors import (
    InvalidInput,
    ModelFailed,
    NotFound,
    NotReady,
    NotSupported,
    TimedOut,
)
from waiting import turns, until


async def test_a_model_that_is_not_batchable_may_change_the_number_of_rows():
    class Summary(Model):
        batchable = False
        inputs = (TensorSpec("x", "FP32", (-1, 2)),)
        outputs = (TensorSpec("mean", "FP32", (2,)),)

        def predict(self, inputs, call):
            return {"mean": inputs["x"].mean(axis=0)}

    async with serving(Summary) as plane:
        one, two = await outcomes(plane, rows_of(1, 3), rows_of(5, 7))
    assert one.outputs[0].data.tolist() == [1, 1]
    assert two.outputs[0].data.tolist() == [5, 5]


async def test_a_model_whose_first_dimension_is_fixed_is_not_batched():
    class Fixed(Doubler):
        inputs = (TensorSpec("x", "FP32", (1, 2)),)
        outputs = (TensorSpec("y", "FP32", (1, 2)),)

    async with serving(Fixed) as plane:
        model_of(plane).sizes.clear()
        await outcomes(plane, rows_of(1), rows_of(2))
        assert model_of(plane).sizes == [1, 1]


async def test_a_request_to_a_model_without_batches_is_one_inference_however_long_it_is():
    """Seconds of sound are not rows: three requests filled the queue of 65536, and counted as 100 000 inferences each."""

    class Sound(Model):
        batchable = False
        execution = "thread"
        inputs = (TensorSpec("x", "FP32", (-1,)),)
        outputs = (TensorSpec("y", "FP32", (1,)),)

        def predict(self, inputs, call):
            return {"y": inputs["x"].sum(keepdims=True)}

    async with serving(Sound) as plane:
        sound = np.ones(100_000, np.float32)
        answers = await outcomes(plane, *[request_of(x=sound) for _ in range(5)])
        assert [answer.outputs[0].data.tolist() for answer in answers] == [[100_000]] * 5
        statistics = plane.statistics("m")[0]
    assert (statistics["inference_count"], statistics["execution_count"]) == (5, 5)
    assert [batch["batch_size"] for batch in statistics["batch_stats"]] == [1]


class Whole(RequestModel):
    """Answers its headers; speaks V1; 13 raises; waits where it is told to."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.cancelled = 0
        self.at_work = 0
        self.most = 0
        self.healthy = True

    async def is_ready(self) -> bool:
        return self.healthy

    async def infer(self, request):
        if "wait" in request.parameters or "turns" in request.parameters:
            self.at_work += 1
            self.most = max(self.most, self.at_work)
            try:
                await (asyncio.Event().wait() if "wait" in request.parameters else turns(request.parameters["turns"]))
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.at_work -= 1
        if "fail" in request.parameters:
            raise ValueError("a bug")
        who = np.array([request.headers.get("who", "").encode()], object)
        return InferResponse("", [Tensor.of("who", who), Tensor.of("n", np.ones(1))])

    async def predict_v1(self, payload, headers):
        return {"predictions": payload["rows"], "who": headers.get("who")} if "rows" in payload else None


async def test_a_request_model_sees_the_headers_and_its_answer_is_completed():
    async with serving(Whole) as plane:
        request = InferRequest("m", [], id="7", headers={"who": "me"}, outputs=[RequestedOutput("who")])
        answer = await outcome(plane, request)
    assert (answer.model_name, answer.id) == ("m", "7")
    assert [output.data.tolist() for output in answer.outputs] == [[b"me"]]


async def test_a_request_models_failures_are_ours_and_unknown_outputs_the_clients():
    async with serving(Whole) as plane:
        assert isinstance(await outcome(plane, InferRequest("m", [], parameters={"fail": 1})), ModelFailed)
        refused = await outcome(plane, InferRequest("m", [], outputs=[RequestedOutput("zz")]))
        assert "output 'zz' is not one of model 'm'; its outputs are 'who', 'n'" in str(refused)


async def test_a_request_models_task_ends_with_its_deadline_and_with_its_client():
    async with serving(Whole) as plane:
        late = await outcome(plane, InferRequest("m", [], parameters={"wait": True, "timeout": 5000}))
        assert isinstance(late, TimedOut)
        while model_of(plane).at_work:
            await asyncio.sleep(0)
        pending = plane.infer_nowait(InferRequest("m", [], parameters={"wait": True}), lambda _: pytest.fail("told"))
        while not model_of(plane).at_work:
            await asyncio.sleep(0)
        pending.cancel()
        while model_of(plane).at_work:
            await asyncio.sleep(0)
        assert model_of(plane).cancelled == 2


async def test_a_request_models_concurrency_is_bounded():
    async with serving(Whole, ModelSettings(name="m", max_concurrency=3)) as plane:
        requests = [InferRequest("m", [], parameters={"turns": 20}) for _ in range(10)]
        answers = await outcomes(plane, *requests)
        assert {type(answer) for answer in answers} == {InferResponse}
        assert model_of(plane).most == 3


async def test_cancelling_the_task_that_awaits_cancels_the_request():
    async with serving(Whole) as plane:
        task = asyncio.ensure_future(plane.infer(InferRequest("m", [], parameters={"wait": True})))
        while not model_of(plane).at_work:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while model_of(plane).at_work:
            await asyncio.sleep(0)
        assert model_of(plane).cancelled == 1


async def test_a_v1_body_reaches_a_model_that_speaks_v1_and_becomes_v2_for_others():
    async with serving(Whole) as plane:
        answer = await plane.predict_v1("m", b'{"rows": [1]}', headers={"who": "me"})
        assert answer == {"predictions": [1], "who": "me"}
        with pytest.raises(NotSupported, match="does not explain"):
            await plane.explain_v1("m", b'{"instances": [1]}')
    async with serving(Doubler) as plane:
        answer = await plane.predict_v1("m", b'{"instances": [[1, 2], [3, 4]]}')
        assert isinstance(answer, bytes)
        assert orjson.loads(answer) == {"predictions": [[2, 4], [6, 8]]}
        with pytest.raises(InvalidInput):
            await plane.predict_v1("m", b"[]")
        with pytest.raises(NotFound):
            await plane.predict_v1("n", b"{}")


async def test_readiness_follows_what_a_request_model_says_of_itself(monkeypatch: Any):
    monkeypatch.setattr("serinus.dataplane.servables.request_servable._HEALTH_INTERVAL_S", 0.001)
    async with serving(Whole) as plane:
        assert plane.ready()
        assert plane.model_ready("m")
        model_of(plane).healthy = False
        await until(lambda: not plane.ready())
        assert not plane.model_ready("m")
        model_of(plane).healthy = True
        await until(lambda: plane.ready())


async def test_a_drain_ends_at_its_timeout_and_closing_answers_the_rest():
    async with serving(Whole) as plane:
        stuck = asyncio.ensure_future(outcome(plane, InferRequest("m", [], parameters={"wait": True})))
        await asyncio.sleep(0)
        await plane.drain(0.01)
        assert not stuck.done()
        await plane.close()
        assert isinstance(await stuck, NotReady)
