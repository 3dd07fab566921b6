"""The two servables, asked directly: what each answers, refuses, logs and counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import pytest

from dataplane_support import Doubler, model_of, outcome, outcomes, request_of, rows_of, serving
from serinus import InferRequest, InferResponse, Model, ModelSettings, RequestedOutput, Tensor, TensorSpec
from serinus.errors import InvalidInput, ModelFailed, NotReady, NotSupported, Overloaded
from serinus.model import RequestModel, Signature, V1Answer
from serinus.settings import BatchSettings
from waiting import until

pytestmark = pytest.mark.asyncio


def arrays_of(answer: Any) -> dict[str, Any]:
    assert isinstance(answer, InferResponse), answer
    return {tensor.name: tensor.data.tolist() for tensor in answer.outputs}


# Of arrays


class Signed(Doubler):
    """Doubles; its signature `whole` sums in another output."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        spec = TensorSpec("s", "FP32", (-1,))
        self.signatures = {"whole": Signature(self.inputs, (spec,))}

    def predict(self, inputs: Mapping[str, np.ndarray], call: Any) -> Mapping[str, np.ndarray]:
        if "signature_name" in call.parameters:
            return {"s": inputs["x"].sum(axis=1)}
        return super().predict(inputs, call)


async def test_a_signatures_answers_are_held_to_its_own_outputs_and_the_default_ones_to_theirs():
    async with serving(Signed) as plane:
        plain, whole, third = await outcomes(
            plane, rows_of(1), rows_of(1, parameters={"signature_name": "whole"}), rows_of(1, parameters={"a": 1})
        )
        assert [arrays_of(each) for each in (plain, whole, third)] == [{"y": [[2, 2]]}, {"s": [2]}, {"y": [[2, 2]]}]


class TwoOutputs(Model):
    """Scores and texts by row."""

    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2), labels=("a", "b")), TensorSpec("t", "FP32", (-1,)))

    def predict(self, inputs: Mapping[str, np.ndarray], call: Any) -> Mapping[str, np.ndarray]:
        return {"y": inputs["x"], "t": inputs["x"][:, 0]}


async def test_requests_of_one_batch_get_their_own_rows_of_every_output():
    async with serving(TwoOutputs) as plane:
        first, second = await outcomes(plane, rows_of(1, 2, id="a"), rows_of(5, id="b"))
        assert arrays_of(first) == {"y": [[1, 1], [1, 1]], "t": [1, 1]}
        assert arrays_of(second) == {"y": [[5, 5]], "t": [5]}
        assert (first.id, second.id, first.model_name) == ("a", "b", "m")


async def test_a_request_whose_classes_cannot_be_made_is_refused_alone():
    async with serving(TwoOutputs) as plane:
        good = request_of(x=np.array([[3, 4]], np.float32), outputs=[RequestedOutput("y")])
        bad = request_of(x=np.array([[3, 4]], np.float32), outputs=[RequestedOutput("y", {"classification": -1})])
        classes = request_of(x=np.array([[3, 4]], np.float32), outputs=[RequestedOutput("y", {"classification": 1})])
        answers = await outcomes(plane, good, bad, classes)
        assert arrays_of(answers[0]) == {"y": [[3, 4]]}
        assert isinstance(answers[1], InvalidInput)
        assert arrays_of(answers[2]) == {"y": [[b"4.0:1:b"]]}


class Wild(Model):
    """Says nothing of its outputs, so what cannot be classified is known only afterwards."""

    inputs = (TensorSpec("x", "FP32", (-1, 2)),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Any) -> Mapping[str, np.ndarray]:
        return {"y": inputs["x"], "t": np.full(len(inputs["x"]), b"text", object)}


async def test_classes_of_what_turns_out_to_be_text_are_refused_and_the_neighbour_is_answered():
    async with serving(Wild) as plane:
        text = [RequestedOutput("t", {"classification": 1})]
        neighbour = request_of(x=np.ones((1, 2), np.float32), outputs=[RequestedOutput("t")])
        bad = request_of(x=np.ones((1, 2), np.float32), outputs=text)
        answered, refused = await outcomes(plane, neighbour, bad)
        assert arrays_of(answered) == {"t": [b"text"]}
        assert isinstance(refused, InvalidInput)
        stats = plane.statistics("m")[0]["inference_stats"]
        assert (stats["success"]["count"], stats["fail"]["count"]) == (1, 1)


