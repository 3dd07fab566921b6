"""One-row requests go through a transformer together, and nobody can tell but by the time it takes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

import hosts_support
from deferred import Deferred
from fraud_features.store import MemoryStore
from fraud_support import SERVICE
from serinus.dataplane.plane import Plane
from serinus.errors import InvalidInput, SerinusError
from serinus.protocol.types import NO_PARAMETERS, InferRequest, InferResponse, RequestedOutput, Tensor

FraudFeatures = Deferred("fraud_features.transformer", "FraudFeatures")
Pipeline = Deferred("serinus.hosts.kserve.pipeline", "Pipeline")
row_transformer = Deferred("serinus.hosts.kserve.row_batching", "row_transformer")

COLUMNS = json.loads((SERVICE / "request.json").read_text())["inputs"]
REST = {"host": "fraud", "content-length": "1"}


def row(identity: str, at: int = 0, *, amount: float | None = None, more: int = 0, **fields: Any) -> InferRequest:
    """A transaction of the example, `more` seconds later."""
    tensors = []
    for column in COLUMNS:
        value = column["data"][at]
        if column["name"] == "transaction_id":
            value = identity
        elif column["name"] == "datetime":
            value += more
        elif column["name"] == "amount" and amount is not None:
            value = amount
        value = value.encode() if isinstance(value, str) else value
        dtype = {"BYTES": object, "INT64": np.int64}.get(column["datatype"], np.float64)
        tensors.append(Tensor(column["name"], column["datatype"], (1,), np.array([value], dtype)))
    return InferRequest("fraud", tensors, id=f"request-{identity}", headers=REST, **fields)


def serving() -> Any:
    return hosts_support.serving(
        "ensemble_server", name="fraud", transformer="fraud_features", model_dir=SERVICE / "model"
    )


def pipeline(plane: Plane) -> Pipeline:
    model = plane.registry.find("fraud").model
    assert isinstance(model, Pipeline)
    return model


def rows_of(plane: Plane) -> Any:
    """How the fraud pipeline answers one-row requests together."""
    batching = pipeline(plane).request_batching
    assert batching is not None
    return batching


def told(answer: InferResponse | BaseException) -> Any:
    """An answer as values."""
    if isinstance(answer, BaseException):
        assert isinstance(answer, SerinusError)
        return type(answer), str(answer)
    outputs = [
        (t.name, t.datatype, t.shape, t.data.tobytes() if t.data.dtype != object else t.data.tolist())
        for t in answer.outputs
    ]
    return answer.model_name, answer.model_version, answer.id, dict(answer.parameters), outputs


async def stats(plane: Plane) -> Any:
    store = pipeline(plane).hosted.store
    assert isinstance(store, MemoryStore)
    return await store.stats()


async def both(requests: list[InferRequest]) -> tuple[list[Any], list[Any]]:
    """Answers together through the lane, and one after the other without it, with what the stores hold at the end."""
    async with serving() as plane:
        together: list[Any] = [
            told(answer) for answer in await asyncio.gather(*(plane.infer(r) for r in requests), return_exceptions=True)
        ]
        together.append(await stats(plane))
    async with serving() as plane:
        rows_of(plane).key = lambda request: None
        alone: list[Any] = []
        for request in requests:
            try:
                alone.append(told(await plane.infer(request)))
            except SerinusError as error:
                alone.append(told(error))
        alone.append(await stats(plane))
    return together, alone


@pytest.mark.slow
async def test_requests_together_are_answered_as_one_after_the_other():
    requests = [row(f"t{n}", n % 3, more=(n * 7919) % 5000, amount=10.0 + n) for n in range(150)]
    together, alone = await both(requests)
    assert together == alone


async def test_a_retry_in_the_same_turn_is_counted_once():
    requests = [row("same"), row("other", 1), row("same"), row("same")]
    together, alone = await both(requests)
    assert together == alone
    assert together[0] == together[2] == together[3]
    assert together[-1].ids == 2


async def test_a_bad_row_is_refused_alone_with_its_own_message():
    requests = [row("a"), row("bad", amount=-1.0), row("b", 1), row("", 2)]
    async with serving() as plane:
        answers = await asyncio.gather(*(plane.infer(r) for r in requests), return_exceptions=True)
        held = await stats(plane)
    async with serving() as plane:
        rows_of(plane).key = lambda request: None
        apart = await asyncio.gather(*(plane.infer(r) for r in requests), return_exceptions=True)
    assert [told(answer) for answer in answers] == [told(answer) for answer in apart]
    assert isinstance(answers[1], InvalidInput)
    assert "row 0" in str(answers[1])
    assert held.ids == 2


async def test_a_request_given_up_in_the_lane_is_not_counted():
    async with serving() as plane:
        answers: list[Any] = []
        pending = [plane.infer_nowait(row(name), answers.append) for name in ("stays", "goes")]
        pending[1].cancel()
        assert (await plane.infer(row("next"))).id == "request-next"
        assert [answer.id for answer in answers] == ["request-stays"]
        assert (await stats(plane)).ids == 2
        assert plane.registry.find("fraud").in_flight == 0


@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({}, True),
        ({"parameters": {"timeout": 5_000_000}}, True),
        ({"parameters": {"explain": True}}, False),
        ({"parameters": {"operation": "score"}}, False),
        ({"outputs": [RequestedOutput("score", NO_PARAMETERS)]}, False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
async def test_only_plain_requests_take_the_lane(fields: dict[str, Any], takes: bool):
    async with serving() as plane:
        assert (rows_of(plane).key(row("x", **fields)) is not None) is takes
        assert (await plane.infer(row("y", **fields))).outputs


async def test_outcomes_and_requests_of_several_rows_take_the_ordinary_way():
    async with serving() as plane:
        rows = rows_of(plane)
        labelled = row("x")
        labelled.inputs = [*labelled.inputs, Tensor("fraud", "INT64", (1,), np.array([1]))]
        several = row("y")
        several.inputs = [Tensor(t.name, t.datatype, (2,), np.repeat(t.data, 2)) for t in several.inputs]
        assert rows.key(labelled) is None
        assert rows.key(several) is None


async def test_a_model_that_fails_fails_each_row_and_the_lane_goes_on(caplog: pytest.LogCaptureFixture):
    async with serving() as plane:
        hosted: Any = plane.registry.look_up("fraud-predictor").model.hosted  # type: ignore[attr-defined] # a host
        whole = hosted.predict_arrays
        calls = []

        def failing(inputs: Any, parameters: Any) -> Any:
            calls.append(len(inputs["amount"]))
            if 66.0 in inputs["amount"]:
                raise InvalidInput("not this one")
            return whole(inputs, parameters)

        hosted.predict_arrays = failing
        answers = await asyncio.gather(
            *(plane.infer(row(str(n), amount=amount)) for n, amount in enumerate((1.0, 66.0, 2.0))),
            return_exceptions=True,
        )
        assert [type(answer) for answer in answers] == [InferResponse, InvalidInput, InferResponse]
        assert calls[0] == 3
        assert (await stats(plane)).ids == 3
        hosted.predict_arrays = whole
        assert (await plane.infer(row("after"))).outputs
    assert not caplog.records


def test_a_subclass_that_changes_preprocess_has_no_lane():
    class Changed(FraudFeatures):
        async def preprocess(self, payload: Any, headers: Any = None) -> Any:
            return await super().preprocess(payload, headers)

    class Same(FraudFeatures):
        pass

    assert row_transformer(FraudFeatures("m")) is not None
    assert row_transformer(Same("m")) is not None
    assert row_transformer(Changed("m")) is None
