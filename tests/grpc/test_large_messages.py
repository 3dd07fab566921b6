"""Messages that take milliseconds to read are read off the event loop, and those that take more than their size deserves are refused."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import grpc
from depth import some_of
from grpc_support import ENGINES, Running, serving
from representative import every
from serinus.errors import TooLarge
from serinus.protocol import _open_inference_pb2 as pb
from serinus.protocol import proto_census
from serinus.protocol.proto_census import MOST_FIELDS, MOST_NUMBERS, check_message, is_laborious
from serinus.protocol.proto_codec import decode_request
from serinus.server.grpc import service as service_module


@pytest.fixture(params=["compiled", "plain"])
def counter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "plain":
        monkeypatch.setattr(proto_census, "library", lambda: None)
    proto_census._counter.cache_clear()
    yield request.param
    proto_census._counter.cache_clear()


def field(number: int, payload: bytes) -> bytes:
    size, length = len(payload), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes(length) + bytes([size]) + payload


def costly(most_fields: int, most_numbers: int) -> dict[str, bytes]:
    """Messages that each hold one more than so many, by the kind of what they hold too much of."""
    many = most_fields + 1
    return {
        "empty ids": field(3, b"") * many,
        "empty parameters": field(4, b"") * many,
        "empty inputs": field(5, b"") * many,
        "empty outputs": field(6, b"") * many,
        "empty raw tensors": field(7, b"") * many,
        "empty contents": field(5, field(5, b"") * many),
        "empty values of BYTES": field(5, field(5, field(8, b"") * many)),
        "parameters of an input": field(5, field(4, b"") * many),
        "parameters of an output": field(6, field(2, b"") * many),
        "values of a parameter": field(4, field(2, b"\x08\x01" * many)),
        "typed integers": field(5, field(5, field(2, b"\x01" * (most_numbers + 1)))),
        "integers one by one": field(5, field(5, b"\x10\x01" * many)),
        "dimensions": field(5, field(3, b"\x01" * (most_numbers + 1))),
        "unknown fields": b"\xf8\x07\x01" * many,
        "groups": b"\x7b\x7c" * many,
    }


COSTLY = costly(MOST_FIELDS, MOST_NUMBERS)


# Python looks at each field by itself, which takes a second: one is enough where all are counted to a lower limit below.
@pytest.mark.parametrize(
    ("kind", "counter"),
    [(kind, "compiled") for kind in COSTLY]
    + [pytest.param(kind, "plain", marks=pytest.mark.slow) for kind in some_of(list(reversed(COSTLY)), 1)],
    indirect=["counter"],
)
def test_a_message_of_millions_of_nothings_is_refused_before_it_is_parsed(kind: str, counter: str):
    with pytest.raises(TooLarge, match="raw_input_contents"):
        decode_request(COSTLY[kind])
    assert is_laborious(COSTLY[kind])


@pytest.mark.parametrize("kind", every(3, COSTLY))
def test_without_the_compiled_counter_each_kind_is_counted_too(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proto_census, "_counter", proto_census._counter.__wrapped__)
    monkeypatch.setattr(proto_census, "library", lambda: None)
    fields, numbers = MOST_FIELDS >> 4, MOST_NUMBERS >> 4
    monkeypatch.setattr(proto_census, "_LIMITS", (fields, numbers, 1 << 62))
    with pytest.raises(TooLarge, match="raw_input_contents"):
        decode_request(costly(fields, numbers)[kind])


@pytest.mark.parametrize("datatype", every(3, ["INT8", "INT32", "INT64", "UINT64", "BYTES", "FP32", "BOOL"]))
def test_typed_values_of_many_chunks_arrive_as_they_were_sent(datatype: str):
    names = {
        "INT8": "int",
        "INT32": "int",
        "INT64": "int64",
        "UINT64": "uint64",
        "BYTES": "bytes",
        "FP32": "fp32",
        "BOOL": "bool",
    }
    sent: list[Any] = [number % 100 for number in range(200_001)]
    if datatype == "BYTES":
        sent = [b"%d" % number for number in sent]
    request = pb.ModelInferRequest(model_name="m")
    contents = {names[datatype] + "_contents": sent}
    request.inputs.add(name="x", datatype=datatype, shape=[len(sent)], contents=contents)
    (tensor,) = decode_request(request.SerializeToString()).inputs
    assert np.array_equal(tensor.data, np.array(sent, tensor.data.dtype))


def test_a_large_raw_tensor_is_no_labour_and_damage_is_left_to_the_parser(counter: str):
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(1 << 22)])
    message = request.SerializeToString()
    assert not is_laborious(message)
    for damaged in (b"\x2a\xff\xff\xff\xff\x7f", b"\xff" * 12, b"\x2a", b"\x09\x01", message[:-1]):
        check_message(damaged)


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest) -> Any:
    with serving(request.param) as server:
        yield server


@pytest.mark.parametrize("streamed", [False, True], ids=["alone", "on a stream"])
def test_a_health_check_is_answered_while_a_message_is_read(
    server: Running, streamed: bool, monkeypatch: pytest.MonkeyPatch
):
    """The reading waits until the check was answered, in whatever thread it is: on the loop's it would wait in vain."""
    reading, answered, waited = threading.Event(), threading.Event(), []

    def slowly(message: bytes, **options: Any) -> Any:
        reading.set()
        waited.append(answered.wait(5))
        return decode_request(message, **options)

    monkeypatch.setattr(service_module, "decode_request", slowly)
    request = pb.ModelInferRequest(model_name="sum")
    request.inputs.add(name="x", datatype="FP32", shape=[100_000, 3], contents={"fp32_contents": [1.0] * 300_000})
    with grpc.insecure_channel(server.address) as channel:
        kind: Any = channel.stream_stream if streamed else channel.unary_unary
        call: Any = kind(
            "/inference.GRPCInferenceService/ModelStreamInfer"
            if streamed
            else "/inference.GRPCInferenceService/ModelInfer"
        )
        if streamed:
            answers = call(iter([request.SerializeToString()]))
        else:
            answers = call.future(request.SerializeToString())
        assert reading.wait(20)
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert pb.ServerLiveResponse.FromString(live(b"", timeout=20)).live
        answered.set()
        assert len(list(answers) if streamed else [answers.result(20)]) == 1
    assert waited
    assert all(waited)


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "RepositoryModelLoad", "RepositoryIndex"])
def test_a_call_that_names_a_model_takes_no_million_of_fields(server: Running, method: str):
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(field(3, b"") * 300_000, timeout=20)
    assert "1024 fields" in (caught.value.details() or "")
