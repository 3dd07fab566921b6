"""What a client is told of a message that is wrong: inference_grpc.md and gRPC's status codes, on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import grpc
from conformance_support import Case, Server, case, ids, infer_message, json_tensor, raw_bytes, server_here
from grpc_support import ENGINES
from serinus.protocol import _open_inference_pb2 as pb

OIP = "inference_grpc.md, "
HEALTH = "grpc.health.v1.Health"


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with server_here(engine=request.param) as running:
        yield running


def scores(rows: int = 1) -> dict[str, Any]:
    return json_tensor("scores", "FP32", [rows, 4], [1.0, 3.0, 0.5, 2.0] * rows)


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


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_refused_with_what_is_wrong(server: Server, name: str):
    request, words = WRONG[name]
    server.grpc_refused("INVALID_ARGUMENT", server.rpc("ModelInfer", request), *words)
    assert server.grpc_infer("labels", scores(), raw=True).code == "OK", "the connection lives on"


@pytest.mark.parametrize("service", ["inference.GRPCInferenceService", HEALTH])
@pytest.mark.parametrize("bad", [b"\xff", b"\x0a\x7fabc", b"garbage" * 100], ids=["tag", "short field", "garbage"])
def test_bytes_that_are_no_protobuf_are_an_invalid_argument(server: Server, service: str, bad: bytes):
    for method in ("Check",) if service == HEALTH else ("ModelInfer", "ModelMetadata"):
        assert server.rpc(method, bad, service=service).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "path",
    [
        "inference.GRPCInferenceService/Nothing",
        "inference.GRPCInferenceService/modelinfer",
        "inference.GRPCInferenceService/SystemSharedMemoryStatus",
        "inference.GRPCInferenceService/TraceSetting",
        "inference.Other/ModelInfer",
        "grpc.health.v2.Health/Check",
        "",
    ],
)
def test_an_unknown_method_is_unimplemented(server: Server, path: str):
    with pytest.raises(grpc.RpcError) as caught:
        server.channel.unary_unary(f"/{path}")(b"", timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


TABLE: list[Case] = []


for name, version, code in (
    ("labels", "", "OK"),
    ("versioned", "", "OK"),
    ("versioned", "1", "OK"),
    ("versioned", "10", "OK"),
    ("modèle no. 1/a", "", "OK"),
    ("nobody", "", "NOT_FOUND"),
    ("versioned", "3", "NOT_FOUND"),
    ("versioned", "01", "NOT_FOUND"),
    ("labels", "1", "OK"),  # as which its statistics tell of it, without versions
    ("labels", "2", "NOT_FOUND"),
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
                    assert (version or name) in reply.details
                    assert reply.details


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
    assert not any(word in reply.details for word in ("ZeroDivision", "/opt", "secret"))


for name, version in (("nobody", ""), ("versioned", "9")):

    @case(TABLE, f"unknown-model-before-what-else-is-wrong-{name}", "gRPC status codes: NOT_FOUND; as over REST")
    def _(s: Server, name: str = name, version: str = version) -> None:
        message = pb.ModelInferRequest(model_name=name, model_version=version)
        s.grpc_refused("NOT_FOUND", s.rpc("ModelInfer", message), f"'{name}'")
        message = infer_message(name, [json_tensor("t", "FP99", [1], [])], version=version)
        s.grpc_refused("NOT_FOUND", s.rpc("ModelInfer", message), f"'{name}'")


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


@ids(TABLE)
def test_status(server: Server, one: Case):
    one.run(server)
