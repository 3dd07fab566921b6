"""What the OpenAPI document promises, operation by operation and field by field: clients are generated from it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from serinus import __version__
from serinus.server.rest.pages.openapi import openapi_document, operations_html

ANY = ["400", "405", "408", "413", "414", "417", "431"]
"""What is refused whatever is asked for."""
MODEL = ["404", "503"]
ALL = ["404", "409", "415", "429", "500", "501", "502", "503", "504"]
CHANGE = ["401", "403", *ALL]
OPERATIONS: dict[str, tuple[str, str, str, str, list[str]]] = {
    # method and path: tag, summary, what it takes, what it answers, what else is refused
    "get /": ("health", "Is the process alive (KServe)", "", "Alive", []),
    "get /v2": ("metadata", "Server metadata", "", "ServerMetadata", []),
    "get /v2/health/live": ("health", "Server live", "", "ServerLive", ["503"]),
    "get /v2/health/ready": ("health", "Server ready", "", "ServerReady", ["503"]),
    "get /v2/models": ("metadata", "Names of the models (KServe)", "", "ModelNames", []),
    "get /v2/models/stats": ("statistics", "Statistics of all models", "", "ModelStatistics", []),
    "post /v2/repository/index": (
        *("repository", "Index of the model repository", "RepositoryIndexRequest?", "RepositoryIndex"),
        ["415"],
    ),
    "get /v1/models": ("v1", "Names of the models (V1)", "", "ModelNames", []),
    "get /metrics": ("metrics", "Metrics in Prometheus's text format", "", "text/plain", []),
    "post /v2/repository/models/{model}/load": (
        "repository",
        "Load a model",
        "LoadRequest?",
        "RepositoryAnswer",
        CHANGE,
    ),
    "post /v2/repository/models/{model}/unload": (
        *("repository", "Unload a model", "UnloadRequest?", "RepositoryAnswer"),
        CHANGE,
    ),
}
for _model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
    OPERATIONS |= {
        f"get {_model}": ("metadata", "Model metadata", "", "ModelMetadata", MODEL),
        f"get {_model}/ready": ("health", "Model ready", "", "ModelReady", MODEL),
        f"get {_model}/config": ("metadata", "Model configuration", "", "ModelConfig", MODEL),
        f"get {_model}/stats": ("statistics", "Model statistics", "", "ModelStatistics", MODEL),
        f"post {_model}/infer": ("inference", "Inference", "InferRequest", "InferResponse", ALL),
        f"post {_model}/infer_stream": (
            *("inference", "Inference, answered with events", "InferRequest", "text/event-stream"),
            ALL,
        ),
        f"post {_model}/generate": ("generate", "Generate", "Flat", "GenerateResponse", ALL),
        f"post {_model}/generate_stream": (
            *("generate", "Generate, answered with events", "Flat", "text/event-stream"),
            ALL,
        ),
    }
for _model in ("/v1/models/{model}", "/v1/models/{model}/versions/{version}", "/v1/models/{model}/labels/{label}"):
    OPERATIONS[f"get {_model}"] = ("v1", "Model ready, and status (V1)", "", "V1Status", MODEL)
    if "label" not in _model:
        OPERATIONS[f"get {_model}/metadata"] = ("v1", "Signatures (V1)", "", "V1Metadata", MODEL)
    for _verb in ("predict", "explain"):
        OPERATIONS[f"post {_model}:{_verb}"] = (
            *("v1", f"{_verb.capitalize()} (V1)", "PredictRequest", "PredictResponse"),
            ALL,
        )
    for _verb in ("classify", "regress"):
        OPERATIONS[f"post {_model}:{_verb}"] = ("v1", f"{_verb.capitalize()} (V1)", "Examples", "Results", ALL)


def name_of(content: dict[str, Any]) -> str:
    """The schema of JSON, or the type of what is something else."""
    if "application/json" not in content:
        (kind,) = content
        return kind
    return content["application/json"]["schema"]["$ref"].removeprefix("#/components/schemas/")


def told(document: dict[str, Any]) -> dict[str, Any]:
    """The operations of a document as `OPERATIONS` has them."""
    found = {}
    for path, item in document["paths"].items():
        for method in item.keys() & {"get", "post"}:
            operation = item[method]
            (tag,) = operation["tags"]
            body = operation.get("requestBody")
            takes = "" if body is None else name_of(body["content"]) + ("" if body["required"] else "?")
            refused = [status for status in operation["responses"] if status not in ("200", *ANY)]
            assert set(ANY) <= operation["responses"].keys()
            answers = name_of(operation["responses"]["200"]["content"])
            found[f"{method} {path}"] = (tag, operation["summary"], takes, answers, refused)
    return found


def test_each_operation_says_what_it_takes_what_it_answers_and_what_it_refuses():
    assert told(openapi_document()[0]) == OPERATIONS
    without = {key: told for key, told in OPERATIONS.items() if "/v2/repository/models/" not in key}
    assert told(openapi_document(changes=False)[0]) == without


WORDS = {
    "400": "malformed, or does not fit the model",
    "401": "token of the model repository",
    "403": "another origin, or not as this machine",
    "404": "No such model, version or path",
    "405": "does not take this method; the header Allow",
    "408": "too long to arrive",
    "409": "state of the model does not allow it",
    "413": "more bytes, or the request more tensors, than are taken",
    "414": "request target is too long",
    "415": "content encoding or charset is not offered",
    "417": "expectation cannot be met",
    "429": "queue is full; the header Retry-After",
    "431": "header section is too large",
    "500": "model failed",
    "501": "model does not offer this",
    "502": "predictor behind a transformer could not be reached",
    "503": "Not ready: loading, stopping or unloaded",
    "504": "deadline of the request has passed",
}


def test_every_refusal_is_an_error_in_json_and_says_what_it_means():
    document, _ = openapi_document()
    seen = set()
    for item in document["paths"].values():
        for method in item.keys() & {"get", "post"}:
            responses = item[method]["responses"]
            assert list(responses) == ["200", *sorted(responses.keys() - {"200"})]
            for status in responses.keys() - {"200"}:
                assert name_of(responses[status]["content"]) == "Error"
                assert WORDS[status] in responses[status]["description"]
                seen.add(status)
    assert seen == set(WORDS)


def test_only_inference_takes_binary_tensors_and_only_streams_answer_with_events():
    document, _ = openapi_document()
    for path, item in document["paths"].items():
        for method in item.keys() & {"get", "post"}:
            body = item[method].get("requestBody", {"content": {}})["content"]
            binary = path.endswith(("/infer", "/infer_stream"))
            assert set(body) == (set() if method == "get" else {"application/json"}) | (
                {"application/octet-stream"} if binary else set()
            )
            if binary:
                schema = body["application/octet-stream"]["schema"]
                assert (schema["type"], schema["format"]) == ("string", "binary")
                assert "Inference-Header-Content-Length" in schema["description"]
            described = "a hosted MLServer model takes an InferRequest" in item[method].get("description", "")
            assert described == path.endswith(("/generate", "/generate_stream"))
    event = document["paths"]["/v2/models/{model}/infer_stream"]["post"]["responses"]["200"]
    assert event["description"].startswith("Server-sent events: `data: `")
    schema = event["content"]["text/event-stream"]["schema"]
    assert (schema["required"], schema["properties"].keys()) == (["data"], {"data"})
    assert schema["properties"]["data"]["contentMediaType"] == "application/json"
    assert schema["properties"]["data"]["type"] == "string"
    assert "additionalProperties" not in schema


@pytest.mark.parametrize(
    ("path", "method", "name", "parameters"),
    [
        ("/", "get", "get_root", None),
        ("/v2/health/live", "get", "get_v2_health_live", None),
        ("/v2/models/{model}/infer", "post", "post_v2_models_model_infer", ["model"]),
        (
            *("/v1/models/{model}/labels/{label}:predict", "post"),
            *("post_v1_models_model_labels_label_predict", ["model", "label"]),
        ),
    ],
)
def test_an_operation_has_an_id_and_its_path_says_what_it_is_made_of(
    path: str, method: str, name: str, parameters: list[str] | None
):
    item = openapi_document()[0]["paths"][path]
    assert item[method]["operationId"] == name
    schema = {"type": "string", "minLength": 1, "maxLength": 1024}
    assert item.get("parameters") == (
        parameters and [{"name": each, "in": "path", "required": True, "schema": schema} for each in parameters]
    )


def test_the_document_says_what_it_is_and_of_which_version_and_comes_as_json_too():
    document, as_json = openapi_document()
    assert orjson.loads(as_json) == document
    assert document["openapi"] == "3.1.0"
    assert document["info"]["title"] == "serinus"
    assert document["info"]["version"] == __version__
    assert document["info"]["license"]["identifier"] == "Apache-2.0"
    assert document["servers"] == [{"url": "/"}]


def test_a_route_of_a_models_own_is_listed_and_one_that_is_described_stays_as_it_is():
    document, _ = openapi_document(["/v2/own/{a}/{b}", "/v2", "/v2/repository/models/{model}/load"])
    own = document["paths"]["/v2/own/{a}/{b}"]
    assert own.keys() == {"description", "parameters"}
    assert [each["name"] for each in own["parameters"]] == ["a", "b"]
    assert told(document) == OPERATIONS
    shut, _ = openapi_document(["/v2/own", "/v2/repository/models/{model}/load"], changes=False)
    assert "/v2/own" in shut["paths"]
    assert "/v2/repository/models/{model}/load" not in shut["paths"]


def test_a_kind_that_needs_a_token_names_the_scheme_and_no_other_does():
    document, _ = openapi_document(need_token={"inference"})
    scheme = document["components"]["securitySchemes"]["bearerAuth"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert "Authorization: Bearer TOKEN" in scheme["description"]
    assert document["components"]["schemas"] == openapi_document()[0]["components"]["schemas"]
    for path, item in document["paths"].items():
        for method in item.keys() & {"get", "post"}:
            asks = path.startswith(("/v2/models/{", "/v1/models/{")) and method == "post"
            assert item[method].get("security") == ([{"bearerAuth": []}] if asks else None), path
            refused = item[method]["responses"].get("401", {})
            assert ("WWW-Authenticate" in refused.get("headers", {})) == asks, path
            if asks:
                assert name_of(refused["content"]) == "Error"
                assert refused["headers"]["WWW-Authenticate"] == {"schema": {"type": "string"}}


# The schemas

TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
STATUS = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
DURATION = {"count": 1, "ns": 2}
STATISTICS = {
    "name": "m",
    "version": "1",
    "last_inference": 1,
    "inference_count": 1,
    "execution_count": 0,
    "inference_stats": {"success": DURATION},
    "batch_stats": [{}],
}
CONFIG_TENSOR = {"name": "x", "data_type": "TYPE_FP32", "dims": [3], "reshape": {"shape": []}, "optional": True}
CONFIG = {
    "name": "m",
    "platform": "p",
    "backend": "b",
    "max_batch_size": 0,
    "dynamic_batching": {"max_queue_delay_microseconds": 1},
    "model_transaction_policy": {"decoupled": True},
    "parameters": {"a": {"string_value": "b"}},
    "input": [CONFIG_TENSOR],
    "output": [CONFIG_TENSOR],
}
INPUT = {"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"a": 1}, "data": [1, [None, "a", True]]}
OUTPUT = {"name": "y", "shape": [1], "datatype": "FP32", "parameters": {"a": "b", "c": True}, "data": [1]}
OPEN, SHUT = True, False
SCHEMAS: dict[str, tuple[bool, set[str], dict[str, Any]]] = {
    # name: whether it may have more, what it must have, one that has all
    "Error": (OPEN, {"error"}, {"error": "why"}),
    "RequestInput": (OPEN, {"name", "shape", "datatype", "data"}, INPUT),
    "RequestOutput": (OPEN, {"name"}, {"name": "y", "parameters": None}),
    "InferRequest": (
        *(OPEN, {"inputs"}),
        {"id": "i", "parameters": {"a": 1.5}, "inputs": [INPUT], "outputs": [{"name": "y"}]},
    ),
    "ResponseOutput": (SHUT, {"name", "shape", "datatype"}, OUTPUT),
    "InferResponse": (
        *(SHUT, {"model_name", "outputs"}),
        {"model_name": "m", "model_version": "1", "id": "i", "parameters": {}, "outputs": [OUTPUT]},
    ),
    "TensorMetadata": (SHUT, {"name", "datatype", "shape"}, TENSOR),
    "ModelMetadata": (
        *(SHUT, {"name", "platform", "inputs", "outputs"}),
        {
            "name": "m",
            "versions": ["1"],
            "platform": "p",
            "inputs": [TENSOR],
            "outputs": [],
            "properties": {"a": "b"},
        },
    ),
    "ServerMetadata": (
        *(SHUT, {"name", "version", "extensions"}),
        {"name": "s", "version": "1", "extensions": ["statistics"]},
    ),
    "Alive": (SHUT, {"status"}, {"status": "alive"}),
    "ServerLive": (SHUT, {"live"}, {"live": False}),
    "ServerReady": (SHUT, {"ready", "live"}, {"ready": False, "live": True}),
    "ModelReady": (SHUT, {"name", "ready"}, {"name": "m", "ready": True}),
    "V1Status": (
        *(SHUT, {"name", "ready", "model_version_status"}),
        {"name": "m", "ready": True, "model_version_status": [STATUS]},
    ),
    "V1Metadata": (
        *(SHUT, {"model_spec", "metadata"}),
        {
            "model_spec": {"name": "m", "signature_name": "s", "version": "1"},
            "metadata": {"signature_def": {}},
        },
    ),
    "ModelNames": (SHUT, {"models"}, {"models": ["m"]}),
    "ModelConfig": (SHUT, {"name", "platform", "max_batch_size", "input", "output"}, CONFIG),
    "TensorConfig": (SHUT, {"name", "data_type", "dims"}, CONFIG_TENSOR),
    "ModelStatistics": (SHUT, {"model_stats"}, {"model_stats": [STATISTICS, {**STATISTICS, "more": 1}]}),
    "RepositoryIndexRequest": (OPEN, set(), {"ready": None}),
    "LoadRequest": (OPEN, set(), {"parameters": {"config": "{}"}}),
    "UnloadRequest": (OPEN, set(), {"parameters": {"unload_dependents": True}}),
    "RepositoryAnswer": (SHUT, {"name"}, {"name": "m", "load": True, "unload": False}),
    "Flat": (OPEN, set(), {"id": "i", "parameters": {}}),
    "Examples": (OPEN, {"examples"}, {"examples": [{}], "context": {}, "signature_name": "s"}),
    "Results": (SHUT, {"results"}, {"results": [[1], 2, "a"]}),
}
AGREES: list[tuple[str, Any]] = [
    ("Parameters", {"a": "b", "c": 1, "d": 1.5, "e": True}),
    *(("Datatype", name) for name in ("BOOL", "UINT8", "INT64", "FP16", "FP32", "FP64", "BF16", "BYTES")),
    ("TensorData", []),
    ("TensorData", [[[1.5]], ["a"], None, False]),
    ("RequestInput", {**INPUT, "parameters": None, "shape": [0] * 32, "name": "x" * 1024, "data": []}),
    ("InferRequest", {"inputs": [INPUT, INPUT], "parameters": None, "outputs": None, "id": None}),
    ("InferRequest", {"inputs": [INPUT], "outputs": []}),
    ("RequestOutput", {"name": "y", "parameters": {"classification": 3}}),
    *(
        ("V1Status", {"name": "m", "ready": False, "model_version_status": [{**STATUS, "state": state}]})
        for state in ("LOADING", "AVAILABLE", "UNLOADING", "END", "UNKNOWN")
    ),
    ("RepositoryIndexRequest", {"ready": True}),
    ("RepositoryIndex", []),
    (
        "RepositoryIndex",
        [{"name": "m", "version": "1", "state": "READY", "reason": ""}, {"name": "m", "state": "READY"}],
    ),
    ("LoadRequest", {"parameters": None}),
    ("LoadRequest", {"parameters": {}}),
    ("UnloadRequest", {"parameters": None}),
    ("UnloadRequest", {"parameters": {}}),
    ("PredictRequest", {"instances": [1], "signature_name": "s", "more": 1}),
    *(("PredictRequest", {"inputs": value, "more": 1}) for value in ({}, [], "a", 1.5, True)),
    ("PredictRequest", {"inputs": {}, "signature_name": "s"}),
    ("GenerateResponse", {"text": "a"}),
    ("PredictResponse", {"predictions": [1]}),
    ("TensorMetadata", {**TENSOR, "shape": []}),
    ("TensorConfig", {**CONFIG_TENSOR, "dims": [-1, 0]}),
    ("ModelMetadata", {"name": "m", "platform": "", "inputs": [], "outputs": [TENSOR]}),
]
DISAGREES: list[tuple[str, Any]] = [
    ("Parameters", {"a": None}),
    ("Parameters", {"a": []}),
    ("Parameters", {"a": {}}),
    ("Datatype", "FP31"),
    ("TensorData", 1),
    ("TensorData", [{}]),
    ("TensorData", [[{}]]),
    ("RequestInput", {**INPUT, "name": ""}),
    ("RequestInput", {**INPUT, "name": "x" * 1025}),
    ("RequestInput", {**INPUT, "shape": [-1]}),
    ("RequestInput", {**INPUT, "shape": [1.5]}),
    ("RequestInput", {**INPUT, "shape": [1] * 33}),
    ("RequestInput", {**INPUT, "datatype": "float"}),
    ("RequestInput", {**INPUT, "parameters": {"a": None}}),
    ("RequestOutput", {"name": ""}),
    ("InferRequest", {"inputs": []}),
    ("InferRequest", {"inputs": [{}]}),
    ("InferRequest", {"inputs": [INPUT], "outputs": [{}]}),
    ("ResponseOutput", {**OUTPUT, "shape": [-1]}),
    ("ResponseOutput", {**OUTPUT, "datatype": "float"}),
    ("TensorMetadata", {**TENSOR, "shape": [-2]}),
    ("TensorMetadata", {**TENSOR, "datatype": "float"}),
    ("ModelMetadata", {"name": "m", "platform": "", "inputs": [{}], "outputs": []}),
    ("ModelMetadata", {"name": "m", "platform": "", "inputs": [], "outputs": [{}]}),
    ("ModelMetadata", {"name": "m", "platform": "", "inputs": [], "outputs": [], "properties": {"a": 1}}),
    ("ModelMetadata", {"name": "m", "platform": "", "inputs": [], "outputs": [], "versions": [1]}),
    ("ServerMetadata", {"name": "s", "version": "1", "extensions": [1]}),
    ("Alive", {"status": "dead"}),
    ("V1Status", {"name": "m", "ready": True, "model_version_status": [{**STATUS, "state": "START"}]}),
    ("V1Status", {"name": "m", "ready": True, "model_version_status": [{}]}),
    ("V1Status", {"name": "m", "ready": True, "model_version_status": [{**STATUS, "status": {}}]}),
    ("V1Status", {"name": "m", "ready": True, "model_version_status": [{**STATUS, "more": 1}]}),
    ("V1Metadata", {"model_spec": {}, "metadata": {"signature_def": {}}}),
    ("V1Metadata", {"model_spec": {"name": "m", "signature_name": "s", "version": "1"}, "metadata": {}}),
    ("ModelNames", {"models": [1]}),
    ("ModelConfig", {**CONFIG, "max_batch_size": -1}),
    ("ModelConfig", {**CONFIG, "dynamic_batching": {}}),
    ("ModelConfig", {**CONFIG, "model_transaction_policy": {"decoupled": False}}),
    ("ModelConfig", {**CONFIG, "model_transaction_policy": {}}),
    ("ModelConfig", {**CONFIG, "parameters": {"a": {}}}),
    ("ModelConfig", {**CONFIG, "parameters": {"a": "b"}}),
    ("ModelConfig", {**CONFIG, "input": [{}]}),
    ("ModelConfig", {**CONFIG, "output": [{}]}),
    ("TensorConfig", {**CONFIG_TENSOR, "dims": []}),
    ("TensorConfig", {**CONFIG_TENSOR, "dims": [-2]}),
    ("TensorConfig", {**CONFIG_TENSOR, "reshape": {}}),
    ("TensorConfig", {**CONFIG_TENSOR, "reshape": {"shape": [-1]}}),
    ("ModelStatistics", {"model_stats": [{}]}),
    ("ModelStatistics", {"model_stats": [{**STATISTICS, "inference_count": -1}]}),
    ("ModelStatistics", {"model_stats": [{**STATISTICS, "inference_stats": {"success": {}}}]}),
    ("ModelStatistics", {"model_stats": [{**STATISTICS, "inference_stats": {"success": {**DURATION, "ns": -1}}}]}),
    ("ModelStatistics", {"model_stats": [{**STATISTICS, "inference_stats": {"success": {"count": 1}}}]}),
    ("ModelStatistics", {"model_stats": [{**STATISTICS, "inference_stats": {"success": {"ns": 1}}}]}),
    ("ModelStatistics", {"model_stats": [{**STATISTICS, "batch_stats": [1]}]}),
    *(
        ("ModelStatistics", {"model_stats": [{**STATISTICS, key: "a"}]})
        for key in STATISTICS
        if key not in ("name", "version")
    ),
    *(
        ("ModelStatistics", {"model_stats": [{k: v for k, v in STATISTICS.items() if k != key}]})
        for key in STATISTICS
        if key != "batch_stats"
    ),
    ("RepositoryIndex", [{}]),
    ("RepositoryIndex", [{"name": "m"}]),
    ("RepositoryIndex", [{"state": "READY"}]),
    ("RepositoryIndex", [{"name": "m", "state": "READY", "more": 1}]),
    ("RepositoryIndex", {}),
    ("LoadRequest", {"parameters": {"config": {}}}),
    ("LoadRequest", {"parameters": {"more": 1}}),
    ("UnloadRequest", {"parameters": {"unload_dependents": 1}}),
    ("UnloadRequest", {"parameters": {"more": True}}),
    ("PredictRequest", {"instances": []}),
    ("PredictRequest", {"instances": {}}),
    ("PredictRequest", {"instances": [1], "signature_name": 1}),
    ("PredictRequest", {"inputs": None}),
    ("PredictRequest", {"inputs": {}, "signature_name": 1}),
    ("PredictRequest", {}),
    ("Examples", {"examples": []}),
    ("Examples", {"examples": [1]}),
]


@pytest.fixture(scope="module")
def validators() -> dict[str, Any]:
    """A validator for each schema of the document."""
    jsonschema = pytest.importorskip("jsonschema_rs")  # comes with schemathesis
    components = openapi_document()[0]["components"]
    return {
        name: jsonschema.validator_for({"$ref": f"#/components/schemas/{name}", "components": components})
        for name in components["schemas"]
    }


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_object_has_what_it_must_have_of_the_right_kinds_and_nothing_more_where_that_is_said(
    name: str, validators: dict[str, Any]
):
    is_open, required, whole = SCHEMAS[name]
    validator = validators[name]
    validator.validate(whole)
    assert not validator.is_valid([whole])
    for key, value in whole.items():
        without = {other: kept for other, kept in whole.items() if other != key}
        assert validator.is_valid(without) is (key not in required), key
        wrong = 1 if isinstance(value, str) else "text"
        assert not validator.is_valid({**whole, key: wrong}), key
    assert validator.is_valid({**whole, "another": 1}) is is_open


def test_every_schema_is_looked_at(validators: dict[str, Any]):
    assert set(validators) == set(SCHEMAS) | {name for name, _ in AGREES}


@pytest.mark.parametrize(("cases", "fits"), [(AGREES, True), (DISAGREES, False)], ids=["fits", "does not"])
def test_a_value_fits_its_schema_or_does_not(cases: list[tuple[str, Any]], fits: bool, validators: dict[str, Any]):
    wrong = [(name, value) for name, value in cases if validators[name].is_valid(value) is not fits]
    assert wrong == []


# Operations as HTML


def test_operations_are_written_by_their_tags_with_their_bodies_and_what_they_answer():
    document, _ = openapi_document(["/own/<b>"])
    page = operations_html(document)
    heads = [part.partition("</h3>")[0] for part in page.split("<h3>")[1:]]
    assert heads == [
        "health",
        "metadata",
        "statistics",
        "repository",
        "v1",
        "metrics",
        "inference",
        "generate",
        "custom",
        "schemas",
    ]
    parts = {part.partition("</h3>")[0]: part.partition("</h3>")[2] for part in page.split("<h3>")[1:]}
    assert parts["custom"] == "<p><code>/own/&lt;b&gt;</code></p>"
    for key, (tag, summary, takes, _answers, refused) in OPERATIONS.items():
        method, _, path = key.partition(" ")
        summary = summary.replace("'", "&#x27;")
        head = f"<details><summary><b>{method.upper()}</b> <code>{path}</code> {summary}</summary><pre>"
        assert parts[tag].count(head) == 1, key
        details = parts[tag].partition(head)[2].partition("</pre></details>")[0]
        assert ("&quot;requestBody&quot;: {\n" in details) == bool(takes)
        assert all(f"&quot;{status}&quot;" in details for status in refused)
        assert "operationId" not in details
    assert page.endswith("</pre></details>")
    shown = parts["schemas"].removeprefix("<details><summary>All</summary><pre>").removesuffix("</pre></details>")
    assert orjson.loads(shown.replace("&quot;", '"').replace("&#x27;", "'")) == document["components"]["schemas"]
    assert shown.startswith("{\n  &quot;Error&quot;: {\n    &quot;type&quot;")
