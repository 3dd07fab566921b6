"""V1 bodies inside the data plane: how a model of V2 is asked, what comes back, and what a model of V1 is given."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from dataplane_support import Doubler, serving
from serinus import InferRequest, InferResponse, ModelSettings, Tensor, TensorSpec
from serinus.dataplane.servables.v1_requests import V1Request, ask_in_v2, convert, is_streamed, read_document
from serinus.errors import InvalidInput, NotFound, NotReady, SerinusError, TimedOut, TooLarge
from serinus.model import V1Answer
from serinus.protocol.types import Limits, ModelMetadata

METADATA = ModelMetadata("m", (), "p", (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
ROWS = b'{"instances": [[1, 2], [3, 4]]}'


class Asked:
    """A servable's `infer_nowait` that notes what it was asked, and what is told to whoever asked."""

    def __init__(self, **fields: Any) -> None:
        self.told: list[V1Answer | SerinusError] = []
        self.pending = ask_in_v2(self._infer_nowait, V1Request(**fields), METADATA, self.told.append)

    def _infer_nowait(self, request: InferRequest, on_complete: Callable[[Any], None]) -> Any:
        self.request, self.on_complete = request, on_complete
        return self

    def cancel(self) -> None:
        """Stands for the servable's pending request."""


def response(**fields: Any) -> InferResponse:
    return InferResponse("m", [Tensor.of("y", np.array([[2, 4]], np.float32))], **fields)


def test_a_body_is_asked_with_all_that_came_beside_it():
    asked = Asked(body=ROWS, headers={"a": "b"}, version="3", deadline=7.5)
    assert asked.pending is asked, "what cancels the one cancels the other"
    request = asked.request
    assert (request.model_name, request.model_version, request.headers, request.deadline) == ("m", "3", {"a": "b"}, 7.5)
    assert [(tensor.name, tensor.data.tolist()) for tensor in request.inputs] == [("x", [[1, 2], [3, 4]])]
    assert asked.told == [], "it is not answered yet"


def test_what_was_left_out_is_none_of_it():
    asked = Asked(body=ROWS)
    request = asked.request
    assert (request.model_version, request.headers, request.deadline) == ("", {}, None)
    assert V1Request(body=b"").explain is False


def test_the_answer_is_v1_with_the_responses_headers():
    asked = Asked(body=ROWS)
    asked.on_complete(response(headers={"x-model": "a"}))
    (answer,) = asked.told
    assert isinstance(answer, V1Answer)
    assert json.loads(answer.document) == {"predictions": [[2, 4]]}
    assert (answer.headers, answer.content_type) == ({"x-model": "a"}, "application/json")


def test_the_answer_has_the_format_of_the_question():
    asked = Asked(body=b'{"inputs": [[1, 2]]}')
    asked.on_complete(response())
    (answer,) = asked.told
    assert isinstance(answer, V1Answer)
    assert json.loads(answer.document) == {"outputs": [[2, 4]]}


@pytest.mark.parametrize("error", [NotReady("not yet"), TimedOut("too late"), InvalidInput("no")], ids=repr)
def test_an_error_is_told_as_it_is_and_once(error: SerinusError):
    asked = Asked(body=ROWS)
    asked.on_complete(error)
    assert asked.told == [error]


def test_outputs_that_have_no_rows_in_common_are_told_as_an_error_and_once():
    asked = Asked(body=ROWS)
    uneven = [Tensor.of("y", np.ones((2, 2), np.float32)), Tensor.of("z", np.ones(3, np.float32))]
    asked.on_complete(InferResponse("m", uneven))
    (error,) = asked.told
    assert isinstance(error, InvalidInput)
    assert "different numbers of rows" in str(error)


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"[]", InvalidInput), (b'{"instances": []}', InvalidInput), (b'{"instances": [["a", 1]]}', InvalidInput)],
)
def test_a_body_that_is_refused_is_raised_and_asks_nothing(body: bytes, kind: type):
    told: list[Any] = []
    with pytest.raises(kind):
        ask_in_v2(lambda *_: pytest.fail("asked"), V1Request(body=body), METADATA, told.append)
    assert told == []


