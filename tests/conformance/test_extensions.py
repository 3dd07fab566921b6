"""The extension documents of Triton and the V1 protocol, statement by statement, against a real `serinus serve`."""

from __future__ import annotations

import base64
import concurrent.futures
import gzip
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf.json_format import MessageToDict

from conformance_support import (
    Case,
    Server,
    case,
    check_config,
    check_metadata,
    check_no_rows,
    ids,
    infer_message,
    json_tensor,
    server_here,
    server_process,
    values_of,
)
from depth import QUICK
from serinus.protocol import _open_inference_pb2 as pb
from serve_support import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A process; in this one for the quick run, whose cases ask for no model of XGBoost's."""
    with server_here() if QUICK else server_process(tmp_path_factory.mktemp("extensions")) as running:
        yield running


def scores(rows: int = 1, data: list[float] | None = None) -> dict[str, Any]:
    return json_tensor("scores", "FP32", [rows, 4], data or [1.0, 3.5, 0.5, 2.0] * rows)


def slow(seconds: float) -> dict[str, Any]:
    return json_tensor("seconds", "FP32", [1, 1], [seconds])


def stats(s: Server, name: str, version: str = "") -> dict[str, Any]:
    path = f"/v2/models/{name}{f'/versions/{version}' if version else ''}/stats"
    (found,) = s.ask("GET", path).json["model_stats"]
    return found


TABLE: list[Case] = []
REPOSITORY = "extension_model_repository.md"
STATISTICS = "extension_statistics.md"
SCHEDULE = "extension_schedule_policy.md"
PARAMETERS = "extension_parameters.md"
CLASSES = "extension_classification.md"
CONFIG = "extension_model_configuration.md"
V1 = "TensorFlow Serving, api_rest.md; KServe, V1 Protocol"

# Repository


for name, body in {
    "object": {},
    "empty": b"",
    "not-ready": {"ready": False},
    "null": {"ready": None},
    "none": None,
}.items():

    @case(TABLE, f"index-{name}", f"{REPOSITORY}, Index")
    def _(s: Server, body: Any = body) -> None:
        answer = s.ask("POST", "/v2/repository/index", body)
        assert answer.status == 200
        assert isinstance(answer.json, list)
        for entry in answer.json:
            assert {"name", "state", "reason"} <= set(entry) <= {"name", "version", "state", "reason"}
            assert entry["state"] in ("READY", "UNAVAILABLE", "LOADING", "UNLOADING")
        rows = [(entry["name"], entry.get("version")) for entry in answer.json]
        assert {("versioned", "1"), ("versioned", "2"), ("versioned", "10"), ("labels", None)} <= set(rows)
        assert len(rows) == len(set(rows))


for name, body in {"list": [], "ready-text": {"ready": "true"}, "ready-number": {"ready": 1}, "no-json": b"{"}.items():

    @case(TABLE, f"index-wrong-{name}", f"{REPOSITORY}, Index: error object")
    def _(s: Server, body: Any = body) -> None:
        answer = s.ask("POST", "/v2/repository/index", body)
        assert answer.status == 400
        assert answer.error
        assert s.alive()


@case(TABLE, "index-over-grpc-is-the-same", f"{REPOSITORY}, GRPC")
def _(s: Server) -> None:
    rest = s.ask("POST", "/v2/repository/index", {}).json
    mine = s.rpc("RepositoryIndex", pb.RepositoryIndexRequest()).message.models
    assert [(m.name, m.version, m.state) for m in mine] == [(e["name"], e.get("version", ""), e["state"]) for e in rest]


@case(TABLE, "unload-and-load", f"{REPOSITORY}, Load, Unload")
def _(s: Server) -> None:
    assert s.ask("POST", "/v2/repository/models/spare/unload", {}).status == 200
    index = {entry["name"]: entry for entry in s.ask("POST", "/v2/repository/index", {}).json}
    assert (index["spare"]["state"], bool(index["spare"]["reason"])) == ("UNAVAILABLE", True)
    ready = [entry["name"] for entry in s.ask("POST", "/v2/repository/index", {"ready": True}).json]
    assert "spare" not in ready
    assert "labels" in ready
    assert "spare" not in s.ask("GET", "/v2/models").json["models"]
    for path in ("/v2/models/spare", "/v2/models/spare/config"):
        answer = s.ask("GET", path)
        assert answer.status == 404
        assert "'spare'" in answer.error
    for path in ("/v2/models/spare/ready", "/v1/models/spare"):
        answer = s.ask("GET", path)
        assert (answer.status, answer.json["ready"]) == (404, False)
    (version,) = s.ask("GET", "/v1/models/spare").json["model_version_status"]
    assert (version["state"], version["status"]["error_code"]) == ("END", "OK")
    assert s.infer("spare", scores()).status == 404
    assert s.ask("POST", "/v1/models/spare:predict", {"instances": [[1, 2, 3, 4]]}).status == 404
    assert s.grpc_infer("spare", scores()).code == "NOT_FOUND"
    assert s.rpc("ModelReady", pb.ModelReadyRequest(name="spare")).message.ready is False
    assert s.rpc("ModelMetadata", pb.ModelMetadataRequest(name="spare")).code == "NOT_FOUND"
    assert s.ask("GET", "/v2/health/ready").status == 200
    assert s.ask("POST", "/v2/repository/models/spare/load").status == 200
    assert s.infer("spare", scores()).status == 200
    assert s.ask("GET", "/v2/models/spare/ready").status == 200


