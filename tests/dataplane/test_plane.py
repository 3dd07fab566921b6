"""What a request means: checks, answers, errors, schedule policy, classification, V1, health."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import numpy as np
import pytest

from dataplane_support import Doubler, Echo, model_of, outcome, outcomes, request_of, rows_of, serving
from serinus import InferRequest, InferResponse, Model, ModelSettings, RequestedOutput, Tensor, TensorSpec
from serinus.errors import (
    InvalidInput,
    ModelFailed,
    NotFound,
    NotReady,
    Overloaded,
    SerinusError,
    TimedOut,
)
from serinus.settings import BatchSettings


async def test_requests_submitted_together_are_predicted_together_and_each_gets_its_own_rows():
    async with serving(Doubler) as plane:
        model_of(plane).sizes.clear()
        answers = await outcomes(plane, *(rows_of(i, 1 + i % 3, id=str(i)) for i in range(12)))
        assert model_of(plane).sizes == [24]
        for i, answer in enumerate(answers):
            assert isinstance(answer, InferResponse)
            assert answer.id == str(i)
            assert answer.outputs[0].shape == (1 + i % 3, 2)
            assert answer.outputs[0].data.tolist() == [[2 * i, 2 * i]] * (1 + i % 3)


@pytest.mark.parametrize("execution", ["inline", "thread"])
async def test_only_the_bad_request_of_a_batch_fails_and_its_traceback_is_logged_once(execution: Any, caplog: Any):
    async with serving(Doubler, ModelSettings(name="m", execution=execution)) as plane:
        answers = await outcomes(plane, rows_of(1), rows_of(13), rows_of(2), rows_of(13))
    assert [type(answer) for answer in answers] == [InferResponse, ModelFailed, InferResponse, ModelFailed]
    assert str(answers[1]) == "model 'm' failed to predict; the server's log has the details"
    assert [record.message for record in caplog.records if record.exc_info] == ["model 'm' failed: ValueError: unlucky"]


async def test_done_is_never_called_before_submit_returns():
    async with serving(Doubler) as plane:
        told: list[Any] = []
        plane.infer_nowait(rows_of(1), told.append)
        plane.infer_nowait(rows_of(1, name="nobody"), told.append)
        assert told == []
        while len(told) < 2:
            await asyncio.sleep(0)


async def test_a_cancelled_ticket_is_not_told_even_when_the_request_was_refused():
    async with serving(Doubler) as plane:
        told: list[Any] = []
        plane.infer_nowait(rows_of(1), told.append).cancel()
        plane.infer_nowait(rows_of(1, name="nobody"), told.append).cancel()
        await outcome(plane, rows_of(2))
        assert told == []
        assert plane.statistics("m")[0]["inference_stats"]["fail"]["count"] == 1


async def test_one_transports_mistake_does_not_keep_others_from_their_answers(caplog: Any):
    async with serving(Doubler) as plane:

        def broken(answer: Any) -> None:
            raise RuntimeError("a bug in a transport")

        plane.infer_nowait(rows_of(1), broken)
        assert isinstance(await outcome(plane, rows_of(2)), InferResponse)
    assert "a bug in a transport" in caplog.text


class Pair(Model):
    """Two inputs, one of them optional, two outputs, one of them optional."""

    inputs = (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", (-1,), optional=True))
    outputs = (
        TensorSpec("s", "FP32", (-1,), labels=("one", "two")),
        TensorSpec("t", "FP32", (-1, 3), optional=True),
        TensorSpec("w", "BYTES", (-1,)),
    )

    def predict(self, inputs, call):
        rows = len(inputs["a"])
        answer = {"s": inputs["a"].sum(axis=1), "w": np.array([b"w"] * rows, object)}
        if call.outputs and "t" in call.outputs:
            answer["t"] = np.tile(np.array([0.5, 2.0, 1.0], np.float32), (rows, 1))
        return answer


A, B = np.ones((2, 2), np.float32), np.ones(2, np.int64)

REFUSED = {
    "missing": (request_of(b=B), "input 'a' is missing; model 'm' takes 'a', 'b', got 'b'"),
    "unknown": (request_of(a=A, c=B), "input 'c' is not one of model 'm'; its inputs are 'a', 'b'"),
    "twice": (InferRequest("m", [Tensor.of("a", A), Tensor.of("a", A)]), "input 'a' is given twice"),
    "nothing": (InferRequest("m", []), "input 'a' is missing; model 'm' takes 'a', 'b', got none"),
    "datatype": (request_of(a=A.astype(np.float64)), "input 'a': datatype is FP64, the model takes FP32"),
    "rank": (request_of(a=np.ones(2, np.float32)), "shape [2] has 1 dimensions, the model takes 2: [-1, 2]"),
    "dimension": (request_of(a=np.ones((2, 3), np.float32)), "shape [2, 3] has 3 in dimension 1, the model takes 2"),
    "rows": (request_of(a=A, b=np.ones(3, np.int64)), "input 'b' has 3 rows, input 'a' has 2"),
    "output": (request_of(a=A, outputs=["z"]), "output 'z' is not one of model 'm'; its outputs are 's', 't', 'w'"),
    "output twice": (request_of(a=A, outputs=["s", "s"]), "output 's' is asked for twice"),
    "timeout": (
        InferRequest("m", [Tensor.of("a", A)], parameters={"timeout": "soon"}),
        "parameter 'timeout' is the string 'soon'",
    ),
    "timeout below 0": (
        InferRequest("m", [Tensor.of("a", A)], parameters={"timeout": -1}),
        "parameter 'timeout' is -1",
    ),
    "priority": (InferRequest("m", [Tensor.of("a", A)], parameters={"priority": 1.5}), "parameter 'priority' is 1.5"),
    "priority bool": (
        InferRequest("m", [Tensor.of("a", A)], parameters={"priority": True}),
        "parameter 'priority' is true",
    ),
    "classes": (request_of(a=A, outputs=[RequestedOutput("s", {"classification": "x"})]), "'classification' is"),
    "classes of text": (request_of(a=A, outputs=[RequestedOutput("w", {"classification": 1})]), "needs numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_request_that_does_not_fit_is_refused_by_name(case: str, caplog: Any):
    request, message = REFUSED[case]
    async with serving(Pair) as plane:
        good, refused = await outcomes(plane, request_of(a=A), request)
    assert isinstance(good, InferResponse)
    assert isinstance(refused, InvalidInput)
    assert message in str(refused)
    assert not [record for record in caplog.records if record.exc_info]


async def test_optional_inputs_and_outputs_make_groups_of_their_own():
    async with serving(Pair) as plane:
        plain, with_b, with_t = await outcomes(
            plane, request_of(a=A), request_of(a=A, b=B), request_of(a=A, outputs=["t", "s"])
        )
        assert plane.statistics("m")[0]["execution_count"] == 3
    assert [output.name for output in plain.outputs] == ["s", "w"]
    assert [output.name for output in with_b.outputs] == ["s", "w"]
    assert [output.name for output in with_t.outputs] == ["t", "s"]


async def test_parameters_that_differ_are_not_batched_and_those_of_the_server_do_not_matter():
    seen: list[Any] = []

    class Asks(Doubler):
        def predict(self, inputs, call):
            seen.append((len(inputs["x"]), dict(call.parameters)))
            return super().predict(inputs, call)

    async with serving(Asks, ModelSettings(name="m", warmup=False)) as plane:
        requests = [
            rows_of(1),
            rows_of(2, parameters={"timeout": 10_000_000, "priority": 2, "binary_data_output": True}),
            rows_of(3, parameters={"k": 1}),
            rows_of(4, parameters={"k": True}),
            rows_of(5, parameters={"k": 1, "timeout": 10_000_000}),
        ]
        answers = await outcomes(plane, *requests)
    assert [float(answer.outputs[0].data[0, 0]) for answer in answers] == [2, 4, 6, 8, 10]
    assert seen == [(2, {}), (2, {"k": 1}), (1, {"k": True})]
    assert [type(parameters.get("k")) for _, parameters in seen] == [type(None), int, bool]


async def test_a_model_without_specs_takes_anything_and_batches_what_is_alike():
    async with serving(Echo) as plane:
        words = np.array([b"a", b"bc"], object)
        answers = await outcomes(
            plane,
            request_of(w=words),
            request_of(w=words[:1]),
            request_of(w=np.ones((2, 2))),
            request_of(b=np.ones(1, np.int8), a=np.ones(1, np.float16)),
            request_of(a=np.ones(1, np.float16), b=np.ones(1, np.int8)),
        )
        assert plane.statistics("m")[0]["execution_count"] == 3
    assert answers[0].outputs[0].datatype == "BYTES"
    assert answers[0].outputs[0].data.tolist() == [b"a", b"bc"]
    assert answers[1].outputs[0].data.tolist() == [b"a"]
    assert answers[3].output("a").datatype == "FP16"


async def test_a_scalar_has_no_rows():
    async with serving(Echo) as plane:
        assert "shape [] has no rows" in str(await outcome(plane, request_of(x=np.float32(1))))


@pytest.mark.parametrize("declared", [True, False])
async def test_what_numpy_makes_of_a_scalar_is_answered_as_a_tensor_of_shape_nothing(declared: bool):
    class Twice(Model):
        batchable = False
        inputs = (TensorSpec("x", "FP32", ()),) if declared else ()
        outputs = (TensorSpec("y", "FP32", ()),) if declared else ()

        def predict(self, inputs, call):
            return {"y": inputs["x"] * 2}  # a np.float32

    async with serving(Twice) as plane:
        answer = await outcome(plane, request_of(x=np.asarray(1.5, np.float32)))
    assert (answer.outputs[0].datatype, answer.outputs[0].shape) == ("FP32", ())
    assert answer.outputs[0].data == np.float32(3)


async def test_a_request_of_no_rows_is_answered_with_none_or_refused_but_is_never_our_fault():
    class Max(Doubler):
        def predict(self, inputs, call):
            return {"y": inputs["x"] - inputs["x"].max()}

    async with serving(Doubler) as plane:
        answer = await outcome(plane, rows_of(1, rows=0))
        assert answer.outputs[0].shape == (0, 2)
    async with serving(Max) as plane:
        good, refused = await outcomes(plane, rows_of(1), rows_of(1, rows=0))
    assert isinstance(good, InferResponse)
    assert isinstance(refused, InvalidInput)
    assert "0 rows" in str(refused)


class Lenient(Doubler):
    coerce = True
    any_input_name = True


COERCED = {
    "FP64": np.full((1, 2), 3, np.float64),
    "INT64": np.full((1, 2), 3, np.int64),
    "UINT8": np.full((1, 2), 3, np.uint8),
    "FP16": np.full((1, 2), 3, np.float16),
    "FP32": np.full((1, 2), 3, np.float32),
}


@pytest.mark.parametrize("datatype", COERCED)
async def test_a_lenient_model_takes_any_number_under_any_name_in_one_batch(datatype: str):
    async with serving(Lenient) as plane:
        model_of(plane).sizes.clear()
        answers = await outcomes(plane, rows_of(1), request_of(**{"input-0": COERCED[datatype]}))
        assert [answer.outputs[0].data.tolist() for answer in answers] == [[[2, 2]], [[6, 6]]]
        assert model_of(plane).sizes == [2]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        pytest.param(np.full((1, 2), 1e300), "a value is too large for FP32", id="overflow"),
        pytest.param(np.array([[b"1", b"2"]], object), "datatype is BYTES, the model takes FP32", id="text"),
    ],
)
async def test_a_lenient_model_refuses_what_loses_its_value(array: np.ndarray, message: str):
    async with serving(Lenient) as plane:
        assert message in str(await outcome(plane, request_of(x=array)))
        infinite = await outcome(plane, request_of(x=np.full((1, 2), np.inf)))
        assert isinstance(infinite, InferResponse)


WRONG = {
    "rows": ({"y": np.zeros((7, 2), np.float32)}, "output 'y' has shape [7, 2], its inputs had 1 rows"),
    "missing": ({}, "model 'm' did not return its output 'y'"),
    "dtype": ({"y": np.zeros((1, 2))}, "output 'y' has type float64, its metadata promises FP32"),
    "rank": ({"y": np.zeros(1, np.float32)}, "output 'y' has shape [1], its metadata promises [-1, 2]"),
    "list": ({"y": [[1.0, 2.0]]}, "output 'y' is not an array"),
    "no mapping": (np.zeros((1, 2), np.float32), "model 'm' did not return its outputs by name"),
    "none": (None, "model 'm' did not return its outputs by name"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_model_that_answers_what_it_did_not_promise_has_failed_and_the_message_names_it(case: str):
    returned, message = WRONG[case]

    class Wrong(Doubler):
        def predict(self, inputs, call):
            return returned

    async with serving(Wrong, ModelSettings(name="m", warmup=False)) as plane:
        answers = await outcomes(plane, rows_of(1), rows_of(2))
    for answer in answers:
        assert isinstance(answer, ModelFailed)
        assert message in str(answer)


@pytest.mark.parametrize("raised", [SystemExit(3), KeyError("x"), StopIteration(), MemoryError()], ids=repr)
@pytest.mark.parametrize("execution", ["inline", "thread"])
async def test_whatever_a_model_raises_it_serves_on(raised: BaseException, execution: Any):
    class Raises(Doubler):
        def predict(self, inputs, call):
            if (inputs["x"] == 5).any():
                raise raised
            return super().predict(inputs, call)

    async with serving(Raises, ModelSettings(name="m", execution=execution)) as plane:
        assert isinstance(await outcome(plane, rows_of(5)), ModelFailed)
        assert isinstance(await outcome(plane, rows_of(1)), InferResponse)


async def test_an_invalid_input_that_the_model_finds_is_the_clients_and_is_not_logged(caplog: Any):
    class Picky(Doubler):
        def predict(self, inputs, call):
            if (inputs["x"] < 0).any():
                raise InvalidInput("input 'x': row 0 is negative")
            return super().predict(inputs, call)

    async with serving(Picky) as plane:
        caplog.clear()
        good, refused = await outcomes(plane, rows_of(1), rows_of(-1))
    assert isinstance(good, InferResponse)
    assert type(refused) is InvalidInput
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_the_same_failure_again_is_counted_and_not_logged_again(caplog: Any):
    async with serving(Doubler) as plane:
        for _ in range(20):
            await outcome(plane, rows_of(13))
    assert len([record for record in caplog.records if record.exc_info]) == 1


# Schedule policy


class Held(Doubler):
    """Keeps a thread busy while its gate is closed; the loop is not."""

    execution = "thread"

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.gate = threading.Event()
        self.gate.set()  # for the warm-up

    def predict(self, inputs, call):
        assert self.gate.wait(20), "nobody opened the gate"
        return super().predict(inputs, call)


async def test_a_timeout_in_microseconds_is_a_deadline_and_neighbours_are_answered():
    async with serving(Held) as plane:
        model_of(plane).gate.clear()
        hasty = asyncio.ensure_future(outcome(plane, rows_of(1, parameters={"timeout": 1000})))
        patient = asyncio.ensure_future(outcome(plane, rows_of(2)))
        assert isinstance(await hasty, TimedOut)
        model_of(plane).gate.set()
        assert isinstance(await patient, InferResponse)
        assert model_of(plane).sizes[-1] == 2
        assert plane.statistics("m")[0]["inference_stats"]["success"]["count"] == 1


async def test_the_earlier_of_the_transports_and_the_requests_deadline_counts():
    async with serving(Held) as plane:
        model_of(plane).gate.clear()
        now = time.monotonic()
        early = await outcome(plane, rows_of(1, deadline=now + 0.001, parameters={"timeout": 60_000_000}))
        assert isinstance(early, TimedOut)
        model_of(plane).gate.set()


async def test_a_model_may_have_a_default_deadline():
    async with serving(Held, ModelSettings(name="m", batch=BatchSettings(default_timeout_s=0.001))) as plane:
        model_of(plane).gate.clear()
        assert isinstance(await outcome(plane, rows_of(1)), TimedOut)
        model_of(plane).gate.set()


async def test_a_priority_goes_before_and_one_beyond_the_levels_is_the_default():
    order: list[float] = []

    class Ordered(Held):
        def predict(self, inputs, call):
            order.append(float(inputs["x"][0, 0]))
            return super().predict(inputs, call)

    batch = BatchSettings(priority_levels=2, default_priority=2, max_batch_rows=1)
    async with serving(Ordered, ModelSettings(name="m", batch=batch, warmup=False)) as plane:
        await outcomes(
            plane,
            rows_of(1),
            rows_of(2, parameters={"priority": 9}),
            rows_of(3, parameters={"priority": 1}),
            rows_of(4, priority=1),
        )
    assert order == [3, 4, 1, 2]


async def test_a_full_queue_says_when_to_come_back():
    batch = BatchSettings(max_queue_rows=2, max_batch_rows=1)
    async with serving(Held, ModelSettings(name="m", batch=batch)) as plane:
        model_of(plane).gate.clear()
        asked = [asyncio.ensure_future(outcome(plane, rows_of(i))) for i in range(5)]
        for refused in asked[2:]:
            answer = await refused
            assert isinstance(answer, Overloaded)
            assert answer.retry_after_s > 0
        model_of(plane).gate.set()
        assert [type(await answer) for answer in asked[:2]] == [InferResponse, InferResponse]


# Classification


async def test_classes_come_as_value_index_and_label_for_each_row():
    async with serving(Pair) as plane:
        request = request_of(
            a=A, outputs=[RequestedOutput("t", {"classification": 2}), RequestedOutput("s", {"classification": 5})]
        )
        answer = await outcome(plane, request)
    assert answer.outputs[0].datatype == "BYTES"
    assert answer.outputs[0].data.tolist() == [[b"2.0:1", b"1.0:2"], [b"2.0:1", b"1.0:2"]]
    assert answer.outputs[1].data.tolist() == [[b"2.0:0:one"], [b"2.0:0:one"]]


# Health, metadata, life


async def test_a_plane_without_models_is_not_ready_unless_it_may_be_empty():
    from serinus.dataplane.plane import Plane
    from serinus.dataplane.registry import Registry

    for allowed in (False, True):
        plane = Plane(Registry(Doubler), ready_when_empty=allowed)
        assert not plane.ready()
        await plane.start([])
        assert plane.ready() is allowed
        assert plane.live()
        await plane.close()
        assert not plane.ready()


async def test_metadata_says_where_the_model_runs():
    async with serving(Doubler, ModelSettings(name="m", platform="test_npz")) as plane:
        metadata = plane.model_metadata("m")
        assert metadata.platform == "test_npz"
        assert metadata.versions == ()
        assert metadata.inputs == Doubler.inputs
        assert metadata.parameters["execution"] == "inline"
        assert metadata.parameters["predict_us"] > 0
        assert "statistics" in plane.server_metadata().extensions


async def test_a_drain_answers_what_is_in_flight_and_refuses_what_is_new():
    async with serving(Held) as plane:
        model_of(plane).gate.clear()
        early = asyncio.ensure_future(outcome(plane, rows_of(1)))
        await asyncio.sleep(0)
        plane.stop_ready()
        assert not plane.ready()
        drain = asyncio.ensure_future(plane.drain(10))
        await asyncio.sleep(0)
        assert isinstance(await outcome(plane, rows_of(2)), NotReady)
        assert not drain.done()
        model_of(plane).gate.set()
        await drain
        assert early.done()
        assert isinstance(early.result(), InferResponse)


async def test_an_unknown_model_or_version_is_not_found_and_says_what_there_is():
    async with serving(Doubler, ModelSettings(name="m", version="2")) as plane:
        unknown = await outcome(plane, rows_of(1, name="n"))
        assert isinstance(unknown, NotFound)
        assert str(unknown) == "model 'n' is not known; the models here are 'm'"
        version = await outcome(plane, rows_of(1, model_version="3"))
        assert isinstance(version, NotFound)
        assert str(version) == "model 'm' has no version '3'; its versions are '2'"
        answer = await outcome(plane, rows_of(1, model_version="2"))
        assert answer.model_version == "2"


async def test_a_model_that_does_not_load_ends_the_start_with_its_reason():
    class Broken(Doubler):
        def load(self):
            raise SerinusError("model.ubj: the file is empty")

    with pytest.raises(SerinusError, match="the file is empty"):
        async with serving(Broken):
            pass
