"""V2 REST statement by statement (inference_rest.md), over both transports, and what serinus answers beside it."""

from __future__ import annotations

import asyncio
import gzip
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest

from conformance_support import Case, Server, case, ids, json_tensor, server_here
from http_support import TRANSPORTS, Raw
from rest_support import X1, X, rest, wire

BOTH = pytest.mark.parametrize("http", TRANSPORTS)
ODD = "mod%C3%A8le%20no.%201%2Fa"
OIP = "inference_rest.md, "


@pytest.fixture(scope="module", params=TRANSPORTS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with server_here(http=request.param) as running:
        yield running


def scores(rows: int = 1) -> dict[str, Any]:
    return json_tensor("scores", "FP32", [rows, 4], [1.0, 3.0, 0.5, 2.0] * rows)


GOOD = {"inputs": [scores()]}

# What a GET answers: path, status, exact keys or None.
PATHS: list[tuple[str, str, int, set[str] | None]] = [
    ("server-metadata", "/v2", 200, {"name", "version", "extensions"}),
    ("server-metadata-slash", "/v2/", 200, {"name", "version", "extensions"}),
    ("live", "/v2/health/live", 200, {"live"}),
    ("live-slash", "/v2/health/live/", 200, {"live"}),
    ("ready", "/v2/health/ready", 200, {"live", "ready"}),
    ("model-ready", "/v2/models/labels/ready", 200, {"name", "ready"}),
    ("model-ready-version", "/v2/models/versioned/versions/1/ready", 200, {"name", "ready"}),
    ("model-ready-odd-name", f"/v2/models/{ODD}/ready", 200, {"name", "ready"}),
    ("model-ready-query", "/v2/models/labels/ready?a=b", 200, {"name", "ready"}),
    ("model-metadata", "/v2/models/labels", 200, {"name", "platform", "inputs", "outputs", "properties"}),
    ("model-metadata-slash", "/v2/models/labels/", 200, {"name", "platform", "inputs", "outputs", "properties"}),
    ("model-metadata-odd-name", f"/v2/models/{ODD}", 200, None),
    ("model-metadata-escaped-letters", "/v2/models/l%61bels", 200, None),
    ("model-metadata-version", "/v2/models/versioned/versions/10", 200, None),
    ("models", "/v2/models", 200, {"models"}),
    ("models-slash", "/v2/models/", 200, {"models"}),
    ("v1-models", "/v1/models", 200, {"models"}),
    ("v1-model", "/v1/models/labels", 200, {"name", "ready", "model_version_status"}),
    ("v1-metadata", "/v1/models/labels/metadata", 200, {"model_spec", "metadata"}),
    ("root", "/", 200, {"status"}),
    ("unknown-model", "/v2/models/nobody", 404, {"error"}),
    ("unknown-model-ready", "/v2/models/nobody/ready", 404, {"error"}),
    ("unknown-version", "/v2/models/versioned/versions/3", 404, {"error"}),
    ("unknown-version-ready", "/v2/models/versioned/versions/3/ready", 404, {"error"}),
    ("version-that-an-unversioned-models-statistics-tell", "/v2/models/labels/versions/1/stats", 200, {"model_stats"}),
    (
        "version-that-an-unversioned-models-statistics-tell-ready",
        "/v2/models/labels/versions/1/ready",
        200,
        {"name", "ready"},
    ),
    ("version-of-an-unversioned-model", "/v2/models/labels/versions/2", 404, {"error"}),
    ("version-that-is-no-number", "/v2/models/versioned/versions/latest", 404, {"error"}),
    ("version-with-a-zero-before-it", "/v2/models/versioned/versions/01", 404, {"error"}),
    ("names-are-case-sensitive", "/v2/models/Labels", 404, {"error"}),
    ("no-version-given", "/v2/models/versioned/versions", 404, {"error"}),
    ("unknown-path", "/v2/nothing", 404, {"error"}),
    ("path-above", "/v3", 404, {"error"}),
    ("paths-are-case-sensitive", "/V2", 404, {"error"}),
    ("doubled-slash", "/v2//models/labels", 404, {"error"}),
    ("dots-are-a-name", "/v2/models/..", 404, {"error"}),
    ("not-utf-8", "/v2/models/%ff", 400, {"error"}),
    ("nul", "/v2/models/a%00b", 404, {"error"}),
    ("unknown-v1-model", "/v1/models/nobody", 404, {"error"}),
    ("slash-and-query", "/v2/models/labels/?x", 200, None),
    ("escaped-slash-of-no-name", "/v2/models/a%2Fb", 404, {"error"}),
    ("absolute-form", "http://localhost:8080/v2/models/labels?x=1", 200, None),
    ("all-of-the-server", "*", 400, {"error"}),
]


@pytest.mark.parametrize(("path", "status", "keys"), [row[1:] for row in PATHS], ids=[row[0] for row in PATHS])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_can_be_read(server: Server, method: str, path: str, status: int, keys: set[str] | None):
    answer = server.ask(method, path)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    if method == "HEAD":  # RFC 9110, 9.3.2: the same header fields, no content
        assert int(answer.headers["content-length"]) == len(server.ask("GET", path).body)
    elif keys is not None:
        assert set(answer.json) == keys
    if status >= 400 and method == "GET":
        assert answer.error
    assert server.alive()


TABLE: list[Case] = []


@case(TABLE, "server-metadata-types", OIP + "Server Metadata Response JSON Object")
def _(s: Server) -> None:
    document = s.ask("GET", "/v2").json
    assert document["name"] == "serinus"
    assert isinstance(document["version"], str)
    assert all(isinstance(extension, str) for extension in document["extensions"])
    assert len(set(document["extensions"])) == len(document["extensions"])


@case(TABLE, "every-extension-that-is-served-is-named", "Triton, protocol/README.md")
def _(s: Server) -> None:
    assert {
        *("binary_tensor_data", "classification", "generate", "model_configuration", "model_repository", "parameters"),
        *("model_repository(unload_dependents)", "schedule_policy", "statistics"),
    } == set(s.ask("GET", "/v2").json["extensions"])


@case(TABLE, "health-is-true", OIP + "Health")
def _(s: Server) -> None:
    assert s.ask("GET", "/v2/health/live").json == {"live": True}
    assert s.ask("GET", "/v2/health/ready").json["ready"] is True
    assert s.ask("GET", "/v2/models/labels/ready").json == {"name": "labels", "ready": True}


@case(TABLE, "model-metadata-is-what-the-model-declares", OIP + "Model Metadata Response JSON Object")
def _(s: Server) -> None:
    document = s.ask("GET", "/v2/models/labels").json
    assert document["platform"] == "test_labels"
    assert document["inputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 4]}]
    assert document["outputs"] == [{"name": "classes", "datatype": "FP32", "shape": [-1, 4]}]


@case(TABLE, "model-metadata-types", OIP + "Model Metadata Response JSON Object")
def _(s: Server) -> None:
    for name in ("labels", "versioned", "typed", "simple", "identity", "texts"):
        document = s.ask("GET", f"/v2/models/{name}").json
        assert document["name"] == name
        assert document["platform"].count("_") >= 1
        assert all(isinstance(text, str) for text in document["properties"].values())
        for spec in (*document["inputs"], *document["outputs"]):
            assert set(spec) == {"name", "datatype", "shape"}
            assert all(isinstance(size, int) and size >= -1 for size in spec["shape"])


@case(TABLE, "versions-are-those-that-can-be-asked-for", OIP + "Model Metadata Response JSON Object")
def _(s: Server) -> None:
    document = s.ask("GET", "/v2/models/versioned").json
    assert document["versions"] == ["1", "2", "10"]
    for version in document["versions"]:
        one = s.ask("GET", f"/v2/models/versioned/versions/{version}").json
        assert {**one, "properties": None} == {**document, "properties": None}
        assert s.ask("POST", f"/v2/models/versioned/versions/{version}/infer", GOOD).json["model_version"] == version


@case(TABLE, "no-version-means-the-highest-number", OIP + "Inference: the server may choose")
def _(s: Server) -> None:
    assert s.infer("versioned", scores()).json["model_version"] == "10"


@case(TABLE, "another-version-is-told-those-that-there-are", "good practice")
def _(s: Server) -> None:
    assert "'1', '2', '10'" in s.ask("POST", "/v2/models/versioned/versions/3/infer", GOOD).error
    assert s.ask("POST", "/v2/models/labels/versions/2/infer", GOOD).status == 404


@case(TABLE, "unversioned-models-answer-without-version", OIP + "Inference Response JSON Object")
def _(s: Server) -> None:
    assert "model_version" not in s.infer("labels", scores()).json
    assert "versions" not in s.ask("GET", "/v2/models/labels").json


@case(TABLE, "metadata-names-what-an-answer-holds", OIP + "outputs: all outputs produced by the model")
def _(s: Server) -> None:
    pair = [json_tensor(f"INPUT{i}", "INT32", [1, 4], [1] * 4) for i in (0, 1)]
    for name, tensors in (("labels", [scores()]), ("simple", pair)):
        promised = [spec["name"] for spec in s.ask("GET", f"/v2/models/{name}").json["outputs"]]
        assert [output["name"] for output in s.infer(name, *tensors).json["outputs"]] == promised


@case(TABLE, "optional-outputs-are-named-and-given-when-asked-for", "ours")
def _(s: Server) -> None:
    document = s.ask("GET", "/v2/models/texts").json
    (spec,) = orjson.loads(document["properties"]["optional_outputs"])
    assert [output["name"] for output in document["outputs"]] == ["length"]
    wanted = [{"name": spec["name"], "parameters": {"binary_data": True}}]  # these bytes are no text
    answer = s.infer("texts", json_tensor("text", "BYTES", [1, 1], ["a"]), outputs=wanted)
    head = orjson.loads(answer.body[: int(answer.headers["inference-header-content-length"])])
    assert [output["name"] for output in head["outputs"]] == [spec["name"]]


@case(TABLE, "response-has-exactly-its-fields", OIP + "Inference Response JSON Object: what is optional is left out")
def _(s: Server) -> None:
    document = s.infer("labels", scores()).json
    assert set(document) == {"model_name", "outputs"}
    assert [set(output) for output in document["outputs"]] == [{"name", "datatype", "shape", "data"}]
    assert b"null" not in s.infer("labels", scores()).body


@case(TABLE, "response-length-is-given", OIP + "Inference Request Examples")
def _(s: Server) -> None:
    answer = s.infer("labels", scores())
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert "transfer-encoding" not in answer.headers


for name, value in {
    "text": "42",
    "empty": "",
    "blank": " ",
    "unicode": "ü–🐦",
    "controls": "a\n\t\0b",
    "quotes": '"\\/',
    "long": "x" * 10_000,
    "number": "1e400",
}.items():

    @case(TABLE, f"id-{name}-comes-back", OIP + '"id": must be returned in the response')
    def _(s: Server, value: str = value) -> None:
        assert s.infer("labels", scores(), id=value).json["id"] == value
        assert s.infer("asked", scores(), id=value).json["id"] == value


@case(TABLE, "id-is-never-invented", OIP + '"id": the identifier given in the request, if any')
def _(s: Server) -> None:
    for model in ("labels", "asked", "identity"):
        assert "id" not in s.infer(model, scores()).json
        assert "id" not in s.ask("POST", f"/v2/models/{model}/infer", {**GOOD, "id": None}).json


@case(TABLE, "outputs-filter-and-order", OIP + "outputs: the output tensors requested")
def _(s: Server) -> None:
    inputs = [json_tensor(f"INPUT{i}", "INT32", [1, 4], [1, 2, 3, 4]) for i in (0, 1)]
    for wanted in (["OUTPUT0"], ["OUTPUT1"], ["OUTPUT0", "OUTPUT1"], ["OUTPUT1", "OUTPUT0"]):
        answer = s.infer("simple", *inputs, outputs=[{"name": name} for name in wanted]).json
        assert [output["name"] for output in answer["outputs"]] == wanted
    for none in ([], None):
        answer = s.ask("POST", "/v2/models/simple/infer", {"inputs": inputs, "outputs": none}).json
        assert [output["name"] for output in answer["outputs"]] == ["OUTPUT0", "OUTPUT1"]


@case(TABLE, "inputs-in-any-order", OIP + "Request Input: by name")
def _(s: Server) -> None:
    first, second = (json_tensor(f"INPUT{i}", "INT32", [1, 4], [i + 1] * 4) for i in (0, 1))
    assert s.infer("simple", first, second).json == s.infer("simple", second, first).json


@case(TABLE, "no-rows-give-no-rows", OIP + "shape: unsigned integers")
def _(s: Server) -> None:
    for model, name in (("labels", "scores"), ("identity", "t")):
        answer = s.infer(model, json_tensor(name, "FP32", [0, 4], []))
        assert answer.status == 200, answer.body
        assert answer.json["outputs"][0]["shape"][0] == 0
        assert answer.json["outputs"][0]["data"] == []


@case(TABLE, "many-rows-keep-their-order", OIP + "the full shape of the entire batch")
def _(s: Server) -> None:
    data = [float(i) for i in range(4000)]
    output = s.infer("labels", json_tensor("scores", "FP32", [1000, 4], data)).json["outputs"][0]
    assert (output["shape"], output["data"]) == ([1000, 4], data)


for shape, data in (
    ([2, 2], [[1, 2], [3, 4]]),
    ([2, 2], [1, 2, 3, 4]),
    ([4], [1, 2, 3, 4]),
    ([1, 4, 1], [[[1], [2], [3], [4]]]),
):

    @case(TABLE, f"data-nested-or-flat-{shape}-{isinstance(data[0], list)}", OIP + "Tensor Data")
    def _(s: Server, shape: list[int] = shape, data: Any = data) -> None:
        output = s.infer("identity", json_tensor("t", "INT64", shape, data)).json["outputs"][0]
        assert (output["shape"], output["data"]) == (shape, [1, 2, 3, 4])


@case(TABLE, "unknown-keys-are-ignored", "RFC 8259 clients extend; Triton and MLServer ignore")
def _(s: Server) -> None:
    body = {"extra": {"a": [1]}, "model_name": "other", **GOOD, "inputs": [{**scores(), "extra": 1}]}
    assert s.ask("POST", "/v2/models/labels/infer", body).status == 200


@case(TABLE, "null-stands-for-left-out", "good practice: KServe's and MLServer's clients send null")
def _(s: Server) -> None:
    body = {"id": None, "parameters": None, "outputs": None, "inputs": [{**scores(), "parameters": None}]}
    assert s.ask("POST", "/v2/models/labels/infer", body).status == 200


@case(TABLE, "response-headers-of-a-model", "ours")
def _(s: Server) -> None:
    assert s.infer("asked", scores()).headers["x-answered-by"] == "asked"


@case(TABLE, "v1-has-no-other-verbs", "TensorFlow Serving, api_rest.md")
def _(s: Server) -> None:
    for path in ("/v1/models/labels:rank", "/v1/models/versioned/versions/1:rank"):
        answer = s.ask("POST", path, {"examples": []})
        assert (answer.status, "':rank' is nothing that V1 does" in answer.error) == (404, True)
    assert s.ask("POST", "/v1/models/labels", {"instances": []}).status == 405


@ids(TABLE)
def test_what_the_document_says(server: Server, one: Case):
    one.run(server)


async def test_a_server_that_stops_is_not_ready_but_live():
    async with rest("row") as server:
        server.plane.stop_ready()
        for path in ("/v2/health/ready", "/v2/models/row/ready", "/v1/models/row"):
            answer = await server.ask("GET", path)
            assert answer.status == 503, path
            assert answer.json["ready"] is False
            assert "not ready" in answer.json["error"]
            assert int(answer.headers["retry-after"]) >= 1
        assert (await server.ask("GET", "/v2/health/live")).status == 200


async def test_a_model_that_is_unloaded_is_not_ready_and_not_found_is_404():
    async with rest("row", "simple") as server:
        assert (await server.ask("POST", "/v2/repository/models/row/unload")).status == 200
        assert (await server.ask("GET", "/v2/models/row/ready")).status == 404
        infer = await server.ask("POST", "/v2/models/row/infer", X)
        assert (infer.status, "retry-after" in infer.headers) == (404, False)
        assert (await server.ask("GET", "/v2/models/nobody/ready")).status == 404


@BOTH
async def test_the_documents_infer_example(http):
    """inference_rest.md, "Inference Request Examples": names, id, output filter (its BOOL input has 3 values here, as it says)."""
    request = {
        "id": "42",
        "inputs": [
            {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "data": [1, 2, 3, 4]},
            {"name": "input1", "shape": [3], "datatype": "BOOL", "data": [True, False, True]},
        ],
        "outputs": [{"name": "input0"}],
    }
    async with rest("echo", http=http) as server:
        answer = await server.ask("POST", "/v2/models/echo/infer", request)
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert int(answer.headers["content-length"]) == len(answer.body)
        assert answer.json == {
            "model_name": "echo",
            "id": "42",
            "parameters": {"a": 1},
            "outputs": [{"name": "input0", "datatype": "UINT32", "shape": [2, 2], "data": [1, 2, 3, 4]}],
        }


RAW = {
    "FP32": np.array([1.5, -2.25], "<f4").tobytes(),
    "FP16": np.array([1.5, -2.25], "<f2").tobytes(),
    "BF16": b"\xc0\x3f\x10\xc0",
    "BOOL": b"\x01\x00",
    "INT64": struct.pack("<qq", -1, 2**62),
    "BYTES": struct.pack("<I", 3) + b"a\xff\0" + struct.pack("<I", 0),
}


@BOTH
@pytest.mark.parametrize("datatype", RAW)
async def test_every_datatype_goes_round_raw(datatype, http):
    """extension_binary_data.md: raw in, raw out, and the headers that say how long the JSON part is."""
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": "t",
                    "shape": [2],
                    "datatype": datatype,
                    "parameters": {"binary_data_size": len(RAW[datatype])},
                }
            ],
            "outputs": [{"name": "t", "parameters": {"binary_data": True}}],
        }
    )
    async with rest("echo", http=http) as server:
        answer = await server.ask(
            "POST",
            "/v2/models/echo/infer",
            head + RAW[datatype],
            {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
        )
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"] == "application/octet-stream"
        length = int(answer.headers["inference-header-content-length"])
        assert int(answer.headers["content-length"]) == len(answer.body)
        output = orjson.loads(answer.body[:length])["outputs"][0]
        assert output["parameters"]["binary_data_size"] == len(RAW[datatype])
        assert answer.body[length:] == RAW[datatype]


async def test_classification_gives_the_best_classes():
    """extension_classification.md: "score:index:label" strings, best first."""
    request = {**X, "outputs": [{"name": "y", "parameters": {"classification": 1}}]}
    async with rest("row") as server:
        output = (await server.ask("POST", "/v2/models/row/infer", request)).json["outputs"][0]
        assert output["datatype"] == "BYTES"
        (best,) = np.array(output["data"]).ravel()
        assert best.split(":")[1:] == ["1", "high"]


async def test_a_timeout_parameter_that_passes_is_504():
    """extension_schedule_policy.md: microseconds."""
    async with rest("gate") as server:
        answer = await server.ask("POST", "/v2/models/gate/infer", {**X1, "parameters": {"timeout": 50_000}})
        assert answer.status == 504
        server.model("gate").open.set()


async def test_a_full_queue_is_429_and_says_when_to_come_back():
    async with rest("gate") as server:
        clients = [await Raw.open(server.port) for _ in range(8)]
        for client in clients:
            await client.send(wire("POST", "/v2/models/gate/infer", X1))
        answers = [asyncio.ensure_future(client.answer()) for client in clients]
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        server.model("gate").open.set()
        got = await asyncio.gather(*answers)
        assert {answer.status for answer in got} == {200, 429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in got if answer.status == 429)
        for client in clients:
            await client.close()


async def test_statistics_have_the_fields_that_perf_analyzer_reads():
    async with rest("row", "simple") as server:
        await server.ask("POST", "/v2/models/row/infer", X)
        one = (await server.ask("GET", "/v2/models/row/versions/2/stats")).json["model_stats"]
        assert [(stat["name"], stat["version"], stat["inference_count"]) for stat in one] == [("row", "2", 1)]
        timings = one[0]["inference_stats"]
        assert {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"} <= set(timings)
        assert timings["success"]["count"] == 1
        assert timings["success"]["ns"] >= timings["queue"]["ns"] + timings["compute_infer"]["ns"]
        everything = (await server.ask("GET", "/v2/models/stats")).json["model_stats"]
        assert {stat["name"] for stat in everything} == {"row", "simple"}
        assert (await server.ask("GET", "/v2/models/nobody/stats")).status == 404


async def test_models_are_loaded_and_unloaded():
    async with rest("row") as server:
        assert (await server.ask("POST", "/v2/models/late/infer", X)).status == 404
        loaded = await server.ask("POST", "/v2/repository/models/late/load", {"parameters": {}})
        assert (loaded.status, loaded.json) == (200, {"name": "late", "load": True})
        assert (await server.ask("POST", "/v2/models/late/infer", X)).status == 200
        index = {entry["name"]: entry for entry in (await server.ask("POST", "/v2/repository/index")).json}
        assert index["late"]["state"] == "READY"
        assert index["simple"]["state"] == "UNAVAILABLE"
        ready = (await server.ask("POST", "/v2/repository/index", {"ready": True})).json
        assert {entry["name"] for entry in ready} == {"late", "row"}
        gone = await server.ask("POST", "/v2/repository/models/late/unload")
        assert (gone.status, gone.json) == (200, {"name": "late", "unload": True})
        assert (await server.ask("POST", "/v2/repository/models/nobody/load")).status == 404
        assert (await server.ask("POST", "/v2/repository/index", [1])).status == 400
        assert (await server.ask("POST", "/v2/repository/index", {"ready": "yes"})).status == 400


async def test_the_list_of_models_and_the_configuration():
    async with rest("row", "simple") as server:
        assert sorted((await server.ask("GET", "/v2/models")).json["models"]) == ["row", "simple"]
        config = (await server.ask("GET", "/v2/models/row/config")).json
        assert config["max_batch_size"] == 4096
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]


async def test_v1_rows_columns_and_a_models_own():
    async with rest("row", "speaker") as server:
        rows = await server.ask("POST", "/v1/models/row:predict", {"instances": [[1, 2, 3], [0, 0, 0]]})
        assert (rows.status, rows.json) == (200, {"predictions": [[-5.0, 6.0], [1.0, 0.0]]})
        columns = await server.ask("POST", "/v1/models/row/versions/1:predict", {"inputs": {"x": [[1, 2, 3]]}})
        assert columns.json == {"outputs": [[-5.0, 6.0]]}
        assert (await server.ask("POST", "/v1/models/row:predict", {"rows": []})).status == 400
        own = await server.ask("POST", "/v1/models/speaker:predict", {"anything": [1]})
        assert own.json == {"predictions": [0, 1, 2], "said": [1]}
        refused = await server.ask("POST", "/v1/models/speaker:predict", {})
        assert (refused.status, refused.json) == (400, {"error": "'anything' was expected"})
        assert (await server.ask("POST", "/v1/models/speaker:explain", {"a": 1})).json == {"explanations": [{"a": 1}]}
        none = await server.ask("POST", "/v1/models/row:explain", {"instances": [[1, 2, 3]]})
        assert none.status == 501
        assert (await server.ask("GET", "/v1/models")).json == {"models": ["row", "speaker"]}
        fine = {"error_code": "OK", "error_message": ""}
        states = [{"version": version, "state": "AVAILABLE", "status": fine} for version in ("2", "1")]
        told = {"name": "row", "ready": True, "model_version_status": states}
        assert (await server.ask("GET", "/v1/models/row")).json == told
        one = await server.ask("GET", "/v1/models/row/versions/1")
        assert one.json == {"name": "row", "ready": True, "model_version_status": states[1:]}
        for version, path in (("2", "/v1/models/row/metadata"), ("1", "/v1/models/row/versions/1/metadata")):
            metadata = (await server.ask("GET", path)).json
            assert metadata["model_spec"] == {"name": "row", "signature_name": "", "version": version}
            (signature,) = metadata["metadata"]["signature_def"]["signature_def"].items()
            assert signature[0] == "serving_default"
            assert signature[1]["inputs"]["x"]["dtype"] == "DT_FLOAT"
        assert (await server.ask("GET", "/v1/models/nobody/metadata")).status == 404
        named = {"instances": [[1, 2, 3]], "signature_name": "serving_default"}
        assert (await server.ask("POST", "/v1/models/row:predict", named)).status == 200
        other = await server.ask("POST", "/v1/models/row:predict", {**named, "signature_name": "other"})
        assert (other.status, "'other'" in other.json["error"]) == (400, True)
        assert (await server.ask("GET", "/v1/models/row%3Apredict")).status == 405
        assert (await server.ask("POST", "/v1/models/row%3Apredict", {"instances": [[1, 2, 3]]})).status == 200
        assert (await server.ask("GET", "/v1/models/nobody")).status == 404


async def test_metrics_and_liveness():
    async with rest("row") as server:
        await server.ask("POST", "/v2/models/row/infer", X)
        await server.ask("GET", "/nowhere")
        page = await server.ask("GET", "/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert b'nv_inference_request_success{model="row",version="2"' in page.body
        assert (await server.ask("GET", "/")).json == {"status": "alive"}


async def test_an_unknown_path_names_those_that_there_are():
    async with rest("row") as server:
        answer = await server.ask("GET", "/v3")
        assert answer.status == 404
        assert "/v2/models/{model}/infer" in answer.json["error"]
        answer = await server.ask("POST", "/v2/models/nobody/infer", X)
        assert answer.status == 404
        assert "'row'" in answer.json["error"]


async def test_a_models_own_routes_are_served():
    async def handler(request):
        assert request.headers["x-a"] == "b"
        said = orjson.dumps(
            [request.method, request.path, dict(request.query), request.parameters, request.body.decode()]
        )
        return 201, {"Content-Type": "text/x", "X-Own": "1"}, said

    async def broken(request):
        raise ZeroDivisionError("a secret")

    routes = [("PUT", "/own/{name}/route", handler), ("GET", "/own/broken", broken)]
    async with rest("row", extra_routes=routes) as server:
        answer = await server.ask("PUT", "/own/a%20b/route?c=d", b"body", {"X-A": "b"})
        assert (answer.status, answer.headers["content-type"], answer.headers["x-own"]) == (201, "text/x", "1")
        assert answer.json == ["PUT", "/own/a%20b/route", {"c": "d"}, ["a b"], "body"]
        packed = await server.ask(
            "PUT", "/own/a/route", gzip.compress(b"body"), {"X-A": "b", "Content-Encoding": "gzip"}
        )
        assert packed.json[4] == "body"
        wrong = await server.ask("PUT", "/own/a/route", b"no gzip", {"X-A": "b", "Content-Encoding": "gzip"})
        assert wrong.status == 400
        failed = await server.ask("GET", "/own/broken")
        assert failed.status == 500
        assert b"secret" not in failed.body
        assert b"ZeroDivisionError" not in failed.body
        assert "/own/{name}/route" in (await server.ask("GET", "/openapi.json")).json["paths"]
