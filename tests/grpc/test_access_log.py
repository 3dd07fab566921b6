"""The access log over gRPC, and X-Request-Id in metadata, on both engines."""

from __future__ import annotations

import json
import logging
import uuid
from typing import Any

import numpy as np
import pytest

import grpc
from grpc_support import ENGINES, GATE, INFER, serving
from serinus.cli.serving.log_lines import JsonLines
from serinus.protocol import _open_inference_pb2 as pb

ENGINE = pytest.mark.parametrize("engine", ENGINES)
READY = "/inference.GRPCInferenceService/ServerReady"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


def message(model: str, rows: int = 1) -> bytes:
    array = np.ones((rows, 3), np.float32)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=array.shape)
    return pb.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[array.tobytes()]
    ).SerializeToString()


def fields_of(caplog: Any, logger: str = "serinus.access") -> list[dict[str, Any]]:
    return [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == logger]


def call(address: str, path: str, body: bytes, *metadata: tuple[str, str]) -> tuple[dict[str, Any], int]:
    """Metadata of the answer (initial, or with an error trailing), and the code."""
    with grpc.insecure_channel(address) as channel:
        try:
            _, done = channel.unary_unary(path).with_call(body, metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            return dict(error.trailing_metadata() or ()), error.code().value[0]
        return dict(done.initial_metadata()), 0


@ENGINE
def test_a_line_has_a_field_for_each_thing_that_is_known(engine: str, caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    trace = "0af7651916cd43dd8448eb211c80319c"
    with serving(engine, access_log=True, revision="r7") as server:
        sent = (("x-request-id", "mine"), ("traceparent", f"00-{trace}-b7ad6b7169203331-01"))
        metadata, _ = call(server.address, INFER, message("sum", 2), *sent)
    assert metadata["x-request-id"] == "mine"
    (fields,) = fields_of(caplog)
    assert fields.pop("queue_ms") + fields.pop("compute_ms") <= fields.pop("total_ms")
    assert fields.pop("bytes") > 0
    assert fields.pop("time") > 0
    assert fields == {
        "level": "INFO",
        "logger": "serinus.access",
        "message": f"grpc {INFER}",
        "transport": "grpc",
        "request": INFER,
        "status": 0,
        "request_id": "mine",
        "trace_id": trace,
        "model": "sum",
        "version": "",
        "revision": "r7",
        "rows": 2,
        "batch": 2,
    }


@ENGINE
def test_an_id_is_made_where_there_is_an_access_log_and_only_there(engine: str, caplog: Any):
    with serving(engine, access_log=True) as server:
        for path, body in ((INFER, message("sum")), (INFER, message("nobody")), (READY, b"")):
            assert uuid.UUID(call(server.address, path, body)[0]["x-request-id"])
    with serving(engine) as server:
        assert "x-request-id" not in call(server.address, INFER, message("sum"))[0]
        assert "x-request-id" not in call(server.address, INFER, message("nobody"))[0]


@ENGINE
@pytest.mark.parametrize("access_log", [False, True], ids=["plain", "logged"])
def test_a_failure_has_the_id_of_its_line_in_the_log(engine: str, access_log: bool, caplog: Any):
    with serving(engine, access_log=access_log) as server:
        metadata, code = call(server.address, INFER, message("broken"))
    assert code == grpc.StatusCode.INTERNAL.value[0]
    (line,) = [each for each in fields_of(caplog, "serinus.model") if each["level"] == "ERROR"]
    assert line["request_id"] == metadata["x-request-id"]


@ENGINE
def test_requests_of_a_stream_have_a_line_each(engine: str, caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    with serving(engine, access_log=True) as server, grpc.insecure_channel(server.address) as channel:
        answers = channel.stream_stream(STREAM)(iter([message("sum"), message("sum", 3)]), timeout=20)
        assert len(list(answers)) == 2
    assert [(each["request"], each["model"], each["rows"]) for each in fields_of(caplog)] == [
        (STREAM, "sum", 1),
        (STREAM, "sum", 3),
    ]


@ENGINE
def test_a_client_that_left_has_a_line_with_CANCELLED(engine: str, caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    with serving(engine, access_log=True) as server, grpc.insecure_channel(server.address) as channel:
        running = channel.unary_unary(INFER).future(message("gate"), timeout=20)
        assert GATE["gate"].entered.wait(20)
        running.cancel()
        server.until(lambda: fields_of(caplog))
        GATE["gate"].open.set()
    assert [(each["status"], each["model"]) for each in fields_of(caplog)] == [(1, "gate")]


@ENGINE
def test_a_call_that_takes_as_long_as_the_limit_is_written(engine: str, caplog: Any):
    with serving(engine, slow_request_s=1e-9) as server:
        call(server.address, INFER, message("sum"))
    (fields,) = fields_of(caplog, "serinus.slow")
    assert {"queue_ms", "compute_ms", "compute_input_ms", "compute_output_ms", "answer_ms"} <= fields.keys()
    assert fields_of(caplog) == []