@case(TABLE, "unload-and-load-over-grpc", f"{REPOSITORY}, GRPC")
def _(s: Server) -> None:
    assert s.rpc("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="spare")).code == "OK"
    assert s.rpc("ModelReady", pb.ModelReadyRequest(name="spare")).message.ready is False
    ready = s.rpc("RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).message.models
    assert "spare" not in [model.name for model in ready]
    assert s.rpc("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="spare")).code == "OK"
    assert s.rpc("ModelReady", pb.ModelReadyRequest(name="spare")).message.ready is True


@case(TABLE, "unload-twice-and-load-twice", f"{REPOSITORY}: reloaded if already loaded")
def _(s: Server) -> None:
    for action in ("unload", "unload", "load", "load"):
        assert s.ask("POST", f"/v2/repository/models/spare/{action}", {}).status == 200


for flag in (True, False):

    @case(TABLE, f"unload-dependents-{flag}", f"{REPOSITORY}: unload_dependents")
    def _(s: Server, flag: bool = flag) -> None:
        body = {"parameters": {"unload_dependents": flag}}
        assert s.ask("POST", "/v2/repository/models/spare/unload", body).status == 200
        request = pb.RepositoryModelUnloadRequest(model_name="spare")
        request.parameters["unload_dependents"].bool_param = flag
        assert s.rpc("RepositoryModelUnload", request).code == "OK"
        assert s.ask("POST", "/v2/repository/models/spare/load", {"parameters": {}}).status == 200


for action in ("load", "unload"):
    for name, body in {
        "list": [],
        "no-json": b"{",
        "parameters-list": {"parameters": []},
        "parameters-text": {"parameters": "x"},
        "parameters-false": {"parameters": False},
        "parameter-null": {"parameters": {"unload_dependents": None}},
        "parameter-text": {"parameters": {"unload_dependents": "yes"}},
        "parameter-unknown": {"parameters": {"nothing": 1}},
    }.items():

        @case(TABLE, f"{action}-wrong-{name}", f"{REPOSITORY}: error object")
        def _(s: Server, action: str = action, body: Any = body) -> None:
            answer = s.ask("POST", f"/v2/repository/models/spare/{action}", body)
            assert answer.status == 400, answer.body
            assert answer.error
            assert s.ask("GET", "/v2/models/spare/ready").status == 200

    @case(TABLE, f"{action}-of-an-unknown-model", f"{REPOSITORY}: error object")
    def _(s: Server, action: str = action) -> None:
        answer = s.ask("POST", f"/v2/repository/models/nobody/{action}", {})
        assert answer.status == 404
        assert "'nobody'" in answer.error
        method = f"RepositoryModel{action.capitalize()}"
        s.grpc_refused("NOT_FOUND", s.rpc(method, getattr(pb, f"{method}Request")(model_name="nobody")), "'nobody'")
        s.grpc_refused("INVALID_ARGUMENT", s.rpc(method, getattr(pb, f"{method}Request")()), "model_name")


for path in ("index", "models/spare/load"):

    @case(TABLE, f"compressed-{path}", "RFC 9110, 8.4: a coding is undone or refused, whatever the path")
    def _(s: Server, path: str = path) -> None:
        path = f"/v2/repository/{path}"
        assert s.ask("POST", path, gzip.compress(b"{}"), {"Content-Encoding": "gzip"}).status == 200
        assert s.ask("POST", path, b"{}", {"Content-Encoding": "br"}).status == 415
        assert s.ask("POST", path, b"{}", {"Content-Type": "application/json; charset=utf-16"}).status == 415
        assert s.ask("POST", path, b'{"a":' + b"[" * 200 + b"]" * 200 + b"}").status == 400


@case(TABLE, "load-with-a-configuration", f"{REPOSITORY}, Load: config")
def _(s: Server) -> None:
    def size() -> int:
        return s.ask("GET", "/v2/models/spare/config").json["max_batch_size"]

    before = size()
    request = pb.RepositoryModelLoadRequest(model_name="spare")
    request.parameters["config"].string_param = '{"max_batch_size": 16}'
    load = "/v2/repository/models/spare/load"
    assert s.ask("POST", load, {"parameters": {"config": '{"max_batch_size": 8}'}}).status == 200
    assert size() == 8
    assert s.infer("spare", scores()).status == 200
    assert s.rpc("RepositoryModelLoad", request).code == "OK"
    assert size() == 16
    assert s.ask("POST", load, {"parameters": {"config": '{"max_batch_size": 0}'}}).status == 200
    assert size() == 0
    assert s.infer("spare", scores()).status == 200
    assert s.ask("POST", load, {}).status == 200
    assert size() == before


@case(TABLE, "load-with-the-configuration-that-was-told", f"{REPOSITORY}, Load: config, parsed into ModelConfig")
def _(s: Server) -> None:
    for name in ("spare", "simple", "typed", "identity", "texts"):
        told = s.ask("GET", f"/v2/models/{name}/config").json
        message = s.rpc("ModelConfig", pb.ModelConfigRequest(name=name)).message
        for config in (told, MessageToDict(message.config, preserving_proto_field_name=True)):
            request = {"parameters": {"config": orjson.dumps(config).decode()}}
            assert s.ask("POST", f"/v2/repository/models/{name}/load", request).status == 200, config
            changed = {**config, "output": [{"name": "other", "data_type": "TYPE_FP32", "dims": [1]}]}
            request = {"parameters": {"config": orjson.dumps(changed).decode()}}
            answer = s.ask("POST", f"/v2/repository/models/{name}/load", request)
            assert answer.status == 400
            assert "'output'" in answer.error
    told = s.ask("GET", "/v2/models/spare/config").json
    request = {"parameters": {"config": orjson.dumps({**told, "max_batch_size": 8}).decode()}}
    assert s.ask("POST", "/v2/repository/models/spare/load", request).status == 200
    assert s.ask("GET", "/v2/models/spare/config").json == {**told, "max_batch_size": 8}
    assert s.ask("POST", "/v2/repository/models/spare/load", {}).status == 200


for name, config in {
    "input-text": '{"input": "x"}',
    "input-entries": '{"input": [1]}',
    "input-dims": '{"input": [{"name": "scores", "dims": 4}]}',
    "number": 5,
    "no-json": "{",
    "list": "[]",
    "unknown-field": '{"backend": "onnxruntime"}',
    "other-name": '{"name": "labels"}',
    "size-text": '{"max_batch_size": "many"}',
    "size-negative": '{"max_batch_size": -1}',
    "size-true": '{"max_batch_size": true}',
    "size-huge": '{"max_batch_size": 99999999999}',
    "batching-text": '{"dynamic_batching": "on"}',
    "batching-unknown": '{"dynamic_batching": {"eager": true}}',
    "batching-negative": '{"dynamic_batching": {"max_queue_delay_microseconds": -1}}',
    "policy-unknown": '{"dynamic_batching": {"default_queue_policy": {"timeout_action": "DELAY"}}}',
    "priority-beyond": '{"dynamic_batching": {"priority_levels": 2, "default_priority_level": 3}}',
    "groups-object": '{"instance_group": {}}',
    "group-unknown": '{"instance_group": [{"kind": "KIND_GPU"}]}',
}.items():

    @case(TABLE, f"load-with-a-wrong-configuration-{name}", f"{REPOSITORY}, Load: config; error object")
    def _(s: Server, config: Any = config) -> None:
        answer = s.ask("POST", "/v2/repository/models/spare/load", {"parameters": {"config": config}})
        assert answer.status == 400, answer.body
        assert "'config'" in answer.error
        assert s.ask("GET", "/v2/models/spare/ready").status == 200


@case(TABLE, "reloading-drops-no-request", "issue of every swap: good practice")
def _(s: Server) -> None:
    def ask(_: int) -> str:
        return s.grpc_infer("churn", scores()).code

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        codes = threads.map(ask, range(200))
        for _ in range(5):
            assert s.ask("POST", "/v2/repository/models/churn/load", {}).status == 200
        assert set(codes) == {"OK"}


# Statistics


@case(TABLE, "statistics-have-their-fields", f"{STATISTICS}, Statistics Response JSON Object")
def _(s: Server) -> None:
    s.infer("labels", scores())
    found = stats(s, "labels")
    assert set(found) == {
        *("name", "version", "last_inference", "inference_count", "execution_count", "inference_stats"),
        *("response_stats", "batch_stats", "memory_usage"),
    }
    assert found["version"] == "1"  # perf_analyzer reads a number, of a model without versions too
    names = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}
    assert set(found["inference_stats"]) == names
    for duration in found["inference_stats"].values():
        assert set(duration) == {"count", "ns"}
    for batch in found["batch_stats"]:
        assert set(batch) == {"batch_size", "compute_input", "compute_infer", "compute_output"}
    assert abs(found["last_inference"] / 1000 - time.time()) < 60


@case(TABLE, "statistics-count-exactly", f"{STATISTICS}: inference_count counts rows, success requests")
def _(s: Server) -> None:
    before = stats(s, "texts")
    text = json_tensor("text", "BYTES", [3, 1], ["a", "b", "c"])
    for _ in range(4):
        assert s.infer("texts", text).status == 200
        assert s.grpc_infer("texts", text).code == "OK"
    after = stats(s, "texts")
    assert after["inference_count"] - before["inference_count"] == 24
    assert after["execution_count"] - before["execution_count"] == 8
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        one, two = before["inference_stats"][name], after["inference_stats"][name]
        assert two["count"] - one["count"] == 8
        assert two["ns"] > one["ns"]
    total = after["inference_stats"]["success"]["ns"]
    parts = sum(
        after["inference_stats"][name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output")
    )
    assert parts <= total * 1.01
    assert {batch["batch_size"]: batch["compute_infer"]["count"] for batch in after["batch_stats"]}[3] >= 8
    assert after["inference_stats"]["fail"] == before["inference_stats"]["fail"]


@case(TABLE, "statistics-count-failures", f"{STATISTICS}: fail")
def _(s: Server) -> None:
    before = stats(s, "broken")["inference_stats"]
    for _ in range(3):
        s.infer("broken", json_tensor("x", "FP32", [1, 1], [1.0]))
    after = stats(s, "broken")["inference_stats"]
    assert after["fail"]["count"] - before["fail"]["count"] == 3
    assert after["success"] == before["success"]


@case(TABLE, "statistics-of-all-and-of-versions", f"{STATISTICS}: the name and the version are optional", slow=True)
def _(s: Server) -> None:
    everything = s.ask("GET", "/v2/models/stats").json["model_stats"]
    assert {"labels", "versioned", "xgb"} <= {found["name"] for found in everything}
    versions = s.ask("GET", "/v2/models/versioned/stats").json["model_stats"]
    assert [found["version"] for found in versions] == ["1", "2", "10"]
    s.ask("POST", "/v2/models/versioned/versions/2/infer", {"inputs": [scores()]})
    assert stats(s, "versioned", "2")["inference_count"] >= 1
    for path in ("/v2/models/nobody/stats", "/v2/models/versioned/versions/3/stats"):
        answer = s.ask("GET", path)
        assert answer.status == 404
        assert answer.error


@case(TABLE, "statistics-over-grpc-are-the-same", f"{STATISTICS}, GRPC")
def _(s: Server) -> None:
    (mine,) = s.rpc("ModelStatistics", pb.ModelStatisticsRequest(name="labels")).message.model_stats
    theirs = stats(s, "labels")
    assert (mine.name, mine.inference_count) == ("labels", theirs["inference_count"])
    for name in ("success", "fail", "queue", "compute_infer"):
        assert getattr(mine.inference_stats, name).count == theirs["inference_stats"][name]["count"]
    everything = s.rpc("ModelStatistics").message.model_stats
    assert len(everything) == len(s.ask("GET", "/v2/models/stats").json["model_stats"])


@case(TABLE, "statistics-survive-a-reload", f"{STATISTICS}: since the server started")
def _(s: Server) -> None:
    s.infer("churn", scores())
    before = stats(s, "churn")["inference_count"]
    s.ask("POST", "/v2/repository/models/churn/load", {})
    assert stats(s, "churn")["inference_count"] == before


# Schedule policy


for value in (0, 1, 2, 7, 2**31):

    @case(TABLE, f"priority-{value}", f"{SCHEDULE}: 0 the default, 1 the highest")
    def _(s: Server, value: int = value) -> None:
        assert s.infer("labels", scores(), parameters={"priority": value}).status == 200
        assert s.grpc_infer("labels", scores(), parameters={"priority": value}).code == "OK"


for value in (-1, 1.5, 1.0, "1", "high", True, False, ""):

    @case(TABLE, f"priority-wrong-{value!r}", f"{SCHEDULE}: an int64 value")
    def _(s: Server, value: Any = value) -> None:
        answer = s.infer("labels", scores(), parameters={"priority": value})
        assert answer.status == 400
        assert "'priority'" in answer.error
        reply = s.grpc_infer("labels", scores(), parameters={"priority": value})
        s.grpc_refused("INVALID_ARGUMENT", reply, "'priority'")


for value in (0, 60_000_000, 2**62):

    @case(TABLE, f"timeout-{value}", f"{SCHEDULE}: microseconds")
    def _(s: Server, value: int = value) -> None:
        assert s.infer("labels", scores(), parameters={"timeout": value}).status == 200
        assert s.grpc_infer("labels", scores(), parameters={"timeout": value}).code == "OK"


for value in (-1, 1.5, 0.0, "1", "soon", True, False):

    @case(TABLE, f"timeout-wrong-{value!r}", f"{SCHEDULE}: an int64 value")
    def _(s: Server, value: Any = value) -> None:
        answer = s.infer("labels", scores(), parameters={"timeout": value})
        assert answer.status == 400
        assert "'timeout'" in answer.error
        reply = s.grpc_infer("labels", scores(), parameters={"timeout": value})
        s.grpc_refused("INVALID_ARGUMENT", reply, "'timeout'")


@case(TABLE, "a-timeout-that-passes-ends-the-request", f"{SCHEDULE}: such as terminating the request")
def _(s: Server) -> None:
    started = time.monotonic()
    answer = s.infer("slow", slow(1.0), parameters={"timeout": 100_000})
    assert answer.status == 504
    assert answer.error
    assert time.monotonic() - started < 0.9
    reply = s.grpc_infer("slow", slow(1.0), parameters={"timeout": 100_000})
    assert reply.code == "DEADLINE_EXCEEDED"
    assert s.alive()


# Parameters


for name, value in {
    "text": "a",
    "empty": "",
    "number": 3,
    "negative": -4,
    "true": True,
    "false": False,
    "float": 2.5,
}.items():

    @case(TABLE, f"a-parameter-reaches-the-model-{name}", f"{PARAMETERS}; inference_rest.md, Parameters")
    def _(s: Server, value: Any = value) -> None:
        said = s.infer("asked", scores(), parameters={"tenant": value}).json["parameters"]["parameters"]
        assert said == f"tenant={value!r}"
        reply = s.grpc_infer("asked", scores(), parameters={"tenant": value})
        assert reply.message.parameters["parameters"].string_param == said


@case(TABLE, "tensor-parameters-are-taken", "inference_rest.md, Request Input")
def _(s: Server) -> None:
    tensor = {**scores(), "parameters": {"content_type": "np", "n": 1, "f": True}}
    assert s.infer("labels", tensor).status == 200
    assert s.grpc_infer("labels", tensor).code == "OK"


@case(TABLE, "unknown-parameters-are-no-fault", f"{PARAMETERS}: custom parameters")
def _(s: Server) -> None:
    for model, tensor in (("labels", scores()), ("identity", scores())):
        assert s.infer(model, tensor, parameters={"my_custom_parameter": 42}).status == 200


# Classification


for count, expected in {
    1: ["3.5:1:bee"],
    2: ["3.5:1:bee", "2.0:3"],
    3: ["3.5:1:bee", "2.0:3", "1.0:0:ant"],
    4: ["3.5:1:bee", "2.0:3", "1.0:0:ant", "0.5:2:cat"],
    100: ["3.5:1:bee", "2.0:3", "1.0:0:ant", "0.5:2:cat"],
}.items():

    @case(TABLE, f"top-{count}", f"{CLASSES}: <value>:<index>[:<label>], BYTES [batch, count]")
    def _(s: Server, count: int = count, expected: list[str] = expected) -> None:
        wanted = [{"name": "classes", "parameters": {"classification": count}}]
        (output,) = s.infer("labels", scores(2), outputs=wanted).json["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("classes", "BYTES", [2, len(expected)])
        assert output["data"] == expected * 2
        for raw in (True, False):
            message = s.grpc_infer("labels", scores(2), raw=raw, outputs=wanted).message
            assert [value.decode() for value in values_of(message)] == expected * 2


for count in (-1, 1.5, "2", True, None, [], 2.0):

    @case(TABLE, f"top-wrong-{count!r}", f"{CLASSES}: a number of classes")
    def _(s: Server, count: Any = count) -> None:
        wanted = [{"name": "classes", "parameters": {"classification": count}}]
        answer = s.infer("labels", scores(), outputs=wanted)
        assert answer.status == 400
        assert "classification" in answer.error
        if count is not None and count != []:
            assert s.grpc_infer("labels", scores(), outputs=wanted).code == "INVALID_ARGUMENT"


@case(TABLE, "top-0-is-the-output-itself", f"{CLASSES}: no classes are asked for")
def _(s: Server) -> None:
    wanted = [{"name": "classes", "parameters": {"classification": 0}}]
    assert s.infer("labels", scores(), outputs=wanted).json["outputs"][0]["datatype"] == "FP32"


@case(TABLE, "equal-values-by-index", f"{CLASSES}; good practice: a stable order")
def _(s: Server) -> None:
    wanted = [{"name": "classes", "parameters": {"classification": 4}}]
    (output,) = s.infer("labels", scores(1, [2.0, 5.0, 2.0, 5.0]), outputs=wanted).json["outputs"]
    assert [text.split(":")[1] for text in output["data"]] == ["1", "3", "0", "2"]


@case(TABLE, "classes-of-text-are-refused", f"{CLASSES}: compared using the output's data type")
def _(s: Server) -> None:
    wanted = [{"name": "raw", "parameters": {"classification": 1}}]
    assert s.infer("texts", json_tensor("text", "BYTES", [1, 1], ["a"]), outputs=wanted).status == 400


@case(TABLE, "classes-may-travel-binary", f"{CLASSES}; extension_binary_data.md")
def _(s: Server) -> None:
    wanted = [{"name": "classes", "parameters": {"classification": 1, "binary_data": True}}]
    answer = s.infer("labels", scores(), outputs=wanted)
    length = int(answer.headers["inference-header-content-length"])
    assert answer.body[length:] == b"\x09\0\0\0" + b"3.5:1:bee"


# Configuration


@case(TABLE, "config-has-the-documents-form", f"{CONFIG}; model_config.proto")
def _(s: Server) -> None:
    for name in ("labels", "versioned", "typed", "simple", "texts"):
        document = s.ask("GET", f"/v2/models/{name}/config").json
        assert document["name"] == name
        assert isinstance(document["max_batch_size"], int)
        for spec in (*document["input"], *document["output"]):
            assert spec["data_type"].startswith("TYPE_")
            assert all(isinstance(size, int) for size in spec["dims"])
    assert s.ask("GET", "/v2/models/texts/config").json["input"][0]["data_type"] == "TYPE_STRING"
    assert s.ask("GET", "/v2/models/versioned/versions/2/config").status == 200
    assert s.ask("GET", "/v2/models/nobody/config").status == 404


@case(TABLE, "config-and-metadata-agree", f"{CONFIG}: dims are without the batch where max_batch_size is not 0")
def _(s: Server) -> None:
    for name in ("labels", "simple", "typed", "texts"):
        config, metadata = s.ask("GET", f"/v2/models/{name}/config").json, s.ask("GET", f"/v2/models/{name}").json
        for spec, tensor in zip(config["input"], metadata["inputs"], strict=True):
            whole = [-1, *spec["dims"]] if config["max_batch_size"] else spec["dims"]
            assert (spec["name"], whole) == (tensor["name"], tensor["shape"])


# V1


@case(TABLE, "v1-rows", V1)
def _(s: Server) -> None:
    answer = s.ask("POST", "/v1/models/labels:predict", {"instances": [[1, 2, 3, 4], [5, 6, 7, 8.5]]})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {"predictions": [[1, 2, 3, 4], [5, 6, 7, 8.5]]}


@case(TABLE, "v1-columns", V1)
def _(s: Server) -> None:
    for inputs in ([[1, 2, 3, 4]], {"scores": [[1, 2, 3, 4]]}):
        assert s.ask("POST", "/v1/models/labels:predict", {"inputs": inputs}).json == {"outputs": [[1, 2, 3, 4]]}


@case(TABLE, "v1-named-rows", V1)
def _(s: Server) -> None:
    rows = [{"INPUT0": [1, 2, 3, 4], "INPUT1": [1, 1, 1, 1]}] * 2
    answer = s.ask("POST", "/v1/models/simple:predict", {"instances": rows})
    assert answer.json == {"predictions": [{"OUTPUT0": [2, 3, 4, 5], "OUTPUT1": [0, 1, 2, 3]}] * 2}
    columns = {"INPUT0": [[1, 2, 3, 4]], "INPUT1": [[1, 1, 1, 1]]}
    answer = s.ask("POST", "/v1/models/simple:predict", {"inputs": columns})
    assert answer.json == {"outputs": {"OUTPUT0": [[2, 3, 4, 5]], "OUTPUT1": [[0, 1, 2, 3]]}}


@case(TABLE, "v1-bytes", f"{V1}, Encoding binary values")
def _(s: Server) -> None:
    encoded = {"b64": base64.b64encode(b"\xff\xfe").decode()}
    answer = s.ask("POST", "/v1/models/texts:predict", {"instances": [[encoded], ["abc"]]})
    assert answer.json == {"predictions": [[2], [3]]}


@case(TABLE, "v1-versions", V1)
def _(s: Server) -> None:
    body = {"instances": [[1, 2, 3, 4]]}
    for path in ("versioned:predict", "versioned/versions/1:predict", "versioned/versions/10:predict"):
        assert s.ask("POST", f"/v1/models/{path}", body).status == 200
    assert s.ask("POST", "/v1/models/versioned/versions/3:predict", body).status == 404


@case(TABLE, "v1-equals-v2", "ours: one data plane", slow=True)
def _(s: Server) -> None:
    rows = [[0.1, -0.2, 0.3, 0.4], [1, 2, 3, 4]]
    v1 = s.ask("POST", "/v1/models/xgb:predict", {"instances": rows}).json["predictions"]
    v2 = s.infer("xgb", json_tensor("input-0", "FP32", [2, 4], rows)).json["outputs"][0]["data"]
    reply = s.rpc(
        "ModelInfer", infer_message("xgb", [json_tensor("input-0", "FP32", [2, 4], [*rows[0], *rows[1]])], raw=True)
    )
    assert v1 == pytest.approx(v2)
    assert v2 == pytest.approx(values_of(reply.message))


for name, body in {
    "empty": b"",
    "no-json": b"{",
    "list": [[1, 2, 3, 4]],
    "no-instances": {},
    "instances-null": {"instances": None},
    "instances-number": {"instances": 1},
    "instances-object": {"instances": {"a": 1}},
    "no-rows": {"instances": []},
    "both": {"instances": [[1, 2, 3, 4]], "inputs": [[1, 2, 3, 4]]},
    "ragged": {"instances": [[1, 2, 3, 4], [1, 2, 3]]},
    "text": {"instances": [["a", "b", "c", "d"]]},
    "null-for-a-row": {"instances": [[1, 2, 3, 4], None]},
    "null-beside-a-text": {"instances": [[1, 2, None, "a"]]},
    "another-signature": {"instances": [[1, 2, 3, 4]], "signature_name": "other"},
    "wrong-width": {"instances": [[1, 2, 3]]},
    "wrong-depth": {"instances": [1, 2, 3, 4]},
    "unknown-name": {"instances": [{"x": [1, 2, 3, 4]}]},
    "names-differ": {"instances": [{"scores": [1, 2, 3, 4]}, {"x": [1, 2, 3, 4]}]},
    "signature-number": {"instances": [[1, 2, 3, 4]], "signature_name": 1},
}.items():

    @case(TABLE, f"v1-wrong-{name}", V1 + ": 400 and {error}")
    def _(s: Server, body: Any = body) -> None:
        answer = s.ask("POST", "/v1/models/labels:predict", body)
        assert answer.status == 400, answer.body
        assert "Traceback" not in answer.error
        assert s.alive()


@case(TABLE, "v1-explain-where-nothing-explains", "KServe, V1 Protocol: explain")
def _(s: Server) -> None:
    answer = s.ask("POST", "/v1/models/labels:explain", {"instances": [[1, 2, 3, 4]]})
    assert answer.status == 501
    assert "explain" in answer.error
    assert s.ask("POST", "/v1/models/nobody:explain", {"instances": []}).status == 404


@case(TABLE, "v1-unknown-verb", "RFC 9110, 15.5.5")
def _(s: Server) -> None:
    assert s.ask("POST", "/v1/models/labels:dance", {"instances": []}).status in (404, 405)


@case(TABLE, "v1-cloudevent-binary-mode", "CloudEvents, HTTP binding, 3.1")
def _(s: Server) -> None:
    fields = {"ce-id": "1", "ce-source": "t", "ce-type": "x", "ce-specversion": "1.0"}
    answer = s.ask("POST", "/v1/models/labels:predict", {"instances": [[1, 2, 3, 4]]}, fields)
    assert answer.json == {"predictions": [[1, 2, 3, 4]]}
    assert answer.headers["ce-specversion"] == "1.0"
    assert answer.headers["ce-type"] == "io.kserve.inference.response"


@case(TABLE, "v1-cloudevent-structured-mode", "CloudEvents, HTTP binding, 3.2")
def _(s: Server) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "t", "type": "x", "data": {"instances": [[1, 2, 3, 4]]}}
    answer = s.ask("POST", "/v1/models/labels:predict", event, {"Content-Type": "application/cloudevents+json"})
    assert answer.headers["content-type"] == "application/cloudevents+json"
    assert orjson.loads(answer.body)["data"] == {"predictions": [[1, 2, 3, 4]]}


# A framework's model, by the same rules

XGB = json_tensor("input-0", "FP32", [1, 4], [1.0, 3.5, 0.5, 2.0])


@case(TABLE, "metadata-of-a-booster", "inference_rest.md, Model Metadata Response JSON Object", slow=True)
def _(s: Server) -> None:
    check_metadata(s, "xgb", XGB)


@case(TABLE, "no-rows-of-a-booster", "inference_rest.md, shape: unsigned integers", slow=True)
def _(s: Server) -> None:
    check_no_rows(s, "xgb", XGB)


@case(TABLE, "config-of-a-booster-equals-rest", CONFIG, slow=True)
def _(s: Server) -> None:
    check_config(s, "xgb")


# Isolation


@case(TABLE, "concurrent-requests-get-their-own-answers", "good practice: MLServer answers others' results")
def _(s: Server) -> None:
    def ask(number: int) -> bool:
        rows = number % 3 + 1
        data = [float(number)] * 4 * rows
        good = s.grpc_infer("labels", scores(rows, data), id=str(number)).message
        bad = s.grpc_infer("labels", json_tensor("scores", "FP32", [1, 3], [1.0] * 3))
        return good.id == str(number) and values_of(good) == data and bad.code == "INVALID_ARGUMENT"

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(200)))


@ids(TABLE)
def test_extension(server: Server, one: Case):
    one.run(server)


@pytest.mark.slow
def test_a_repository_folder_is_looked_into_at_each_load(tmp_path: Path):
    """extension_model_repository.md, Index: "even if it is not currently loaded"; Load: an error says why."""
    repository = tmp_path / "repository"

    def write(name: str, implementation: str) -> None:
        (repository / name).mkdir(parents=True, exist_ok=True)
        settings = {"name": name, "implementation": f"conformance_models.{implementation}"}
        (repository / name / "model-settings.json").write_text(orjson.dumps(settings).decode())

    write("first", "Labels")
    path = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    allowed = ("--allow_implementation", "conformance_models.*")
    with serving(tmp_path, "--model_repository", str(repository), *allowed, environment=path) as served:
        s = Server(served)
        write("fresh", "Labels")
        write("wrong", "Nothing")
        index = {entry["name"]: entry["state"] for entry in s.ask("POST", "/v2/repository/index", {}).json}
        assert index == {"first": "READY", "fresh": "UNAVAILABLE", "wrong": "UNAVAILABLE"}
        assert s.infer("fresh", scores()).status == 404
        assert s.ask("POST", "/v2/repository/models/fresh/load", {}).status == 200
        assert s.infer("fresh", scores()).status == 200
        answer = s.ask("POST", "/v2/repository/models/wrong/load", {})
        assert answer.status == 400, answer.body
        assert "Nothing" in answer.error
        reply = s.rpc("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="wrong"))
        s.grpc_refused("INVALID_ARGUMENT", reply, "Nothing")
        write("wrong", "Labels")
        assert s.ask("POST", "/v2/repository/models/wrong/load", {}).status == 200
        assert s.infer("wrong", scores()).status == 200
        write("first", "Nothing")
        assert s.ask("POST", "/v2/repository/models/first/load", {}).status == 400
        assert s.infer("first", scores()).status == 200, "a reload that fails keeps the old model"
        assert "Traceback" not in served.log.read_text()
        s.close()


@pytest.mark.slow
def test_a_model_of_a_repository_has_the_name_that_it_gives_itself(tmp_path: Path):
    """extension_model_repository.md, Index: what "can potentially be loaded by the Load API", by the name told there."""
    repository = tmp_path / "repository"

    def write(folder: str, settings: dict[str, Any]) -> None:
        (repository / folder).mkdir(parents=True)
        document = {"implementation": "conformance_models.Labels", **settings}
        (repository / folder / "model-settings.json").write_text(orjson.dumps(document).decode())

    write("a-folder", {"name": "modèle 1"})
    write("v-first", {"name": "several", "parameters": {"version": "1"}})
    write("v-second", {"name": "several", "parameters": {"version": "2"}})
    for version in ("1", "2"):
        write(f"numbered/{version}", {"name": "inside", "parameters": {"version": version}})
    write("bare", {})
    path = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    allowed = ("--allow_implementation", "conformance_models.*")
    with serving(tmp_path, "--model_repository", str(repository), *allowed, environment=path) as served:
        s = Server(served)

        def index() -> list[tuple[str, str, str]]:
            entries = s.ask("POST", "/v2/repository/index", {}).json
            return sorted((entry["name"], entry.get("version", ""), entry["state"]) for entry in entries)

        others = [(name, v, "READY") for name in ("inside", "several") for v in ("1", "2")]
        others = sorted([*others, ("modèle 1", "", "READY")])
        assert index() == [("bare", "", "READY"), *others]
        for name in ("mod%C3%A8le%201", "several", "inside", "bare"):
            for action in ("load", "unload", "load"):
                answer = s.ask("POST", f"/v2/repository/models/{name}/{action}", {})
                assert answer.status == 200, (name, action, answer.body)
            assert s.infer(name, scores()).status == 200
        assert index() == [("bare", "", "READY"), *others]
        assert s.ask("POST", "/v2/repository/models/a-folder/load", {}).status == 404

        (repository / "bare" / "model-settings.json").unlink()
        (repository / "bare").rmdir()
        assert s.infer("bare", scores()).status == 200, "it serves until it is unloaded"
        assert ("bare", "", "READY") in index()
        assert s.ask("POST", "/v2/repository/models/bare/unload", {}).status == 200
        assert index() == others, "what is nowhere any more is not in the index"
        assert s.ask("POST", "/v2/repository/models/bare/load", {}).status == 404
        s.close()


@pytest.mark.slow
def test_no_client_fault_left_a_traceback(server: Server):
    """Runs last in this module."""
    log = server.served.log.read_text()
    assert log.count("Traceback") <= log.count("ERROR serinus.model: model 'broken' failed"), log
