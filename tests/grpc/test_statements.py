"""inference_grpc.md statement by statement, on both engines, and REST's answer to the same question beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from conformance_support import Case, Server, case, ids, json_tensor, server_here, values_of
from grpc_support import ENGINES
from serinus.protocol import _open_inference_pb2 as pb

OIP = "inference_grpc.md, "


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with server_here(engine=request.param) as running:
        yield running


def scores(rows: int = 1) -> dict[str, Any]:
    return json_tensor("scores", "FP32", [rows, 4], [1.0, 3.0, 0.5, 2.0] * rows)


TABLE: list[Case] = []


@case(TABLE, "server-metadata", OIP + "Server Metadata; equal to REST's")
def _(s: Server) -> None:
    message, document = s.rpc("ServerMetadata").message, s.ask("GET", "/v2").json
    assert (message.name, message.version, list(message.extensions)) == tuple(document.values())


@case(TABLE, "model-metadata-equals-rest", OIP + "Model Metadata")
def _(s: Server) -> None:
    for name in ("labels", "versioned", "typed", "simple", "identity", "texts"):
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
    for name in ("labels", "versioned", "typed", "simple"):
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


@case(TABLE, "outputs-filter-and-order", OIP + "outputs")
def _(s: Server) -> None:
    inputs = [json_tensor(f"INPUT{i}", "INT32", [1, 4], [1, 2, 3, 4]) for i in (0, 1)]
    for wanted in (["OUTPUT0"], ["OUTPUT1"], ["OUTPUT1", "OUTPUT0"]):
        for raw in (True, False):
            message = s.grpc_infer("simple", *inputs, raw=raw, outputs=[{"name": n} for n in wanted]).message
            assert [output.name for output in message.outputs] == wanted
            assert len(message.raw_output_contents) == (len(wanted) if raw else 0)
            assert values_of(message) == ([2, 4, 6, 8] if wanted[0] == "OUTPUT0" else [0] * 4)


@case(TABLE, "no-rows", OIP + "Tensor Data")
def _(s: Server) -> None:
    for raw in (True, False):
        message = s.grpc_infer("labels", scores(0), raw=raw)
        assert message.code == "OK", message
        assert list(message.message.outputs[0].shape) == [0, 4]


@ids(TABLE)
def test_what_the_document_says(server: Server, one: Case):
    one.run(server)
