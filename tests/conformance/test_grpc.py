"""inference_grpc.md and what gRPC itself asks of a server, against a real `serinus serve`, on both engines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import grpc
from conformance_support import (
    Case,
    Server,
    case,
    ids,
    infer_message,
    json_tensor,
    raw_bytes,
    server_process,
    values_of,
)
from serinus.protocol import _open_inference_pb2 as pb

OIP = "inference_grpc.md, "
HEALTH = "grpc.health.v1.Health"


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_process(tmp_path_factory.mktemp("grpc"), "--grpc", request.param) as running:
        yield running


def scores(rows: int = 1) -> dict[str, Any]:
    return json_tensor("scores", "FP32", [rows, 4], [1.0, 3.0, 0.5, 2.0] * rows)


def slow(seconds: float) -> dict[str, Any]:
    return json_tensor("seconds", "FP32", [1, 1], [seconds])


TABLE: list[Case] = []


@case(TABLE, "server-live", OIP + "Server Live")
def _(s: Server) -> None:
    assert s.rpc("ServerLive").message.live is True


@case(TABLE, "server-ready", OIP + "Server Ready")
def _(s: Server) -> None:
    assert s.rpc("ServerReady").message.ready is True


for name, version, code in (
    ("labels", "", "OK"),
    ("versioned", "", "OK"),
    ("versioned", "1", "OK"),
    ("versioned", "10", "OK"),
    ("modèle no. 1/a", "", "OK"),
    ("nobody", "", "NOT_FOUND"),
    ("versioned", "3", "NOT_FOUND"),
    ("versioned", "01", "NOT_FOUND"),
    ("labels", "1", "NOT_FOUND"),
    ("", "", "NOT_FOUND"),
    ("Labels", "", "NOT_FOUND"),
):
    for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        if name or method != "ModelStatistics":  # without a name: of all models

            @case(TABLE, f"{method}-{name}-{version}", OIP + "Model Ready, Model Metadata; status codes")
            def _(s: Server, method: str = method, name: str = name, version: str = version, code: str = code) -> None:
                reply = s.rpc(method, getattr(pb, f"{method}Request")(name=name, version=version))
                assert reply.code == code, reply
                if code == "OK" and method == "ModelReady":
                    assert reply.message.ready is True
                if code != "OK":
                    assert reply.details


@case(TABLE, "server-metadata", OIP + "Server Metadata; equal to REST's")
def _(s: Server) -> None:
    message, document = s.rpc("ServerMetadata").message, s.ask("GET", "/v2").json
    assert (message.name, message.version, list(message.extensions)) == tuple(document.values())


@case(TABLE, "model-metadata-equals-rest", OIP + "Model Metadata")
def _(s: Server) -> None:
    for name in ("labels", "versioned", "typed", "xgb", "identity", "texts"):
        message, document = (
            s.rpc("ModelMetadata", pb.ModelMetadataRequest(name=name)).message,
            s.ask("GET", f"/v2/models/{name}").json,
        )
        assert (message.name, message.platform) == (name, document["platform"])
        assert list(message.versions) == document.get("versions", [])
        for mine, theirs in ((message.inputs, document["inputs"]), (message.outputs, document["outputs"])):
            assert [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in mine] == theirs
        assert set(message.properties) == set(document["properties"])


@case(TABLE, "model-config-equals-rest", "extension_model_configuration.md")
def _(s: Server) -> None:
    for name in ("labels", "versioned", "typed", "xgb"):
        config = s.rpc("ModelConfig", pb.ModelConfigRequest(name=name)).message.config
        document = s.ask("GET", f"/v2/models/{name}/config").json
        assert (config.name, config.max_batch_size) == (name, document["max_batch_size"])
        for mine, theirs in ((config.input, document["input"]), (config.output, document["output"])):
            assert [(t.name, list(t.dims)) for t in mine] == [(t["name"], t["dims"]) for t in theirs]


for identifier in ("", "42", "ü 🐦", "x" * 5000):

    @case(TABLE, f"id-{identifier[:5]!r}", OIP + "id: if specified will be returned")
    def _(s: Server, identifier: str = identifier) -> None:
        assert s.grpc_infer("labels", scores(), id=identifier).message.id == identifier


@case(TABLE, "answer-names-model-and-version", OIP + "ModelInferResponse")
def _(s: Server) -> None:
    message = s.grpc_infer("labels", scores()).message
    assert (message.model_name, message.model_version) == ("labels", "")
    for version, answers in (("", "10"), ("1", "1"), ("2", "2")):
        assert s.grpc_infer("versioned", scores(), version=version).message.model_version == answers


@case(TABLE, "raw-in-raw-out", OIP + "contents must not be specified beside raw")
def _(s: Server) -> None:
    message = s.grpc_infer("labels", scores(), raw=True).message
    assert list(message.raw_output_contents) == [raw_bytes("FP32", [1, 3, 0.5, 2])]
    assert not any(output.HasField("contents") for output in message.outputs)


@case(TABLE, "typed-in-typed-out", OIP + "as KServe and MLServer answer")
def _(s: Server) -> None:
    message = s.grpc_infer("labels", scores()).message
    assert not message.raw_output_contents
    assert list(message.outputs[0].contents.fp32_contents) == [1, 3, 0.5, 2]


@case(TABLE, "outputs-filter-and-order", OIP + "outputs")
def _(s: Server) -> None:
    inputs = [json_tensor(f"INPUT{i}", "INT32", [1, 4], [1, 2, 3, 4]) for i in (0, 1)]
    for wanted in (["OUTPUT0"], ["OUTPUT1"], ["OUTPUT1", "OUTPUT0"]):
        for raw in (True, False):
            message = s.grpc_infer("simple", *inputs, raw=raw, outputs=[{"name": n} for n in wanted]).message
            assert [output.name for output in message.outputs] == wanted
            assert values_of(message) == ([2, 4, 6, 8] if wanted[0] == "OUTPUT0" else [0] * 4)


WRONG: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no-model": (infer_message("", [scores()]), ("model_name",)),
    "no-inputs": (infer_message("labels", []), ("inputs",)),
    "no-name": (infer_message("labels", [{**scores(), "name": ""}]), ("name",)),
    "no-datatype": (infer_message("labels", [{**scores(), "datatype": "", "data": []}]), ("datatype",)),
    "unknown-datatype": (infer_message("labels", [{**scores(), "datatype": "FP128", "data": []}]), ("FP128",)),
    "lower-case-datatype": (infer_message("labels", [{**scores(), "datatype": "fp32", "data": []}]), ("fp32",)),
    "another-datatype": (infer_message("labels", [{**scores(), "datatype": "FP64"}]), ("FP64", "FP32")),
    "unknown-input": (infer_message("labels", [{**scores(), "name": "x"}]), ("'x'", "'scores'")),
    "input-twice": (infer_message("labels", [scores(), scores()]), ("'scores'", "twice")),
    "one-missing": (infer_message("simple", [json_tensor("INPUT0", "INT32", [1, 4], [1] * 4)]), ("'INPUT1'",)),
    "wrong-rank": (infer_message("labels", [{**scores(), "shape": [4]}]), ("[4]", "[-1, 4]")),
    "wrong-dimension": (infer_message("labels", [json_tensor("scores", "FP32", [1, 5], [1] * 5)]), ("[1, 5]",)),
    "negative-dimension": (infer_message("labels", [{**scores(), "shape": [-1, 4]}]), ("negative",)),
    "unknown-output": (infer_message("labels", [scores()], outputs=[{"name": "no"}]), ("'no'", "'classes'")),
    "output-twice": (infer_message("labels", [scores()], outputs=[{"name": "classes"}] * 2), ("twice",)),
    "output-unnamed": (infer_message("labels", [scores()], outputs=[{"name": ""}]), ("name",)),
    "too-few-values": (infer_message("labels", [{**scores(), "data": [1.0]}]), ("'scores'", "4")),
    "no-values": (infer_message("labels", [{**scores(), "data": []}]), ("'scores'",)),
    "huge-claim": (infer_message("identity", [json_tensor("t", "FP32", [2**31, 1], [1.0])]), ("'t'",)),
    "huger-claim": (infer_message("identity", [json_tensor("t", "FP32", [2**62, 2**62], [1.0])]), ("'t'",)),
    "not-protobuf": (b"\xff\xff\xff", ("decode",)),
    "cut-short": (infer_message("labels", [scores()]).SerializeToString()[:-3], ("decode",)),
}
_mixed = infer_message("labels", [scores()])
_mixed.raw_input_contents.append(raw_bytes("FP32", [1, 3, 0.5, 2]))
WRONG["raw-and-contents"] = (_mixed, ("contents",))
_half = infer_message("simple", [json_tensor(f"INPUT{i}", "INT32", [1, 4], []) for i in (0, 1)])
_half.raw_input_contents.append(raw_bytes("INT32", [1, 2, 3, 4]))
WRONG["fewer-raw-than-inputs"] = (_half, ("raw_input_contents",))
_more = infer_message("labels", [scores()], raw=True)
_more.raw_input_contents.append(b"")
WRONG["more-raw-than-inputs"] = (_more, ("raw_input_contents",))
_short = infer_message("labels", [{**scores(), "data": []}])
_short.raw_input_contents.append(b"\0" * 15)
WRONG["raw-too-short"] = (_short, ("'scores'", "16", "15"))
_long = infer_message("labels", [{**scores(), "data": []}])
_long.raw_input_contents.append(b"\0" * 17)
WRONG["raw-too-long"] = (_long, ("'scores'", "16", "17"))
_none = infer_message("labels", [scores()])
_none.parameters["p"].SetInParent()
WRONG["parameter-without-value"] = (_none, ("'p'",))
_deep = infer_message("identity", [json_tensor("t", "FP32", [1] * 64, [1.0])])

for _name, (_request, _words) in WRONG.items():

    @case(TABLE, f"wrong-{_name}", OIP + "errors are indicated by the google.rpc.Status; INVALID_ARGUMENT")
    def _(s: Server, request: Any = _request, words: tuple[str, ...] = _words) -> None:
        s.grpc_refused("INVALID_ARGUMENT", s.rpc("ModelInfer", request), *words)
        assert s.rpc("ServerLive").code == "OK"


@case(TABLE, "too-many-dimensions", "gRPC status codes: INVALID_ARGUMENT whatever the state of the system")
def _(s: Server) -> None:
    s.grpc_refused("INVALID_ARGUMENT", s.rpc("ModelInfer", _deep), "dimensions", "32")


@case(TABLE, "unknown-model", "gRPC status codes: NOT_FOUND")
def _(s: Server) -> None:
    s.grpc_refused("NOT_FOUND", s.grpc_infer("nobody", scores()), "'nobody'")


@case(TABLE, "unknown-version", "gRPC status codes: NOT_FOUND")
def _(s: Server) -> None:
    s.grpc_refused("NOT_FOUND", s.grpc_infer("versioned", scores(), version="3"), "'3'")


@case(TABLE, "a-models-own-failure-is-internal-without-secrets", "gRPC status codes: INTERNAL")
def _(s: Server) -> None:
    reply = s.grpc_infer("broken", json_tensor("x", "FP32", [1, 1], [1.0]))
    assert reply.code == "INTERNAL"
    assert "secret" not in reply.details
    assert "ZeroDivision" not in reply.details


@case(TABLE, "no-rows", OIP + "Tensor Data")
def _(s: Server) -> None:
    for raw in (True, False):
        message = s.grpc_infer("labels", scores(0), raw=raw)
        assert message.code == "OK", message
        assert list(message.message.outputs[0].shape) == [0, 4]


for method, service in (
    ("Nothing", "inference.GRPCInferenceService"),
    ("modelinfer", "inference.GRPCInferenceService"),
    ("ModelInfer", "inference.Other"),
    ("SystemSharedMemoryStatus", "inference.GRPCInferenceService"),
    ("TraceSetting", "inference.GRPCInferenceService"),
    ("Check", "grpc.health.v2.Health"),
):

    @case(TABLE, f"unimplemented-{service}/{method}", "gRPC status codes: UNIMPLEMENTED")
    def _(s: Server, method: str = method, service: str = service) -> None:
        assert s.rpc(method, service=service).code == "UNIMPLEMENTED"


for name, status in {
    "": 1,
    "inference.GRPCInferenceService": 1,
    "labels": 1,
    "versioned/2": 1,
    "readiness": 1,
    "liveness": 1,
    "nobody": None,
    "versioned/3": None,
    "grpc.health.v1.Other": None,
}.items():

    @case(TABLE, f"health-{name or 'overall'}", "health.proto: SERVING, or NOT_FOUND for an unknown service")
    def _(s: Server, name: str = name, status: int | None = status) -> None:
        from grpc_health.v1 import health_pb2

        reply = s.rpc("Check", health_pb2.HealthCheckRequest(service=name), service=HEALTH)
        if status is None:
            assert reply.code == "NOT_FOUND"
        else:
            assert reply.message.status == status


@case(TABLE, "health-watch", "health.proto: Watch sends the present status at once")
def _(s: Server) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    for name, status in (("labels", 1), ("nobody", 3)):
        stream = health_pb2_grpc.HealthStub(s.channel).Watch(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert next(iter(stream)).status == status
        stream.cancel()


@case(TABLE, "reflection-lists-the-services", "grpc.reflection.v1alpha")
def _(s: Server) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = reflection_pb2_grpc.ServerReflectionStub(s.channel).ServerReflectionInfo(iter([ask]), timeout=10)
    names = {service.name for service in next(iter(answers)).list_services_response.service}
    assert {"inference.GRPCInferenceService", HEALTH} <= names


@case(TABLE, "deadline-ends-the-call", "gRPC deadlines: DEADLINE_EXCEEDED")
def _(s: Server) -> None:
    started = time.monotonic()
    assert s.rpc("ModelInfer", infer_message("slow", [slow(1.5)]), timeout=0.2).code == "DEADLINE_EXCEEDED"
    assert time.monotonic() - started < 1.4
    assert s.rpc("ServerLive").code == "OK"


@case(TABLE, "a-slow-model-holds-up-nobody", "good practice: KServe blocks its loop")
def _(s: Server) -> None:
    answered = threading.Event()
    thread = threading.Thread(target=lambda: (s.grpc_infer("slow", slow(1.0)), answered.set()))
    thread.start()
    for _ in range(20):
        assert s.rpc("ServerReady").message.ready
        assert s.grpc_infer("labels", scores()).code == "OK"
        assert s.infer("labels", scores()).status == 200
    assert not answered.is_set()
    thread.join(20)
    assert answered.is_set()


@case(TABLE, "cancelled-calls-are-cancelled", "gRPC cancellation")
def _(s: Server) -> None:
    call = s.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(
        infer_message("slow", [slow(0.5)]).SerializeToString()
    )
    call.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        call.result()
    assert s.rpc("ServerLive").code == "OK"


@case(TABLE, "gzip", "gRPC compression")
def _(s: Server) -> None:
    message = infer_message("labels", [scores(500)], raw=True)
    reply = s.rpc("ModelInfer", message, compression=grpc.Compression.Gzip)
    assert values_of(reply.message) == [1, 3, 0.5, 2] * 500


@case(TABLE, "deflate-is-taken", "gRPC compression.md")
def _(s: Server) -> None:
    message = infer_message("labels", [json_tensor("scores", "FP32", [500, 4], [1, 3, 0.5, 2] * 500)])
    reply = s.rpc("ModelInfer", message, compression=grpc.Compression.Deflate)
    assert values_of(reply.message) == [1, 3, 0.5, 2] * 500


for name, version in (("nobody", ""), ("versioned", "9")):

    @case(TABLE, f"unknown-model-before-what-else-is-wrong-{name}", "gRPC status codes: NOT_FOUND; as over REST")
    def _(s: Server, name: str = name, version: str = version) -> None:
        message = pb.ModelInferRequest(model_name=name, model_version=version)
        s.grpc_refused("NOT_FOUND", s.rpc("ModelInfer", message), f"'{name}'")
        message = infer_message(name, [json_tensor("t", "FP99", [1], [])], version=version)
        s.grpc_refused("NOT_FOUND", s.rpc("ModelInfer", message), f"'{name}'")


@case(TABLE, "request-id-comes-back", "good practice")
def _(s: Server) -> None:
    reply = s.rpc("ModelInfer", infer_message("labels", [scores()]), metadata=(("x-request-id", "r-1"),))
    assert reply.initial["x-request-id"] == "r-1"


@case(TABLE, "headers-of-a-model", "ours")
def _(s: Server) -> None:
    assert s.grpc_infer("asked", scores()).initial["x-answered-by"] == "asked"


@case(TABLE, "binary-metadata-is-no-harm", "gRPC over HTTP/2: -bin")
def _(s: Server) -> None:
    metadata: Any = (("trace-bin", b"\0\xff"), ("x-a", "1"), ("x-a", "2"))
    assert s.rpc("ModelInfer", infer_message("labels", [scores()]), metadata=metadata).code == "OK"


@case(TABLE, "a-message-that-is-too-large", "gRPC status codes: RESOURCE_EXHAUSTED")
def _(s: Server) -> None:
    message = infer_message("identity", [json_tensor("t", "UINT8", [65 << 20], [])])
    message.raw_input_contents.append(bytes(65 << 20))
    assert s.rpc("ModelInfer", message).code == "RESOURCE_EXHAUSTED"
    assert s.rpc("ServerLive").code == "OK"


@case(TABLE, "unknown-fields-are-skipped", "protobuf: unknown fields")
def _(s: Server) -> None:
    message = infer_message("labels", [scores()]).SerializeToString() + b"\xf2\x3f\x03abc"
    assert s.rpc("ModelInfer", message).code == "OK"


@case(TABLE, "stream", "Triton, ModelStreamInfer: one answer for each request, in order")
def _(s: Server) -> None:
    requests = [infer_message("labels", [scores()], id=str(i)).SerializeToString() for i in range(5)]
    requests.insert(2, infer_message("nobody", [scores()], id="bad").SerializeToString())
    stub = s.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    answers = [pb.ModelStreamInferResponse.FromString(answer) for answer in stub(iter(requests), timeout=20)]
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "bad", "2", "3", "4"]
    assert [bool(answer.error_message) for answer in answers] == [False, False, True, False, False, False]


@ids(TABLE)
def test_grpc(server: Server, one: Case):
    one.run(server)


def test_no_client_fault_left_a_traceback(server: Server):
    """Runs last in each engine's round."""
    log = server.served.log.read_text()
    assert log.count("Traceback") <= log.count("ERROR serinus.model: model 'broken' failed")
