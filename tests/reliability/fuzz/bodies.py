"""Bodies of requests: V2 JSON and binary tensors, V1, protobuf, generate, TensorFlow Serving's examples, CloudEvents, coded messages."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import orjson

from reliability.fuzz.targets import target
from serinus.protocol import proto_codec, v1_codec
from serinus.protocol.peers import example_codec, flat_codec
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import Limits, ModelMetadata, TensorSpec
from serinus.server.grpc.deflate import DEFLATED, inflate
from serinus.server.http.exchange import Headers
from serinus.server.rest.cloudevents import CloudEventSettings, read_event

__all__: list[str] = []

LIMITS = Limits(body_bytes=1 << 20, tensor_bytes=1 << 20)
SPECS = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("t", "BYTES", (-1,)), TensorSpec("n", "INT64", (-1, 1)))
METADATA = ModelMetadata("m", (), "", SPECS, ())
REST = RestCodec(LIMITS)
TENSOR = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1.5, 2, -3e5, 0.1]}
TEXTS = {"name": "t", "shape": [2], "datatype": "BYTES", "data": ["a", "ü"]}
BODIES = [
    {"inputs": [TENSOR]},
    {"id": "1", "inputs": [TENSOR, TEXTS], "outputs": [{"name": "y", "parameters": {"classification": 2}}]},
    {"inputs": [{**TENSOR, "data": [[1, 2], [3, 4]]}], "parameters": {"timeout": 1, "priority": 1, "a": True}},
    {"inputs": [{"name": "n", "shape": [1, 1], "datatype": "INT64", "data": [9223372036854775807]}]},
    {"inputs": [{"name": "b", "shape": [1], "datatype": "BOOL", "data": [True]}]},
]


def _json() -> list[bytes]:
    return [orjson.dumps(body) for body in BODIES]


def _binary(data: bytes) -> object:
    """The first two bytes are the header Inference-Header-Content-Length."""
    length = int.from_bytes(data[:2], "big")
    return REST.decode_request(data[2:], model_name="m", json_length=length, inputs=SPECS[:1])


def _binaries() -> list[bytes]:
    tensor = {key: value for key, value in TENSOR.items() if key != "data"}
    texts = {"name": "t", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}
    head = orjson.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 16}}, texts]})
    body = head + struct.pack("<4f", 1, 2, 3, 4) + struct.pack("<I", 1) + b"a"
    return [struct.pack(">H", len(head)) + body, b"\0\0" + struct.pack("<4f", 1, 2, 3, 4)]


def _v1(data: bytes) -> object:
    return v1_codec.to_request(v1_codec.decode(data, LIMITS), METADATA, limits=LIMITS)


def _protobuf(data: bytes) -> object:
    return proto_codec.decode_request(data, limits=LIMITS)


def _messages() -> list[bytes]:
    requests = [REST.decode_request(body, model_name="m") for body in _json()]
    return [proto_codec.encode_request(request, raw=raw) for request in requests for raw in (True, False)]


def _responses() -> list[bytes]:
    output = {**TENSOR, "name": "y"}
    return [orjson.dumps({"model_name": "m", "outputs": outputs}) for outputs in ([output], [output, TEXTS])]


def _message_responses() -> list[bytes]:
    request = REST.decode_request(_json()[0], model_name="m")
    return [proto_codec.encode_response(REST.decode_response(body), request) for body in _responses()]


def _generate(data: bytes) -> object:
    return flat_codec.decode(data, METADATA, version="", limits=LIMITS, headers={})


def _examples() -> Sequence[bytes]:
    return [
        orjson.dumps({"signature_name": "s", "examples": [{"x": 1.5, "t": "a"}, {"x": [1, 2], "t": {"b64": "YQ=="}}]}),
        orjson.dumps({"context": {"a": 1}, "examples": [{"n": 2}]}),
    ]


def _headers(pairs: list[tuple[bytes, bytes]]) -> Headers:
    return Headers(tuple(pairs))


def _structured(data: bytes) -> object:
    headers = _headers([(b"content-type", b"application/cloudevents+json")])
    return read_event(headers, data, CloudEventSettings(merge=True))


def _binary_event(data: bytes) -> object:
    """Lines are header fields up to an empty one; then the body."""
    head, _, body = data.partition(b"\n\n")
    pairs = [line.partition(b":")[::2] for line in head.split(b"\n")]
    event = read_event(_headers([(name.lower(), value) for name, value in pairs]), body, CloudEventSettings(merge=True))
    if event is not None:
        event.wrap("m", b"{}", "application/json")
    return event


def _event() -> dict[str, object]:
    return {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "time": "2026-01-01T00:00:00Z"}


target("rest_json", lambda data: REST.decode_request(data, model_name="m"), _json)
target("rest_binary", _binary, _binaries)
target("rest_response", REST.decode_response, _responses)
target(
    "v1",
    _v1,
    lambda: [
        b'{"inputs": {"x": [[1, 2]], "t": ["a"]}}',
        b'{"instances": [{"x": [1, 2], "n": [3], "t": "a"}], "signature_name": "serving_default"}',
    ],
)
target("protobuf", _protobuf, _messages)
target("protobuf_response", lambda data: proto_codec.decode_response(data, limits=LIMITS), _message_responses)
target(
    "generate",
    _generate,
    lambda: [b'{"x": [1, 2], "temperature": 0.5, "id": "1", "parameters": {"a": 1}}', b'{"t": "text", "stream": true}'],
)
target("examples", lambda data: example_codec.decode(data, LIMITS), _examples)
target(
    "event_structured",
    _structured,
    lambda: [orjson.dumps({**_event(), "data": {"instances": [1]}}), orjson.dumps({**_event(), "data_base64": "e30="})],
)
target(
    "event_binary",
    _binary_event,
    lambda: [b"\n".join(b"ce-%s:%s" % (k.encode(), str(v).encode()) for k, v in _event().items()) + b"\n\n{}"],
)
target(
    "deflate",
    lambda data: inflate(DEFLATED + data, 1 << 20),
    lambda: [b"\x03\x00\x00\x00\x00\x01", b"KLJ\x06\x00\x02M\x01'"],
)
