"""inference_rest.md, statement by statement, and the HTTP that carries it (RFC 9110, RFC 9112), against a real `serinus serve`."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from conformance_support import Case, Server, case, ids, json_tensor, server_process

ODD = "mod%C3%A8le%20no.%201%2Fa"
OIP = "inference_rest.md, "


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_process(tmp_path_factory.mktemp("rest")) as running:
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
    ("v1-model", "/v1/models/labels", 200, {"name", "ready"}),
    ("root", "/", 200, {"status"}),
    ("unknown-model", "/v2/models/nobody", 404, {"error"}),
    ("unknown-model-ready", "/v2/models/nobody/ready", 404, {"error"}),
    ("unknown-version", "/v2/models/versioned/versions/3", 404, {"error"}),
    ("unknown-version-ready", "/v2/models/versioned/versions/3/ready", 404, {"error"}),
    ("version-of-an-unversioned-model", "/v2/models/labels/versions/1", 404, {"error"}),
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


# Requests that are wrong: what they hold beside or in place of the good one, and words of the message.
WRONG: list[tuple[str, Any, tuple[str, ...]]] = [
    ("empty-body", b"", ("empty",)),
    ("blank-body", b"  ", ("JSON",)),
    ("no-json", b"hello", ("JSON",)),
    ("cut-short", b'{"inputs": [', ("JSON",)),
    ("two-documents", b"{}{}", ("JSON",)),
    ("trailing-comma", b'{"inputs": [],}', ("JSON",)),
    ("single-quotes", b"{'inputs': []}", ("JSON",)),
    ("comment", b'{"inputs": [] /* none */}', ("JSON",)),
    ("not-utf-8", b'{"id": "\xff"}', ("JSON",)),
    ("utf-16", '{"inputs": []}'.encode("utf-16"), ("JSON",)),
    ("lone-surrogate", b'{"inputs": [], "id": "\\ud800"}', ("JSON",)),
    ("array", [], ("an array",)),
    ("string", b'"inputs"', ("string",)),
    ("number", b"1", ("object",)),
    ("null", b"null", ("null",)),
    ("empty-object", {}, ("'inputs'", "missing")),
    ("inputs-null", {"inputs": None}, ("'inputs'",)),
    ("inputs-empty", {"inputs": []}, ("'inputs'", "empty")),
    ("inputs-object", {"inputs": {"scores": [1]}}, ("'inputs'", "object")),
    ("inputs-string", {"inputs": "scores"}, ("'inputs'",)),
    ("input-number", {"inputs": [1]}, ("input 0",)),
    ("input-null", {"inputs": [None]}, ("input 0", "null")),
    ("input-array", {"inputs": [[]]}, ("input 0",)),
    ("input-empty", {"inputs": [{}]}, ("input 0", "'name'")),
    ("id-number", {**GOOD, "id": 1}, ("'id'", "string")),
    ("id-true", {**GOOD, "id": True}, ("'id'",)),
    ("id-object", {**GOOD, "id": {}}, ("'id'",)),
    ("id-array", {**GOOD, "id": ["1"]}, ("'id'",)),
    ("parameters-array", {**GOOD, "parameters": []}, ("'parameters'",)),
    ("parameters-string", {**GOOD, "parameters": "x"}, ("'parameters'",)),
    ("parameter-null", {**GOOD, "parameters": {"p": None}}, ("'p'", "null")),
    ("parameter-object", {**GOOD, "parameters": {"p": {}}}, ("'p'", "object")),
    ("parameter-array", {**GOOD, "parameters": {"p": [1]}}, ("'p'", "array")),
    ("outputs-object", {**GOOD, "outputs": {}}, ("'outputs'",)),
    ("outputs-string", {**GOOD, "outputs": "classes"}, ("'outputs'",)),
    ("output-string", {**GOOD, "outputs": ["classes"]}, ("output 0", "object")),
    ("output-unnamed", {**GOOD, "outputs": [{}]}, ("output 0", "'name'")),
    ("output-name-empty", {**GOOD, "outputs": [{"name": ""}]}, ("output 0",)),
    ("output-name-number", {**GOOD, "outputs": [{"name": 1}]}, ("output 0",)),
    ("output-unknown", {**GOOD, "outputs": [{"name": "nothing"}]}, ("'nothing'", "'classes'")),
    ("output-unknown-beside-known", {**GOOD, "outputs": [{"name": "classes"}, {"name": "no"}]}, ("'no'",)),
    ("output-twice", {**GOOD, "outputs": [{"name": "classes"}] * 2}, ("'classes'", "twice")),
    ("output-parameters-array", {**GOOD, "outputs": [{"name": "classes", "parameters": []}]}, ("'parameters'",)),
    ("input-twice", {"inputs": [scores(), scores()]}, ("'scores'", "twice")),
    ("input-unknown", {"inputs": [{**scores(), "name": "x"}]}, ("'x'", "'scores'")),
    ("input-too-many", {"inputs": [scores(), {**scores(), "name": "more"}]}, ("'more'",)),
    ("nested-too-deep", b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", ("nest",)),
    ("nested-deep", b'{"inputs": ' + b"[" * 200 + b"]" * 200 + b"}", ("nest",)),
]
for field in ("name", "shape", "datatype", "data"):
    tensor = scores()
    del tensor[field]
    WRONG.append((f"{field}-missing", {"inputs": [tensor]}, (f"'{field}'",)))
    WRONG.append((f"{field}-null", {"inputs": [{**scores(), field: None}]}, (f"'{field}'",)))
for field, values in {
    "name": ("", 1, True, [], {}),
    "shape": (
        "1,4",
        4,
        {},
        [1, -4],
        [1.5, 4],
        ["1", 4],
        [True, 4],
        [None, 4],
        [[1, 4]],
        [2**64 - 1, 4],
        [-1, -1],
        [-1, 4],
    ),
    "datatype": ("", "fp32", "FLOAT", "FP128", "STRING", 32, True, [], {}, "FP32 "),
    "data": ("1,2,3,4", 1, True, {}, [], [1], [1, 2, 3], [1, 2, 3, 4, 5], [[1, 2], [3, 4]], [[[1, 2, 3, 4]]]),
    "parameters": (1, "x", [], {"p": None}, {"p": []}, {"p": {}}),
}.items():
    for index, value in enumerate(values):
        WRONG.append((f"{field}-wrong-{index}", {"inputs": [{**scores(), field: value}]}, ()))
for index, data in enumerate(
    (
        ["1", "2", "3", "4"],
        [1, 2, 3, None],
        [1, 2, 3, True],
        [1, 2, 3, {}],
        [1, 2, 3, [4]],
        [[1, 2, 3], 4],
        [[1, 2, 3, 4], []],
    )
):
    WRONG.append((f"data-kinds-{index}", {"inputs": [{**scores(), "data": data}]}, ("'scores'",)))


@pytest.mark.parametrize(("body", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_request_is_400_in_words(server: Server, body: Any, words: tuple[str, ...]):
    """inference_rest.md, "Inference Response JSON Error Object": an HTTP error status and {"error": message}."""
    answer = server.ask("POST", "/v2/models/labels/infer", body)
    assert answer.status == 400, answer.body
    for word in words:
        assert word in answer.error
    for secret in ("Traceback", "orjson", "Error:", "numpy", ".py", "<class"):
        assert secret not in answer.error
    assert answer.headers["content-type"] == "application/json"
    assert server.alive()


TABLE: list[Case] = []


@case(TABLE, "server-metadata-types", OIP + "Server Metadata Response JSON Object")
def _(s: Server) -> None:
    document = s.ask("GET", "/v2").json
    assert isinstance(document["name"], str)
    assert isinstance(document["version"], str)
    assert all(isinstance(extension, str) for extension in document["extensions"])
    assert len(set(document["extensions"])) == len(document["extensions"])


@case(TABLE, "every-extension-that-is-served-is-named", "Triton, protocol/README.md")
def _(s: Server) -> None:
    assert {
        *("binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters"),
        *("model_repository(unload_dependents)", "schedule_policy", "statistics"),
    } == set(s.ask("GET", "/v2").json["extensions"])


@case(TABLE, "model-metadata-types", OIP + "Model Metadata Response JSON Object")
def _(s: Server) -> None:
    for name in ("labels", "versioned", "typed", "xgb", "identity", "texts"):
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


@case(TABLE, "unversioned-models-answer-without-version", OIP + "Inference Response JSON Object")
def _(s: Server) -> None:
    assert "model_version" not in s.infer("labels", scores()).json
    assert "versions" not in s.ask("GET", "/v2/models/labels").json


@case(TABLE, "metadata-names-what-an-answer-holds", OIP + "outputs: all outputs produced by the model")
def _(s: Server) -> None:
    for name, tensor in (("labels", scores()), ("xgb", {**scores(), "name": "input-0"})):
        promised = [spec["name"] for spec in s.ask("GET", f"/v2/models/{name}").json["outputs"]]
        assert [output["name"] for output in s.infer(name, tensor).json["outputs"]] == promised


@case(TABLE, "optional-outputs-are-named-and-given-when-asked-for", "ours")
def _(s: Server) -> None:
    properties = s.ask("GET", "/v2/models/xgb").json["properties"]
    for spec in orjson.loads(properties["optional_outputs"]):
        answer = s.infer("xgb", {**scores(), "name": "input-0"}, outputs=[{"name": spec["name"]}]).json
        assert [output["name"] for output in answer["outputs"]] == [spec["name"]]


@case(TABLE, "response-has-exactly-its-fields", OIP + "Inference Response JSON Object: what is optional is left out")
def _(s: Server) -> None:
    document = s.infer("labels", scores()).json
    assert set(document) == {"model_name", "outputs"}
    assert [set(output) for output in document["outputs"]] == [{"name", "datatype", "shape", "data"}]


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


@case(TABLE, "a-missing-input-is-named", "good practice")
def _(s: Server) -> None:
    s.refused(400, "simple", json_tensor("INPUT0", "INT32", [1, 4], [1] * 4), says=("'INPUT1'", "missing"))


@case(TABLE, "inputs-of-different-rows-are-refused", "good practice")
def _(s: Server) -> None:
    inputs = [json_tensor(f"INPUT{i}", "INT32", [1 + i, 4], [1] * 4 * (1 + i)) for i in (0, 1)]
    s.refused(400, "simple", *inputs, says=("'INPUT1'", "rows"))


@case(TABLE, "another-datatype-names-both", "good practice")
def _(s: Server) -> None:
    s.refused(400, "labels", json_tensor("scores", "FP64", [1, 4], [1] * 4), says=("'scores'", "FP64", "FP32"))


@case(TABLE, "another-rank-names-both", "good practice")
def _(s: Server) -> None:
    s.refused(400, "labels", json_tensor("scores", "FP32", [4], [1] * 4), says=("'scores'", "[4]", "[-1, 4]"))


@case(TABLE, "another-dimension-names-both", "good practice")
def _(s: Server) -> None:
    s.refused(400, "labels", json_tensor("scores", "FP32", [1, 5], [1] * 5), says=("'scores'", "[1, 5]", "[-1, 4]"))


@case(TABLE, "a-count-that-does-not-fit-names-both", "good practice")
def _(s: Server) -> None:
    s.refused(400, "labels", json_tensor("scores", "FP32", [1, 4], [1] * 3), says=("'scores'", "4", "3"))


@case(TABLE, "no-rows-give-no-rows", OIP + "shape: unsigned integers")
def _(s: Server) -> None:
    for model, name in (("labels", "scores"), ("identity", "t"), ("xgb", "input-0")):
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


for shape, data in (
    ([2, 2], [[1, 2, 3, 4]]),
    ([2, 2], [[1], [2], [3], [4]]),
    ([2, 2], [[1, 2], [3]]),
    ([2, 2], [[1, 2], 3, 4]),
):

    @case(TABLE, f"ragged-or-otherwise-nested-{data}", OIP + "Tensor Data: natural or flat")
    def _(s: Server, shape: list[int] = shape, data: Any = data) -> None:
        s.refused(400, "identity", json_tensor("t", "INT64", shape, data), says=("'t'",))


@case(TABLE, "unknown-keys-are-ignored", "RFC 8259 clients extend; Triton and MLServer ignore")
def _(s: Server) -> None:
    body = {"extra": {"a": [1]}, "model_name": "other", **GOOD, "inputs": [{**scores(), "extra": 1}]}
    assert s.ask("POST", "/v2/models/labels/infer", body).status == 200


@case(TABLE, "null-stands-for-left-out", "good practice: KServe's and MLServer's clients send null")
def _(s: Server) -> None:
    body = {"id": None, "parameters": None, "outputs": None, "inputs": [{**scores(), "parameters": None}]}
    assert s.ask("POST", "/v2/models/labels/infer", body).status == 200


@case(TABLE, "an-unknown-model-is-404", "good practice")
def _(s: Server) -> None:
    answer = s.infer("nobody", scores())
    assert answer.status == 404
    assert "'nobody'" in answer.error


@case(TABLE, "a-models-own-failure-is-500-without-secrets", "good practice")
def _(s: Server) -> None:
    answer = s.infer("broken", json_tensor("x", "FP32", [1, 1], [1]))
    assert answer.status == 500
    for secret in ("secret", "ZeroDivision", "Traceback", ".py"):
        assert secret not in answer.error
    assert s.alive()


@case(TABLE, "nan-is-no-number", "RFC 8259, 6")
def _(s: Server) -> None:
    for text in (b"NaN", b"Infinity", b"-Infinity", b"nan", b"1e999", b"01", b"+1", b".5", b"1.", b"0x1", b"--1"):
        body = b'{"inputs":[{"name":"scores","shape":[1,4],"datatype":"FP32","data":[1,2,3,' + text + b"]}]}"
        assert s.ask("POST", "/v2/models/labels/infer", body).status == 400, text
        assert s.alive()


@case(TABLE, "a-huge-claim-costs-nothing", "good practice: Triton dies of 2^31 rows")
def _(s: Server) -> None:
    for shape in ([2**31, 4], [2**63 - 1, 1], [2**40] * 4, [2**62, 2**62], [1] * 33, [2**31, 0, 2**31]):
        answer = s.infer("identity", json_tensor("t", "FP32", shape, [1.0] * 4))
        assert answer.status == 400, shape
        assert s.alive()


@case(TABLE, "response-headers-of-a-model", "ours")
def _(s: Server) -> None:
    assert s.infer("asked", scores()).headers["x-answered-by"] == "asked"


@case(TABLE, "request-id-is-echoed", "good practice")
def _(s: Server) -> None:
    for path in ("/v2", "/v2/models/nobody", "/nothing"):
        assert s.ask("GET", path, headers={"X-Request-Id": "r 1"}).headers["x-request-id"] == "r 1"
    assert s.infer("labels", scores(), headers={"X-Request-Id": "r-2"}).headers["x-request-id"] == "r-2"


for kind in (
    *("application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"', "text/plain", "*/*"),
    *(None, "application/x-www-form-urlencoded", "application/octet-stream", "application/vnd.a+json"),
):

    @case(TABLE, f"content-type-{kind}", "RFC 9110, 8.3: servers may examine the data; KServe answers 400")
    def _(s: Server, kind: str | None = kind) -> None:
        answer = s.ask("POST", "/v2/models/labels/infer", GOOD, {"Content-Type": kind})
        assert answer.status == 200, answer.body
        assert s.ask("POST", "/v2/models/labels/infer", b"{", {"Content-Type": kind}).status == 400


@case(TABLE, "another-charset-is-415", "RFC 8259, 8.1")
def _(s: Server) -> None:
    answer = s.ask("POST", "/v2/models/labels/infer", GOOD, {"Content-Type": "application/json; charset=latin-1"})
    assert answer.status == 415
    assert s.alive()


for path, allow in {
    "/v2": "GET, HEAD, OPTIONS",
    "/v2/models/labels": "GET, HEAD, OPTIONS",
    "/v2/models/labels/ready": "GET, HEAD, OPTIONS",
    "/v2/health/live": "GET, HEAD, OPTIONS",
    "/v2/models/labels/infer": "OPTIONS, POST",
    "/v2/repository/index": "OPTIONS, POST",
    "/v1/models/labels:predict": "OPTIONS, POST",
}.items():
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"):
        if method not in allow.split(", "):

            @case(TABLE, f"{method}-{path}-is-405", "RFC 9110, 15.5.6: with Allow")
            def _(s: Server, method: str = method, path: str = path, allow: str = allow) -> None:
                answer = s.ask(method, path, None if method == "HEAD" else {})
                assert (answer.status, answer.headers["allow"]) == (405, allow)
                assert method == "HEAD" or answer.error
                assert s.alive()

    @case(TABLE, f"OPTIONS-{path}", "RFC 9110, 9.3.7")
    def _(s: Server, path: str = path, allow: str = allow) -> None:
        answer = s.ask("OPTIONS", path)
        assert (answer.status, answer.headers["allow"], answer.body) == (204, allow, b"")


@case(TABLE, "an-unknown-method", "RFC 9110, 9.1: 501 or 405")
def _(s: Server) -> None:
    assert s.exchange(b"BREW /v2 HTTP/1.1\r\nHost: a\r\n\r\n").status in (405, 501)
    s.hang_up()


@case(TABLE, "get-may-carry-a-body", "RFC 9110, 9.3.1")
def _(s: Server) -> None:
    assert s.ask("GET", "/v2", b"ignored").status == 200
    assert s.alive()


@case(TABLE, "chunked-requests", "RFC 9112, 7.1")
def _(s: Server) -> None:
    import orjson

    body = orjson.dumps(GOOD)
    head = b"POST /v2/models/labels/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
    answer = s.exchange(head + pieces + b"0\r\nTrailer: x\r\n\r\n")
    assert answer.status == 200
    assert s.alive()


@case(TABLE, "expect-100-continue", "RFC 9110, 10.1.1")
def _(s: Server) -> None:
    import orjson

    body = orjson.dumps(GOOD)
    head = f"POST /v2/models/labels/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    assert s.exchange(head.encode()).status == 100
    assert s.exchange(body).status == 200


for name, lines, status in (
    ("no-host", b"GET /v2 HTTP/1.1\r\n\r\n", 400),
    ("host-that-is-none", b"GET /v2 HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    ("host-in-quotes", b'GET /v2 HTTP/1.1\r\nHost: "a"\r\n\r\n', 400),
    ("two-hosts-one-is-none", b"GET /v2 HTTP/1.1\r\nHost: a b\r\nHost: a\r\n\r\n", 400),
    ("two-hosts", b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("space-before-colon", b"GET /v2 HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    ("folded-field", b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    ("two-lengths", b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    ("negative-length", b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    ("length-in-words", b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: ten\r\n\r\n", 400),
    (
        "length-and-chunked",
        b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("bad-chunk", b"POST /v2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ("unknown-coding", b"POST /v2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: rot13\r\n\r\n", 400),
    ("http-2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("http-1.2", b"GET /v2 HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    ("garbage", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    ("long-target", b"GET /v2?" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    ("large-head", b"GET /v2 HTTP/1.1\r\nHost: a\r\n" + b"X: %b\r\n" % (b"a" * 8000) * 10 + b"\r\n", 431),
    ("huge-body", b"POST /v2/models/labels/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413),
    ("connect", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    ("other-expectation", b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: magic\r\n\r\n", 417),
):

    @case(TABLE, f"http-{name}", "RFC 9112, 2.2, 3, 5, 6; RFC 9110, 15; RFC 6585")
    def _(s: Server, lines: bytes = lines, status: int = status) -> None:
        s.hang_up()
        answer = s.exchange(lines)
        assert answer.status == status
        assert answer.error
        s.hang_up()


@case(TABLE, "http-1.0", "RFC 9112, 9.3")
def _(s: Server) -> None:
    s.hang_up()
    answer = s.exchange(b"GET /v2 HTTP/1.0\r\n\r\n")
    assert answer.status == 200
    s.hang_up()
    assert s.exchange(b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").headers["connection"] == "keep-alive"
    s.hang_up()


@case(TABLE, "connection-close", "RFC 9112, 9.6")
def _(s: Server) -> None:
    answer = s.ask("GET", "/v2", headers={"Connection": "close"})
    assert answer.headers["connection"] == "close"


@case(TABLE, "pipelined-answers-in-order", "RFC 9112, 9.3.2")
def _(s: Server) -> None:
    one = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    two = b"GET /v2/models HTTP/1.1\r\nHost: a\r\n\r\n"
    assert "live" in s.exchange(one + two + one).json
    assert "models" in s.exchange(b"").json
    assert "live" in s.exchange(b"").json


@case(TABLE, "absolute-form", "RFC 9112, 3.2.2")
def _(s: Server) -> None:
    assert s.ask("GET", "http://localhost:8080/v2/models/labels").status == 200


for coding, encode in {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "identity": bytes,
}.items():

    @case(TABLE, f"content-encoding-{coding}", "RFC 9110, 8.4")
    def _(s: Server, coding: str = coding, encode: Any = encode) -> None:
        import orjson

        answer = s.ask("POST", "/v2/models/labels/infer", encode(orjson.dumps(GOOD)), {"Content-Encoding": coding})
        assert answer.status == 200


for name, coding, body, status in (
    ("not-gzip", "gzip", b"{}", 400),
    ("cut-gzip", "gzip", gzip.compress(b"{}" * 100)[:20], 400),
    ("not-deflate", "deflate", b"{}", 400),
    ("br", "br", b"{}", 415),
    ("chain", "gzip, gzip", gzip.compress(gzip.compress(b"{}")), 415),
    ("bomb", "gzip", gzip.compress(b" " * (70 << 20), 9), 413),
):

    @case(TABLE, f"content-encoding-wrong-{name}", "RFC 9110, 8.4, 15.5.16; good practice: bombs")
    def _(s: Server, coding: str = coding, body: bytes = body, status: int = status) -> None:
        answer = s.ask("POST", "/v2/models/labels/infer", body, {"Content-Encoding": coding})
        assert answer.status == status
        assert answer.error
        assert s.alive()


for accept, coding in {"gzip": "gzip", "deflate": "deflate", "identity": None, "br": None, "gzip;q=0": None}.items():

    @case(TABLE, f"accept-encoding-{accept}", "RFC 9110, 12.5.3")
    def _(s: Server, accept: str = accept, coding: str | None = coding) -> None:
        answer = s.infer("labels", scores(), headers={"Accept-Encoding": accept})
        assert answer.headers.get("content-encoding") == coding
        body = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[coding](answer.body)
        assert body == s.infer("labels", scores()).body


HOSTS = {
    "ipv6": "[::1]:8080",
    "name": "a-b_c.example:80",
    "none": "",
    "port": "h:",
    "envoys-cluster": "httproute/default/name/rule/0",
    "istios-cluster": "outbound|80||name.default.svc.cluster.local",
}
for name, host in HOSTS.items():

    @case(TABLE, f"host-{name}", "RFC 9110, 7.2; RFC 3986, 3.2.2")
    def _(s: Server, host: str = host) -> None:
        assert s.exchange(f"GET /v2 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == 200


for name, body in {"no-json": b"{", "empty": b"", "no-inputs": b"{}", "good": orjson.dumps(GOOD)}.items():
    for path in ("nobody", "versioned/versions/9"):

        @case(
            TABLE, f"unknown-model-before-a-{name}-body-{path}", "RFC 9110, 15.5.5: the target comes before its content"
        )
        def _(s: Server, path: str = path, body: bytes = body) -> None:
            answer = s.ask("POST", f"/v2/models/{path}/infer", body)
            assert answer.status == 404
            assert path.partition("/")[0] in answer.error


@case(TABLE, "json-length-given-twice", "extension_binary_data.md: one length; RFC 9110, 5.3")
def _(s: Server) -> None:
    body = orjson.dumps(GOOD)
    lines = ["POST /v2/models/labels/infer HTTP/1.1", "Host: a", f"Content-Length: {len(body)}"]
    for other, status in ((len(body), 200), (5, 400)):
        lengths = [f"Inference-Header-Content-Length: {length}" for length in (len(body), other)]
        head = "\r\n".join([*lines, *lengths, "", ""]).encode()
        assert s.exchange(head + body).status == status
        assert s.alive()


@ids(TABLE)
def test_rest(server: Server, one: Case):
    one.run(server)


def test_nothing_of_this_left_a_traceback_but_the_models_own(server: Server):
    """Client faults are not logged as tracebacks. Runs last in this module."""
    log = server.served.log.read_text()
    assert log.count("Traceback") == log.count("ERROR serinus.model: model 'broken' failed")
