"""Triton's generate extension: flat JSON in, flat JSON or events out (extension_generate.md), on both transports."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import numpy as np
import pytest

import rest_support
from http_support import Answer, Raw
from rest_support import Rest, rest, wire
from serinus import InferRequest, InferResponse, Tensor
from stream_support import Counting, Writing
from waiting import until

EVENTS = "text/event-stream; charset=utf-8"
ASKED = {"PROMPT": "hello world", "STREAM": False}


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rest_support.MODELS, "writing", Writing)
    monkeypatch.setitem(rest_support.MODELS, "counting", Counting)


@pytest.fixture(params=["thin", "uvicorn"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Rest]:
    async with rest("writing", "row", "simple", "echo", "broken", "counting", http=request.param) as running:
        yield running


async def generate(server: Rest, body: Any, name: str = "writing", verb: str = "generate") -> Answer:
    if verb == "generate":
        return await server.ask("POST", f"/v2/models/{name}/{verb}", body)
    client = await Raw.open(server.port)
    try:
        await client.send(wire("POST", f"/v2/models/{name}/{verb}", body))
        answer = await client.answer(head_only=True)
        if "content-length" in answer.headers:
            answer.body = await client.reader.readexactly(int(answer.headers["content-length"]))
            return answer
        while length := int(await client.reader.readuntil(b"\r\n"), 16):
            answer.body += (await client.reader.readexactly(length + 2))[:-2]
        return answer
    finally:
        await client.close()


def events(answer: Answer) -> list[Any]:
    assert answer.headers["content-type"] == EVENTS
    return [json.loads(part.removeprefix(b"data: ")) for part in answer.body.split(b"\n\n") if part]


ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one value": (ASKED, {"TEXT": "hello world"}),
    "a value in an array": ({"PROMPT": ["hello world"], "STREAM": [True]}, {"TEXT": "hello world"}),
    "every input": ({**ASKED, "input_ids": [100, 200]}, {"TEXT": "hello world"}),
    "an id": ({**ASKED, "id": "42"}, {"TEXT": "hello world", "id": "42"}),
    "an empty id, which is none": ({**ASKED, "id": ""}, {"TEXT": "hello world"}),
    "a parameter beside the inputs": ({**ASKED, "TEXTS": 2}, {"TEXT": ["hello world"] * 2}),
    "a parameter in its object": ({**ASKED, "parameters": {"TEXTS": 2}}, {"TEXT": ["hello world"] * 2}),
    "an input in the object": ({"STREAM": False, "parameters": {"PROMPT": "in it"}}, {"TEXT": "in it"}),
    "an empty output": ({**ASKED, "TEXTS": 0}, {"TEXT": []}),
    "an odd text": ({"PROMPT": 'é "\n\u2028', "STREAM": False}, {"TEXT": 'é "\n\u2028'}),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_flat_json_is_answered_by_flat_json(server: Rest, case: str):
    body, wanted = ANSWERS[case]
    answer = await generate(server, body)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json == {"model_name": "writing", "model_version": "", "triton_final": False, **wanted}
    assert events(await generate(server, body, verb="generate_stream")) == [answer.json]


SHAPES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "a row of three": ("row", {"x": [0.25, 0.5, 0.25]}, {"y": [0.0, 1.0]}),
    "two rows": ("row", {"x": [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]}, {"y": [1.0, 0.0, 0.0, 1.0]}),
    "two inputs and outputs": (
        "simple",
        {"INPUT0": list(range(16)), "INPUT1": [1] * 16},
        {"OUTPUT0": list(range(1, 17)), "OUTPUT1": list(range(-1, 15))},
    ),
}


@pytest.mark.parametrize("case", SHAPES)
async def test_values_take_the_shape_of_the_models_input(server: Rest, case: str):
    name, body, outputs = SHAPES[case]
    answer = await generate(server, body, name)
    assert answer.status == 200, answer.json
    version = "2" if name == "row" else ""
    assert answer.json == {"model_name": name, "model_version": version, **outputs}


async def test_a_version_is_chosen_by_the_path(server: Rest):
    for version in ("1", "2"):
        for verb in ("generate", "generate_stream"):
            answer = await generate(server, {"x": [0, 0, 1]}, f"row/versions/{version}", verb)
            found = answer.json if verb == "generate" else events(answer)[0]
            assert (answer.status, found["model_version"]) == (200, version)


REFUSED: dict[str, tuple[Any, int, str]] = {
    "no input at all": ({}, 400, "input 'PROMPT' is missing"),
    "nothing but parameters": ({"abc": 123}, 400, "input 'PROMPT' is missing"),
    "an input missing": ({"PROMPT": "hello"}, 400, "input 'STREAM' is missing"),
    "a number for a text": ({"PROMPT": 123, "STREAM": False}, 400, "input 'PROMPT'"),
    "a text for a truth value": ({"PROMPT": "hello", "STREAM": "false"}, 400, "input 'STREAM'"),
    "null for an input": ({"PROMPT": None, "STREAM": False}, 400, "input 'PROMPT'"),
    "an object for an input": ({"PROMPT": {"USER": "hello"}, "STREAM": False}, 400, "input 'PROMPT'"),
    "a nested array": ({"PROMPT": [["hello"]], "STREAM": False}, 400, "input 'PROMPT' is nested"),
    "two values for one": ({"PROMPT": ["a", "b"], "STREAM": False}, 400, "has 2 values, the model takes [1]"),
    "a parameter twice": (b'{"PROMPT": "a", "STREAM": false, "a": 1, "\\u0061": 2}', 400, "'a' is given twice"),
    "a parameter twice in its object": (
        b'{"PROMPT": "a", "STREAM": false, "parameters": {"a": 1, "a":2}}',
        400,
        "'a' is given twice",
    ),
    "an input twice": (b'{"PROMPT": "a", "STREAM": false, "PROMPT": "b"}', 400, "PROMPT"),
    "an input here and there": ({**ASKED, "parameters": {"PROMPT": "b"}}, 400, "'PROMPT' is given twice"),
    "an object for a parameter": ({**ASKED, "PARAMS": {"a": 0}}, 400, "parameter 'PARAMS' is an object"),
    "an array for a parameter": ({**ASKED, "PARAMS": [1]}, 400, "parameter 'PARAMS' is an array"),
    "an object among the parameters": ({**ASKED, "parameters": {"nested": {"twice": 1}}}, 400, "parameter 'nested'"),
    "parameters that are no object": ({**ASKED, "parameters": 1}, 400, "'parameters' is 1, an object was expected"),
    "an id that is no text": ({**ASKED, "id": 42}, 400, "'id' is 42, a string was expected"),
    "an array": ([ASKED], 400, "object"),
    "no JSON": (b"{", 400, "JSON"),
    "nothing": (b"", 400, "JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_no_request_is_a_json_error_over_both(server: Rest, case: str):
    body, status, words = REFUSED[case]
    for verb in ("generate", "generate_stream"):
        answer = await generate(server, body, verb=verb)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
        assert words in answer.json["error"]


async def test_a_model_that_is_not_there_or_names_no_inputs_is_told(server: Rest):
    for verb in ("generate", "generate_stream"):
        assert (await generate(server, ASKED, "nobody", verb)).status == 404
        assert (await server.ask("POST", f"/v2/models/row/versions/9/{verb}", {"x": [0, 0, 1]})).status == 404
        answer = await generate(server, ASKED, "echo", verb)
        assert (answer.status, "use /infer" in answer.json["error"]) == (400, True)
        assert (await server.ask("GET", f"/v2/models/row/{verb}")).status == 405


@pytest.mark.parametrize("count", [0, 2])
async def test_generate_takes_exactly_one_response_and_the_stream_any_number(server: Rest, count: int):
    body = {**ASKED, "REPETITION": count}
    answer = await generate(server, body)
    assert (answer.status, "exactly 1 response" in answer.json["error"]) == (400, True)
    assert [event["TEXT"] for event in events(await generate(server, body, verb="generate_stream"))] == [
        "hello world"
    ] * count


@pytest.mark.parametrize(("before", "status"), [(0, 500), (1, 200), (2, 200)])
async def test_an_error_of_the_model_is_an_event_whose_status_is_the_first_ones(server: Rest, before: int, status: int):
    answer = await generate(server, {**ASKED, "REPETITION": before, "FAIL_LAST": True}, verb="generate_stream")
    *texts, error = events(answer)
    assert (answer.status, [event["TEXT"] for event in texts], error) == (
        status,
        ["hello world"] * before,
        {"error": "An Error Occurred"},
    )


class Unwritable(Writing):
    """Gives for ever what cannot be written as JSON."""

    element: ClassVar[Any] = "no number"
    datatype: ClassVar[str] = "INT64"
    left: ClassVar[list[str]] = []

    async def infer_stream(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        try:
            while True:
                values = np.array([self.element], dtype=object)
                yield InferResponse("", [Tensor("TEXT", self.datatype, values.shape, values)], self.version)
        finally:
            self.left.append(self.name)


@pytest.mark.parametrize(
    ("verb", "element", "datatype", "status", "said"),
    [
        ("generate", "no number", "INT64", 400, "exactly 1 response"),
        ("generate_stream", "no number", "INT64", 500, "the model's values cannot be written as INT64"),
        ("generate_stream", b"\xff", "BYTES", 400, "is not UTF-8"),
    ],
)
async def test_a_model_whose_first_response_cannot_be_written_is_left(
    verb: str, element: Any, datatype: str, status: int, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(rest_support.MODELS, "unwritable", Unwritable)
    for name, value in (("left", []), ("element", element), ("datatype", datatype)):
        monkeypatch.setattr(Unwritable, name, value)
    async with rest("unwritable") as server:
        answer = await generate(server, ASKED, "unwritable", verb)
        assert answer.status == status
        (told,) = events(answer) if status == 500 else [answer.json]
        assert said in told["error"]
        await until(lambda: Unwritable.left == ["unwritable"])


async def test_an_error_of_the_model_is_an_error_of_generate(server: Rest):
    answer = await generate(server, {**ASKED, "REPETITION": 0, "FAIL_LAST": True})
    assert (answer.status, answer.json["error"]) == (500, "An Error Occurred")
    assert answer.json.keys() == {"error", "request_id"}
    answer = await generate(server, {"x": 1}, "broken")
    assert answer.status == 500
    assert "secret" not in answer.json["error"]


async def test_the_extension_is_listed(server: Rest):
    assert "generate" in (await server.ask("GET", "/v2")).json["extensions"]


NOT_OFFERED = {
    ("GET", "/v2/systemsharedmemory/status"): "shared memory",
    ("POST", "/v2/systemsharedmemory/region/r/register"): "shared memory",
    ("POST", "/v2/systemsharedmemory/unregister"): "shared memory",
    ("GET", "/v2/cudasharedmemory/region/r/status"): "shared memory",
    ("POST", "/v2/cudasharedmemory/region/r/register"): "shared memory",
    ("POST", "/v2/cudasharedmemory/region/r/unregister"): "shared memory",
    ("GET", "/v2/trace/setting"): "trace",
    ("POST", "/v2/logging"): "logging",
}


@pytest.mark.parametrize(("method", "path"), NOT_OFFERED, ids=lambda value: value)
async def test_an_extension_that_is_not_offered_is_refused_in_words(server: Rest, method: str, path: str):
    answer = await server.ask(method, path, {"key": "/r", "offset": 0, "byte_size": 64} if method == "POST" else None)
    assert answer.status == 501
    assert NOT_OFFERED[method, path] in answer.json["error"]
    assert "not offered" in answer.json["error"]
    listed = (await server.ask("GET", "/v2")).json["extensions"]
    assert not {"system_shared_memory", "cuda_shared_memory", "trace", "logging"} & set(listed)


REGION = {"shared_memory_region": "r", "shared_memory_byte_size": 12}


@pytest.mark.parametrize("data", [None, [0.0, 0.0, 0.0]], ids=["no data", "data too"])
async def test_an_input_that_names_a_region_is_refused(server: Rest, data: Any):
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": REGION}
    answer = await server.ask(
        "POST", "/v2/models/row/infer", {"inputs": [entry if data is None else {**entry, "data": data}]}
    )
    assert (answer.status, "input 'x': shared memory is not offered" in answer.json["error"]) == (400, True)


async def test_an_output_that_names_a_region_is_refused(server: Rest):
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0.0, 0.0, 0.0]}
    body = {"inputs": [entry], "outputs": [{"name": "y", "parameters": REGION}]}
    answer = await server.ask("POST", "/v2/models/row/infer", body)
    assert (answer.status, "requested output 'y': shared memory is not offered" in answer.json["error"]) == (400, True)


async def test_a_compressed_body_is_taken(server: Rest):
    body = gzip.compress(json.dumps(ASKED).encode())
    answer = await server.ask("POST", "/v2/models/writing/generate", body, {"Content-Encoding": "gzip"})
    assert (answer.status, answer.json["TEXT"]) == (200, "hello world")


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
async def test_a_model_that_knows_these_names_as_others_of_infer_is_asked_so(
    verb: str, monkeypatch: pytest.MonkeyPatch
):
    """As a hosted class of MLServer's is: the body is an InferRequest."""
    monkeypatch.setattr(Counting, "has_generate", True, raising=False)
    async with rest("counting") as server:
        body = {"inputs": [{"name": "count", "shape": [1], "datatype": "INT64", "data": [1]}]}
        answer = await generate(server, body, "counting", verb)
        assert answer.status == 200
        if verb == "generate":
            assert [output["name"] for output in answer.json["outputs"]] == ["n", "text"]