async def test_a_model_of_arrays_answers_a_stream_with_its_only_response_and_explains_nothing():
    async with serving(Doubler) as plane:
        servable = plane.registry.find("m")
        assert [arrays_of(each) async for each in servable.infer_stream(rows_of(2))] == [{"y": [[4, 4]]}]
        assert (servable.stream_kind, servable.has_generate, servable.healthy, servable.batchable) == (
            "",
            False,
            True,
            True,
        )
        with pytest.raises(NotSupported, match="model 'm' does not explain its predictions"):
            await plane.explain_v1("m", b'{"instances": [[1, 2]]}')
        assert servable.read_loosely(b"{}", {}, "") is None


async def test_one_row_is_one_row_in_the_queue_and_the_queue_is_bounded_in_rows():
    settings = ModelSettings(name="m", batch=BatchSettings(max_queue_rows=4, max_delay_s=60, max_batch_rows=100))
    async with serving(Doubler, settings) as plane:
        told: list[Any] = []
        first = plane.infer_nowait(rows_of(1, 3), told.append)
        await asyncio.sleep(0)
        full = await outcome(plane, rows_of(1, 2))
        assert isinstance(full, Overloaded)
        assert plane.registry.find("m").in_flight == 1
        first.cancel()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"timeout": -1}, "parameter 'timeout' is -1; it is a whole number of microseconds below 2^63, 0 for none"),
        ({"timeout": 2**63}, "parameter 'timeout' is 9223372036854775808"),
        ({"timeout": 1.5}, "parameter 'timeout' is 1.5"),
        ({"timeout": True}, "parameter 'timeout' is true"),
        ({"priority": -1}, "parameter 'priority' is -1; it is a whole number below 2^63, 1 the highest, 0 the default"),
        ({"priority": 2**63}, "parameter 'priority' is 9223372036854775808"),
        ({"priority": "1"}, "parameter 'priority' is the string '1'"),
    ],
)
async def test_a_schedule_policy_out_of_its_range_is_refused(parameters: dict[str, Any], said: str):
    async with serving(Doubler) as plane:
        refused = await outcome(plane, rows_of(1, parameters=parameters))
        assert isinstance(refused, InvalidInput)
        assert said in str(refused)


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({}, 1),
        ({"priority": 1}, 0),
        ({"priority": 3}, 2),
        ({"priority": 4}, 1),
        ({"parameters": {"priority": 1}}, 0),
        ({"parameters": {"priority": 3}}, 2),
        ({"parameters": {"priority": 4}}, 1),
        ({"parameters": {"priority": 0}}, 1),
        ({"parameters": {"priority": 2**63 - 1, "timeout": 2**63 - 1}}, 1),
        ({"priority": 1, "parameters": {"priority": 3}}, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("factory", [Doubler, "requests"])
async def test_a_priority_is_a_level_and_one_beyond_the_levels_the_default(
    factory: Any, fields: dict[str, Any], level: int
):
    settings = ModelSettings(name="m", batch=BatchSettings(priority_levels=3, default_priority=2))
    async with serving(Whole if factory == "requests" else factory, settings) as plane:
        pending = plane.registry.find("m").infer_nowait(rows_of(1, **fields), lambda _: None)
        assert pending.level == level
        pending.cancel()


# What the log says


class Fails(Doubler):
    """Raises what it is told to."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.raises: BaseException = ValueError("a bug")

    def predict(self, inputs: Mapping[str, np.ndarray], call: Any) -> Mapping[str, np.ndarray]:
        if (inputs["x"] == 13).any():
            raise self.raises
        return super().predict(inputs, call)


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_failure_that_repeats_is_logged_once_in_ten_seconds_and_then_counted(caplog: Any):
    clock = Time()
    async with serving(Fails, ModelSettings(name="m", execution="thread"), clock=clock) as plane:

        async def fail() -> list[str]:
            caplog.clear()
            assert isinstance(await outcome(plane, rows_of(13)), ModelFailed)
            return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]

        said = ["model 'm' failed: ValueError: a bug"]
        assert await fail() == said
        clock.now += 9.9
        assert await fail() == []
        assert await fail() == []
        clock.now += 0.1
        assert await fail() == ["model 'm': 2 more failures of the same kind: ValueError: a bug", *said]
        clock.now += 10.0
        assert await fail() == said, "none in between"
        model_of(plane).raises = ValueError("another")
        assert await fail() == ["model 'm' failed: ValueError: another"]


@pytest.mark.parametrize("cause", [None, KeyError("why")])
async def test_a_failure_that_names_itself_is_logged_with_the_traceback_of_its_cause(
    caplog: Any, cause: Exception | None
):
    error = ModelFailed("the disk is full")
    error.__cause__ = cause
    async with serving(Fails) as plane:
        model_of(plane).raises = error
        answer = await outcome(plane, rows_of(13))
        assert str(answer) == "the disk is full"
        (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert bool(record.exc_info) is (cause is not None)


async def test_what_the_client_reads_of_a_bug_has_no_detail_and_of_a_stop_says_try_again():
    async with serving(Fails, ModelSettings(name="m", execution="thread")) as plane:
        answer = await outcome(plane, rows_of(13))
        assert str(answer) == "model 'm' failed to predict; the server's log has the details"
        model_of(plane).raises = asyncio.CancelledError()
        stopped = await outcome(plane, rows_of(13))
        assert isinstance(stopped, NotReady)
        assert "stopped before the request was answered; try again" in str(stopped)


# Of requests


class Whole(RequestModel):
    """Answers as its fields say."""

    streams = False

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.ready: Any = True
        self.answer: Any = InferResponse("", [Tensor.of("n", np.ones(1))])
        self.gate = asyncio.Event()
        self.gate.set()
        self.seen: list[InferRequest] = []

    async def is_ready(self) -> bool:
        if isinstance(self.ready, Exception):
            raise self.ready
        return self.ready

    async def infer(self, request: InferRequest) -> Any:
        self.seen.append(request)
        await self.gate.wait()
        return self.answer


async def test_an_answer_that_is_no_response_is_the_models_failure():
    async with serving(Whole) as plane:
        model_of(plane).answer = {"n": 1}
        answer = await outcome(plane, InferRequest("m", []))
        assert isinstance(answer, ModelFailed)
        assert str(answer) == "model 'm' did not answer with a response"
        model_of(plane).answer = InferResponse("", ())
        assert isinstance(await outcome(plane, InferRequest("m", [])), InferResponse)


@pytest.mark.parametrize(
    ("given", "request_id", "expected"),
    [
        (InferResponse("", ()), "7", ("m", "7")),
        (InferResponse("", ()), None, ("m", None)),
        (InferResponse("own", (), id="9"), "7", ("own", "9")),
        (InferResponse("own", ()), "7", ("own", "7")),
    ],
)
async def test_a_name_and_an_id_that_are_missing_are_the_requests(given: Any, request_id: Any, expected: Any):
    async with serving(Whole) as plane:
        model_of(plane).answer = given
        answer = await outcome(plane, InferRequest("m", [], id=request_id))
        assert isinstance(answer, InferResponse)
        assert (answer.model_name, answer.id) == expected


async def test_readiness_is_asked_every_second_and_its_failure_is_an_answer(
    caplog: Any, monkeypatch: pytest.MonkeyPatch
):
    from serinus.dataplane.servables import request_servable

    monkeypatch.setattr(request_servable, "_HEALTH_INTERVAL_S", 0.001)
    caplog.set_level(logging.WARNING)
    async with serving(Whole) as plane:
        servable = plane.registry.find("m")
        assert servable.healthy

        model_of(plane).ready = False
        await until(lambda: not servable.healthy)
        assert not plane.ready()
        assert not plane.model_ready("m")
        assert "model 'm' says that it is not ready" in caplog.text
        assert isinstance(await outcome(plane, InferRequest("m", [])), InferResponse), "requests are let through"
        model_of(plane).ready = True
        await until(lambda: servable.healthy)
        assert "model 'm' says that it is ready" in caplog.text
        model_of(plane).ready = ValueError("no connection")
        await until(lambda: not servable.healthy)
        assert "model 'm' cannot say whether it is ready: no connection" in caplog.text
        watcher = servable._watcher
    assert watcher.cancelled() or watcher.cancelling()


async def test_an_interval_between_two_looks_is_a_second():
    from serinus.dataplane.servables import request_servable

    assert request_servable._HEALTH_INTERVAL_S == 1.0


class Streams(Whole):
    """Answers each request of a stream."""

    streams = True
    whole_streams = True
    has_generate = True
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)

    async def infer_stream(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        async for request in requests:
            if request.parameters.get("wrong"):
                yield "no response"  # type: ignore[misc]
            yield InferResponse("", [Tensor.of("n", np.full(1, len(request.inputs[0].data)))])


async def further(*requests: InferRequest) -> AsyncIterator[InferRequest]:
    for request in requests:
        yield request


async def test_a_stream_of_requests_is_answered_one_by_one_with_the_first_ones_id():
    async with serving(Streams) as plane:
        servable = plane.registry.find("m")
        assert (servable.stream_kind, servable.has_generate, servable.model.decoupled) == ("whole", True, False)
        stream = servable.infer_stream(rows_of(1, id="a"), further(rows_of(1, 3), rows_of(1, 2)))
        got = [each async for each in stream]
        assert [arrays_of(each) for each in got] == [{"n": [1]}, {"n": [3]}, {"n": [2]}]
        assert {each.id for each in got} == {"a"}
        assert plane.statistics("m")[0]["inference_count"] == 1


async def test_a_further_request_that_does_not_fit_ends_the_stream_with_its_error():
    async with serving(Streams) as plane:
        stream = plane.infer_stream(rows_of(1), further(request_of(q=np.ones((1, 2), np.float32))))
        got: list[Any] = []
        with pytest.raises(InvalidInput, match="input 'q' is not one of model 'm'"):
            async for each in stream:
                got.append(each)  # noqa: PERF401 # up to the error
        assert len(got) == 1
        with pytest.raises(InvalidInput):
            plane.registry.find("m").infer_stream(request_of(q=np.ones((1, 2), np.float32)))


async def test_something_else_than_a_response_in_a_stream_is_the_models_failure():
    async with serving(Streams) as plane:
        with pytest.raises(ModelFailed, match="answered a str in its stream; an InferResponse was expected"):
            [each async for each in plane.infer_stream(rows_of(1, parameters={"wrong": True}))]


@pytest.mark.parametrize(
    ("streams", "whole", "kind"), [(False, True, ""), (True, False, "each"), (True, True, "whole")]
)
async def test_how_a_model_streams_is_one_word(streams: bool, whole: bool, kind: str):
    made = type("Made", (Whole,), {"streams": streams, "whole_streams": whole})
    async with serving(made) as plane:
        assert plane.registry.find("m").stream_kind == kind
        assert plane.registry.find("m").batchable is False
        assert plane.stream_kind("m") == kind
        assert plane.stream_kind("nobody") == ""


class SpeaksV1(Whole):
    """V1 as it is told."""

    v1: Any = None

    async def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> Any:
        if payload.get("fail"):
            raise ValueError("a bug")
        return self.v1

    async def explain_v1(self, payload: Any, headers: Mapping[str, str]) -> Any:
        return self.v1


async def test_a_v1_call_that_a_model_leaves_is_asked_in_v2_and_an_explain_is_refused():
    async with serving(SpeaksV1) as plane:
        assert await plane.predict_v1("m", b'{"instances": [1, 2]}') == b'{"predictions":[1.0]}'
        assert [tensor.data.tolist() for tensor in model_of(plane).seen[0].inputs] == [[1, 2]]
        with pytest.raises(NotSupported, match="does not explain"):
            await plane.explain_v1("m", b'{"instances": [1, 2]}')
        model_of(plane).v1 = {"predictions": [5]}
        assert await plane.predict_v1("m", b"{}") == {"predictions": [5]}
        assert await plane.explain_v1("m", b"{}") == {"predictions": [5]}
        with pytest.raises(ModelFailed, match="the server's log has the details"):
            await plane.predict_v1("m", b'{"fail": true}')


async def test_a_v1_body_that_cannot_be_asked_in_v2_is_answered_and_never_left(
    caplog: Any, monkeypatch: pytest.MonkeyPatch
):
    from serinus.dataplane.servables import request_servable

    async with serving(SpeaksV1) as plane:
        with pytest.raises(InvalidInput):
            await plane.predict_v1("m", b'{"neither": 1}')

        def bug(*_: Any) -> None:
            raise KeyError("a bug of ours")

        monkeypatch.setattr(request_servable, "ask_in_v2", bug)
        with pytest.raises(ModelFailed, match="could not be processed; the server's log has the details"):
            await plane.predict_v1("m", b'{"instances": [1]}')
        assert "a V1 body could not be asked in V2" in caplog.text


async def test_a_v1_answer_in_pieces_is_counted_when_its_last_piece_was_read():
    async def pieces() -> AsyncIterator[bytes]:
        for n in range(3):
            yield b"%d" % n

    async with serving(SpeaksV1) as plane:
        model_of(plane).v1 = V1Answer(pieces(), {"a": "b"})
        answer = await plane.predict_v1("m", b"{}")
        assert answer.headers == {"a": "b"}
        assert [piece async for piece in answer.document] == [b"0", b"1", b"2"]
        while plane.registry.find("m").in_flight:
            await asyncio.sleep(0)
        assert plane.statistics("m")[0]["inference_count"] == 1


class Joins(Whole):
    """Answers requests together, by callback, when it is told to."""

    def load(self) -> None:
        self.request_batching = self
        self.max_rows, self.max_delay_s = 8, 0.0
        self.joined: list[list[Any]] = []
        self.complete: Any = None

    def key(self, request: InferRequest) -> tuple[str, int] | None:
        return "k", 2

    def infer_batch(self, requests: Any, on_complete: Any) -> None:
        self.joined.append([request.id for request in requests])
        self.complete = on_complete

    def is_of_a_member(self, error: BaseException) -> bool:
        return False


async def test_requests_that_are_answered_together_are_counted_done_and_told_once():
    async with serving(Joins) as plane:
        model, told = model_of(plane), []
        pending = [plane.infer_nowait(InferRequest("m", [], id=label), told.append) for label in "ab"]
        while not model.joined:
            await asyncio.sleep(0)
        assert model.joined == [["a", "b"]]
        model.complete([InferResponse("m", ()), InferResponse("m", ())])
        assert [type(each) for each in told] == [InferResponse] * 2
        for each in pending:
            each.cancel()
        statistics = plane.statistics("m")[0]
        assert (statistics["inference_count"], statistics["execution_count"]) == (4, 1)
        assert statistics["inference_stats"]["success"]["count"] == 2
        assert statistics["inference_stats"]["fail"]["count"] == 0
        assert plane.registry.find("m").in_flight == 0


class Versionless(Whole):
    """Answers, and streams, without a word on its version."""

    streams = True

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse("m", ())

    async def infer_stream(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        async for _ in requests:
            yield InferResponse("m", (), "theirs")
            yield InferResponse("m", ())


async def test_the_answer_of_a_model_of_requests_names_its_version_as_any_others():
    versioned = ModelSettings(name="m", version="3")
    async with serving(Versionless, versioned) as plane:
        assert (await plane.infer(InferRequest("m", []))).model_version == "3"
        assert (await plane.infer(InferRequest("m", [], "3"))).model_version == "3"
        told = [response.model_version async for response in plane.infer_stream(InferRequest("m", []))]
        assert told == ["theirs", "3"]
    async with serving(Joins, versioned) as plane:
        model, answers = model_of(plane), []
        for label in "ab":
            plane.infer_nowait(InferRequest("m", [], id=label), answers.append)
        while not model.joined:
            await asyncio.sleep(0)
        model.complete([InferResponse("m", ()), InferResponse("m", (), "3")])
        assert [answer.model_version for answer in answers] == ["3", "3"]


async def test_answers_that_are_too_few_are_the_models_failure():
    async with serving(Joins) as plane:
        model, told = model_of(plane), []
        for label in "ab":
            plane.infer_nowait(InferRequest("m", [], id=label), told.append)
        while not model.joined:
            await asyncio.sleep(0)
        model.complete([InferResponse("m", ())])
        await asyncio.sleep(0)
        assert [type(each) for each in told] == [ModelFailed] * 2
        assert str(told[0]) == "model 'm' gave 1 responses to 2 requests of one batch"
