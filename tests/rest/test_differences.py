"""Where REST answers otherwise than a peer on purpose: each line of runtimes/serinus/DIFFERENCES.md that no other test holds."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import orjson
import pytest

import rest_support
from rest_support import Rest, X, rest
from serinus import Call, Model, ModelSettings, RequestModel, TensorSpec
from serinus.errors import ModelFailed


class Halves(Model):
    """Takes FP16 and gives FP16 and FP32."""

    inputs = (TensorSpec("x", "FP16", (-1,)),)
    outputs = (TensorSpec("half", "FP16", (-1,)), TensorSpec("whole", "FP32", (-1,)))

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {"half": inputs["x"], "whole": inputs["x"].astype(np.float32) + np.float32(0.1)}


class Unwell(RequestModel):
    """Says that it is not ready."""

    async def is_ready(self) -> bool:
        return False


class Failing(Model):
    """Does not load."""

    def load(self) -> None:
        raise ModelFailed("no weights here")


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in {"halves": Halves, "unwell": Unwell, "failing": Failing}.items():
        monkeypatch.setitem(rest_support.MODELS, name, kind)


@pytest.fixture
async def server() -> AsyncIterator[Rest]:
    async with rest("row", "halves", "speaker") as running:
        yield running


ERRORS: dict[str, tuple[str, str, Any, int, str]] = {
    "an unknown model": ("POST", "/v2/models/nobody/infer", X, 404, "model 'nobody' is not known; the models here are"),
    "an unknown version": ("POST", "/v2/models/row/versions/7/infer", X, 404, "its versions are '1', '2'"),
    "an unknown model of V1": ("GET", "/v1/models/nobody", None, 404, "model 'nobody' is not known"),
    "an unknown path": ("GET", "/unknown_path", None, 404, "there is no path '/unknown_path'; there are"),
    "a datatype": (
        "POST",
        "/v2/models/row/infer",
        {"inputs": [{"name": "x", "datatype": "INT322", "shape": [1], "data": [1]}]},
        400,
        "input 'x': 'datatype' is 'INT322', it must be one of",
    ),
    "a model that is not in the repository": ("POST", "/v2/repository/models/nobody/load", {}, 404, "'nobody'"),
    "no JSON": ("POST", "/v1/models/row:predict", b"{", 400, "not JSON"),
}


@pytest.mark.parametrize("case", ERRORS)
async def test_an_error_is_one_object_in_our_own_words_with_a_status_of_400_or_404(server: Rest, case: str):
    method, path, body, status, words = ERRORS[case]
    answer = await server.ask(method, path, body)
    assert (answer.status, list(answer.json), words in answer.json["error"]) == (status, ["error"], True), answer.json


async def test_json_is_compact_and_leaves_out_what_is_empty(server: Rest):
    answer = await server.ask("POST", "/v2/models/speaker/infer", X)
    assert answer.body.startswith(
        b'{"model_name":"speaker","outputs":[{"name":"y","datatype":"INT64","shape":[1],"data":[1]}]}'
    )
    event = {"ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-specversion": "1.0"}
    answer = await server.ask("POST", "/v1/models/row:predict", {"instances": [[0, 0, 0]]}, event)
    assert answer.body == b'{"predictions":[[1.0,0.0]]}'


async def test_floats_are_the_shortest_text_and_fp16_may_be_json(server: Rest):
    body = {"inputs": [{"name": "x", "datatype": "FP16", "shape": [2], "data": [6.8, 0.1]}]}
    answer = await server.ask("POST", "/v2/models/halves/infer", body)
    half, whole = answer.json["outputs"]
    assert answer.status == 200
    assert np.array(half["data"], np.float16).tolist() == np.array([6.8, 0.1], np.float16).tolist()
    for text, exact in zip(
        whole["data"], np.array([6.8, 0.1], np.float16).astype(np.float32) + np.float32(0.1), strict=True
    ):
        assert text == float(np.format_float_positional(exact, unique=True))


async def test_ready_is_said_when_every_model_is():
    async with rest("row", "unwell") as server:
        assert (await server.ask("GET", "/v2/models/row/ready")).status == 200
        assert (await server.ask("GET", "/v2/health/live")).status == 200
        assert (await server.ask("GET", "/v2/health/ready")).status == 503


async def test_a_failed_load_has_the_status_of_its_cause_and_is_unloaded_like_any_other(server: Rest):
    load = await server.ask("POST", "/v2/repository/models/failing/load", {})
    assert (load.status, "no weights here" in load.json["error"]) == (500, True)
    index = {one["name"]: one for one in (await server.ask("POST", "/v2/repository/index", {})).json}
    assert index["failing"]["state"] == "UNAVAILABLE"
    assert (await server.ask("POST", "/v2/repository/models/failing/unload", {})).status == 200


async def test_the_server_says_its_own_name_and_the_versions_that_it_serves(server: Rest):
    about = (await server.ask("GET", "/v2")).json
    assert about["name"] == "serinus"
    assert not {"sequence", "system_shared_memory", "cuda_shared_memory", "trace", "logging"} & set(about["extensions"])
    assert (await server.ask("GET", "/v2/models/row")).json["versions"] == ["1", "2"]


async def test_only_an_event_is_answered_by_an_event(server: Rest):
    answer = await server.ask("POST", "/v2/models/row/infer", X, {"x-foo": "bar"})
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("ce-") or name == "x-foo"]


async def test_paths_are_told_apart_by_case_and_the_document_has_one_place(server: Rest):
    assert (await server.ask("POST", "/V1/models/row:PREDICT", {"instances": [[0, 0, 0]]})).status == 404
    assert (await server.ask("GET", "/openapi.json")).status == 200
    for path in ("/v2/docs", "/v2/docs/dataplane.json", "/v2/models/row/docs"):
        assert (await server.ask("GET", path)).status == 404


async def test_a_body_over_the_limit_is_413(monkeypatch: pytest.MonkeyPatch):
    async with rest("row", max_body_bytes=1000) as server:
        answer = await server.ask("POST", "/v2/models/row/infer", orjson.dumps(X) + b" " * 1000)
        assert (answer.status, "max_body_bytes" in answer.json["error"]) == (413, True)


async def test_events_data_has_its_own_type(server: Rest, monkeypatch: pytest.MonkeyPatch):
    """As KServe reads it: the attribute of the event before the type of the message."""

    class Bytes(rest_support.Speaker):
        takes_bytes = True

        async def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> dict[str, Any]:
            return {"predictions": [len(payload)], "kind": type(payload).__name__}

    monkeypatch.setitem(rest_support.MODELS, "bytes", Bytes)
    await server.plane.registry.add(ModelSettings(name="bytes", implementation="bytes", warmup=False))
    event = {"ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-specversion": "1.0"}
    for more, status in (({"ce-content-type": "application/avro"}, 200), ({}, 400)):
        answer = await server.ask("POST", "/v1/models/bytes:predict", b"\x06foo\x00\x02", {**event, **more})
        assert answer.status == status, answer.body
        assert status != 200 or answer.json == {"predictions": [6], "kind": "bytes"}


async def test_a_models_own_route_is_given_a_body_without_its_content_coding():
    async def handler(request: Any) -> Any:
        return 200, {}, orjson.dumps(request.body.decode())

    async with rest("row", extra_routes=[("POST", "/own", handler)]) as server:
        packed = await server.ask("POST", "/own", gzip.compress(b"body"), {"Content-Encoding": "gzip"})
        assert (packed.status, packed.json) == (200, "body")
        assert (await server.ask("POST", "/own", b"no gzip", {"Content-Encoding": "gzip"})).status == 400