def test_the_limits_are_those_of_the_call():
    for limits in (Limits(body_bytes=len(ROWS) - 1), Limits(tensor_bytes=15)):
        with pytest.raises(TooLarge):
            Asked(body=ROWS, limits=limits)
        with pytest.raises(TooLarge):
            convert(ROWS, METADATA, limits=limits)
    Asked(body=ROWS, limits=Limits(body_bytes=len(ROWS), tensor_bytes=16))


def test_a_conversion_says_the_version_and_writes_the_answer():
    request, write = convert(ROWS, METADATA, version="2")
    assert request.model_version == "2"
    assert json.loads(write(response())) == {"predictions": [[2, 4]]}
    assert convert(ROWS, METADATA)[0].model_version == ""


# What a model of V1 is given

NO_JSON = b"\xff\xfe picture"


@pytest.mark.parametrize("takes_bytes", [False, True])
def test_an_object_is_given_parsed_whatever_the_type_says(takes_bytes: bool):
    for kind in ("application/json", "image/png", ""):
        call = V1Request(body=b'{"a": [1]}', headers={"content-type": kind} if kind else {})
        assert read_document(call, takes_bytes=takes_bytes) == {"a": [1]}


def test_json_that_is_no_object_is_given_only_to_a_model_that_takes_it():
    call = V1Request(body=b"[1, 2]")
    assert read_document(call, takes_bytes=True) == [1, 2]
    with pytest.raises(InvalidInput, match="the request body is an array, a JSON object was expected"):
        read_document(call, takes_bytes=False)


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/PNG; q=1", "text/plain", "application/octet-stream", "zzz", "a"])
def test_what_is_no_json_and_does_not_claim_to_be_is_given_as_it_came(kind: str):
    call = V1Request(body=NO_JSON, headers={"content-type": kind})
    assert read_document(call, takes_bytes=True) == NO_JSON
    with pytest.raises(InvalidInput, match="is not JSON"):
        read_document(call, takes_bytes=False)


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/cloudevents+json",
        "application/ld+json",
        "Application/JSON ; charset=utf-8",
        "",
        None,
    ],
)
def test_what_claims_to_be_json_or_claims_nothing_is_refused_where_it_is_none(kind: str | None):
    call = V1Request(body=NO_JSON, headers={} if kind is None else {"content-type": kind})
    for takes_bytes in (False, True):
        with pytest.raises(InvalidInput, match="the request body is not JSON"):
            read_document(call, takes_bytes=takes_bytes)


def test_an_empty_body_is_refused_whatever_the_type_says():
    for takes_bytes in (False, True):
        with pytest.raises(InvalidInput, match="the request body is empty"):
            read_document(V1Request(body=b"", headers={"content-type": "image/png"}), takes_bytes=takes_bytes)


def test_a_body_beyond_the_limit_is_too_large_for_a_model_of_v1_too():
    call = V1Request(body=NO_JSON, headers={"content-type": "image/png"}, limits=Limits(body_bytes=3))
    with pytest.raises(TooLarge):
        read_document(call, takes_bytes=True)


async def _pieces() -> AsyncIterator[bytes]:
    yield b""


async def test_only_an_answer_whose_document_comes_in_pieces_is_streamed():
    pieces = _pieces()
    assert is_streamed(V1Answer(pieces))
    assert not is_streamed(pieces)
    assert not is_streamed(V1Answer(b"{}"))
    assert not is_streamed({"predictions": [1]})


async def test_a_v1_body_is_answered_by_the_version_that_is_asked_for():
    versions = [ModelSettings(name="m", version=version) for version in ("1", "2")]
    async with serving(Doubler, *versions) as plane:
        for version in ("", "1", "2"):
            assert json.loads(await plane.predict_v1("m", ROWS, version=version)) == {"predictions": [[2, 4], [6, 8]]}
        with pytest.raises(NotFound, match="has no version '3'"):
            await plane.predict_v1("m", ROWS, version="3")
        counts = [each["inference_count"] for each in plane.statistics("m")]
        assert counts == [2, 4], "rows of one request, and of two"
