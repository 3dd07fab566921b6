"""Every datatype, form and fault of a tensor, in JSON, in binary, in gRPC's typed fields and raw.

Sources: inference_rest.md and inference_grpc.md, "Tensor Data" and "Tensor Data Types"; extension_binary_data.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest

from conformance_support import (
    CONTENTS,
    Answer,
    Server,
    infer_message,
    json_tensor,
    raw_bytes,
    server_here,
    server_process,
    values_of,
)
from representative import every
from serinus.protocol.raw import decode
from serinus.protocol.types import Limits

# Values that each datatype holds, its limits among them.
VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, True, True],
    "UINT8": [0, 1, 254, 255],
    "UINT16": [0, 1, 65534, 65535],
    "UINT32": [0, 1, 2**32 - 2, 2**32 - 1],
    "UINT64": [0, 1, 2**53 + 1, 2**64 - 1],
    "INT8": [-128, -1, 0, 127],
    "INT16": [-32768, -1, 0, 32767],
    "INT32": [-(2**31), -1, 0, 2**31 - 1],
    "INT64": [-(2**63), -(2**53) - 1, 0, 2**63 - 1],
    "FP16": [-65504.0, 0.5, -0.25, 65504.0],
    "FP32": [-3.4028234663852886e38, 0.5, 1.401298464324817e-45, 3.4028234663852886e38],
    "FP64": [-1.7976931348623157e308, 0.1, 5e-324, 1.7976931348623157e308],
    "BF16": [-2.0, 0.5, 1.0, 128.0],
    "BYTES": ["", "a", "ü 🐦\0\n", "x" * 300],
}
SHAPES: dict[str, list[int]] = {
    "flat": [4],
    "matrix": [2, 2],
    "column": [4, 1],
    "cube": [1, 2, 2],
    "empty": [0],
    "no-columns": [3, 0],
}
WAYS = ("json", "json-nested", "binary", "binary-in", "binary-out", "typed", "raw")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """In this process, or a container of the image that SERVE_IMAGE names (tests/images)."""
    contained = "SERVE_IMAGE" in os.environ
    with server_process(tmp_path_factory.mktemp("served")) if contained else server_here() as running:
        yield running


def nested(data: list[Any], shape: list[int]) -> Any:
    if len(shape) < 2:
        return data
    step = len(data) // shape[0] if shape[0] else 0
    return [nested(data[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def binary(
    server: Server, model: str, tensors: list[dict[str, Any]], sizes: list[int] | None = None, **more: Any
) -> Answer:
    """Send tensors by the binary extension."""
    inputs, tail = [], b""
    for index, tensor in enumerate(tensors):
        data = raw_bytes(tensor["datatype"], tensor["data"])
        size = len(data) if sizes is None else sizes[index]
        head = {key: value for key, value in tensor.items() if key != "data"}
        inputs.append({**head, "parameters": {"binary_data_size": size}})
        tail += data
    document = orjson.dumps({"inputs": inputs, **more})
    fields = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(document))}
    return server.ask("POST", f"/v2/models/{model}/infer", document + tail, fields)


def read(answer: Answer) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Cut a binary answer."""
    length = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    outputs = orjson.loads(answer.body[:length])["outputs"]
    rest, pieces = answer.body[length:], []
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        assert "data" not in output
        pieces.append(rest[:size])
        rest = rest[size:]
    assert rest == b""
    return outputs, pieces


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", every(3, SHAPES.values()), ids=SHAPES)
@pytest.mark.parametrize("datatype", VALUES)
def test_a_tensor_goes_round(server: Server, datatype: str, shape: list[int], way: str):
    values = VALUES[datatype] if 0 not in shape else []
    tensor = json_tensor("t", datatype, shape, values)
    expected = raw_bytes(datatype, values)
    model = "asked" if datatype == "BF16" else "identity"  # in an array of a model that declares nothing it is FP32
    if way in ("typed", "raw"):
        if way == "typed" and datatype not in CONTENTS:
            reply = server.rpc("ModelInfer", infer_message(model, [{**tensor, "data": []}]))
            if values:
                server.grpc_refused("INVALID_ARGUMENT", reply, "'t'", datatype, "raw_input_contents")
            return
        reply = server.grpc_infer(model, tensor, raw=way == "raw")
        assert reply.code == "OK", reply
        output = reply.message.outputs[0]
        assert (output.name, output.datatype, list(output.shape)) == ("t", datatype, shape)
        assert len(reply.message.raw_output_contents) == (1 if way == "raw" else 0)
        assert way == "typed" or not output.HasField("contents")
        assert raw_bytes(datatype, values_of(reply.message)) == expected
        return
    wants_raw = way in ("binary", "binary-out")
    more: dict[str, Any] = {"parameters": {"binary_data_output": True}} if wants_raw else {}
    if way in ("binary", "binary-in"):
        answer = binary(server, model, [tensor], **more)
    else:
        if way == "json-nested":
            tensor["data"] = nested(values, shape)
        answer = server.infer(model, tensor, **more)
    assert answer.status == 200, answer.body
    assert int(answer.headers["content-length"]) == len(answer.body)
    if wants_raw:
        outputs, pieces = read(answer)
        assert pieces == [expected]
    else:
        assert answer.headers["content-type"] == "application/json"
        assert "inference-header-content-length" not in answer.headers
        outputs = answer.json["outputs"]
        assert raw_bytes(datatype, outputs[0]["data"]) == expected
    assert (outputs[0]["name"], outputs[0]["datatype"], outputs[0]["shape"]) == ("t", datatype, shape)


@pytest.mark.parametrize("datatype", VALUES)
def test_declared_datatypes_go_round_by_name_on_both_transports(server: Server, datatype: str):
    """And a tensor of another datatype is refused by name."""
    good = json_tensor(datatype, datatype, [2, 2], VALUES[datatype])
    answer = server.infer("typed", good)
    assert answer.status == 200, answer.body
    assert raw_bytes(datatype, answer.json["outputs"][0]["data"]) == raw_bytes(datatype, VALUES[datatype])
    reply = server.grpc_infer("typed", good, raw=True)
    assert reply.message.outputs[0].name == f"OUT_{datatype}"
    other = "FP32" if datatype != "FP32" else "INT8"
    wrong = json_tensor(datatype, other, [1, 1], [1])
    server.refused(400, "typed", wrong, says=(f"'{datatype}'", other, datatype))
    server.grpc_refused("INVALID_ARGUMENT", server.grpc_infer("typed", wrong), f"'{datatype}'", other, datatype)


# Values that a datatype does not hold: JSON refuses each, naming the tensor and the place.
BEYOND: dict[str, list[Any]] = {
    "BOOL": [2, -1, 0.5, "true", None, [], {}],
    "UINT8": [-1, 256, 1.5, "1", None, True, 1e400, {}],
    "UINT16": [-1, 65536, 0.1, "1", None, True],
    "UINT32": [-1, 2**32, 0.1, "1", None, True],
    "UINT64": [-1, 0.1, "1", None, True, 1e20],
    "INT8": [-129, 128, 1.5, "1", None, True],
    "INT16": [-32769, 32768, 1.5, "1", None, True],
    "INT32": [-(2**31) - 1, 2**31, 1.5, "1", None, True],
    "INT64": [2**63, -1e19, 1.5, "1", None, True],
    "FP16": [65520.0, -1e9, "1", True],
    "FP32": [3.5e38, -1e300, "1", True],
    "FP64": ["1", True, [1]],
    "BF16": [3.5e38, "1", True],
    "BYTES": [1, 1.5, True, None, [], {}],
}
PAIRS = [(datatype, value) for datatype, values in BEYOND.items() for value in values if value != 1e400]


@pytest.mark.parametrize(("datatype", "value"), PAIRS, ids=[f"{datatype}-{value}" for datatype, value in PAIRS])
def test_a_value_beyond_its_datatype_is_refused_by_place(server: Server, datatype: str, value: Any):
    good = VALUES[datatype][0]
    for name, model in (("t", "identity"), (datatype, "typed")):
        tensor = json_tensor(name, datatype, [1, 2], [good, value])
        server.refused(400, model, tensor, says=(f"'{name}'",))
        server.refused(400, model, {**tensor, "data": [[good, value]]}, says=(f"'{name}'",))


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL"])
@pytest.mark.parametrize("shape", [[2**62, 0, 2**62], [0, 2**31], [2**31, 0], [2**63 - 1, 0]], ids=str)
@pytest.mark.parametrize("way", ["json", "binary", "typed", "raw"])
def test_a_tensor_without_values_claims_no_huge_dimensions(server: Server, datatype: str, shape: list[int], way: str):
    tensor = json_tensor("t", datatype, shape, [])
    if way in ("typed", "raw"):
        reply = server.grpc_infer("identity", tensor, raw=way == "raw")
        server.grpc_refused("INVALID_ARGUMENT", reply, "'t'", str(shape))
        return
    if way == "json":
        answer = server.infer("identity", tensor)
    else:
        tensor = {**tensor, "parameters": {"binary_data_size": 0}}
        del tensor["data"]
        head = orjson.dumps({"inputs": [tensor]})
        answer = server.ask(
            "POST", "/v2/models/identity/infer", head, {"Inference-Header-Content-Length": str(len(head))}
        )
    assert answer.status == 400
    assert "'t'" in answer.error
    assert str(shape) in answer.error
    assert server.alive()


@pytest.mark.parametrize("datatype", every(3, VALUES))
@pytest.mark.parametrize("fault", ["one-less", "one-more", "none", "other-shape"])
@pytest.mark.parametrize("way", ["json", "binary", "typed", "raw"])
def test_a_count_that_does_not_fit_the_shape_is_refused(server: Server, datatype: str, fault: str, way: str):
    values, shape = VALUES[datatype], [2, 2]
    if fault == "one-less":
        values = values[:-1]
    elif fault == "one-more":
        values = [*values, values[0]]
    elif fault == "none":
        values = []
    else:
        shape = [3, 2]
    tensor = json_tensor("t", datatype, shape, values)
    if way == "json":
        answer = server.infer("identity", tensor)
    elif way == "binary":
        answer = binary(server, "identity", [tensor])
    else:
        if way == "typed" and datatype not in CONTENTS:
            pytest.skip("has no typed field")
        reply = server.grpc_infer("identity", tensor, raw=way == "raw")
        server.grpc_refused("INVALID_ARGUMENT", reply, "'t'")
        return
    assert answer.status == 400, answer.body
    assert "'t'" in answer.error
    assert str(shape) in answer.error
    assert server.alive()


# Raw BYTES whose lengths lie.
LIES = {
    "cut-length": b"\x01\0",
    "cut-element": b"\x05\0\0\0abc",
    "huge-length": b"\xff\xff\xff\xffabc",
    "left-over": b"\x01\0\0\0ab",
    "second-element": b"\x01\0\0\0a\x01\0\0\0b",
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
@pytest.mark.parametrize("way", ["binary", "raw"])
def test_bytes_whose_lengths_lie_are_refused(server: Server, lie: bytes, way: str):
    tensor = {"name": "t", "datatype": "BYTES", "shape": [1]}
    if way == "raw":
        message = infer_message("identity", [{**tensor, "data": []}])
        message.raw_input_contents.append(lie)
        server.grpc_refused("INVALID_ARGUMENT", server.rpc("ModelInfer", message), "'t'")
        return
    document = orjson.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(lie)}}]})
    fields = {"Inference-Header-Content-Length": str(len(document))}
    answer = server.ask("POST", "/v2/models/identity/infer", document + lie, fields)
    assert answer.status == 400
    assert "'t'" in answer.error


@pytest.mark.parametrize("codes", [b"\x02\x00", b"\x01\xff"])
def test_a_bool_is_one_or_zero(server: Server, codes: bytes):
    message = infer_message("identity", [json_tensor("t", "BOOL", [2], [])])
    message.raw_input_contents.append(codes)
    server.grpc_refused("INVALID_ARGUMENT", server.rpc("ModelInfer", message), "'t'")


def test_nan_and_infinity_travel_raw_and_are_null_in_json(server: Server):
    """JSON has no such numbers (RFC 8259, 6)."""
    for datatype in ("FP16", "FP32", "FP64", "BF16"):
        tensor = json_tensor("t", datatype, [3], [float("nan"), float("inf"), -float("inf")])
        reply = server.grpc_infer("identity", tensor, raw=True)
        assert list(map(str, values_of(reply.message))) == ["nan", "inf", "-inf"]
        answer = binary(server, "identity", [tensor])
        assert answer.json["outputs"][0]["data"] == [None] * 3


@pytest.mark.parametrize("datatype", VALUES)
def test_null_in_json_is_nan_where_there_is_one_and_refused_in_words_elsewhere(server: Server, datatype: str):
    """KServe's and MLServer's clients write NaN so, and answers here do."""
    good = {"BOOL": True, "BYTES": "a"}.get(datatype, 1)
    for shape, data in (([2, 2], [good, None, None, good]), ([2, 2], [[good, None], [None, good]])):
        tensor = {"name": datatype, "shape": shape, "datatype": datatype, "data": data}
        wanted = [{"name": f"OUT_{datatype}", "parameters": {"binary_data": datatype.startswith(("FP", "BF"))}}]
        answer = server.infer("typed", tensor, outputs=wanted)
        if datatype.startswith(("FP", "BF")):
            (head,), (raw,) = read(answer)
            found = decode(datatype, datatype, tuple(head["shape"]), raw, Limits())
            assert np.isnan(found).tolist() == [[False, True], [True, False]]
            assert found[0, 0] == found[1, 1] == 1
        else:
            assert answer.status == 400
            assert "null" in answer.error
            assert "floating-point tensors only" in answer.error


def test_bytes_that_are_no_text_travel_raw_and_are_refused_in_json_in_words(server: Server):
    reply = server.grpc_infer("texts", json_tensor("text", "BYTES", [1, 1], ["a"]), outputs=[{"name": "raw"}])
    assert values_of(reply.message) == [b"\xff\xfe"]
    tensor = json_tensor("text", "BYTES", [1, 1], ["a"])
    wanted = [{"name": "raw", "parameters": {"binary_data": True}}]
    assert read(server.infer("texts", tensor, outputs=wanted))[1] == [b"\x02\0\0\0\xff\xfe"]
    answer = server.infer("texts", tensor, outputs=[{"name": "raw"}])
    assert answer.status == 400
    assert "binary_data" in answer.error


# extension_binary_data.md: what the header and the sizes may be.
HEADERS = {
    "negative": "-1",
    "word": "ten",
    "float": "1.5",
    "empty": "",
    "beyond-the-body": "100000",
    "huge": "9" * 40,
    "hex": "0x10",
    "plus": "+10",
    "one-short": None,
}


@pytest.mark.parametrize("value", HEADERS.values(), ids=HEADERS)
def test_a_wrong_json_length_is_refused(server: Server, value: str | None):
    document = orjson.dumps(
        {"inputs": [{"name": "t", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 1}}]}
    )
    fields = {"Inference-Header-Content-Length": str(len(document) - 1) if value is None else value}
    answer = server.ask("POST", "/v2/models/identity/infer", document + b"\1", fields)
    assert answer.status == 400, answer.body
    assert answer.error
    assert server.alive()


@pytest.mark.parametrize("size", [-1, 0, 3, 5, 2**40, 2**64 - 1, 1.5, "4", True, None, [], {}], ids=str)
def test_a_wrong_binary_size_is_refused(server: Server, size: Any):
    document = orjson.dumps(
        {"inputs": [{"name": "t", "shape": [1], "datatype": "INT32", "parameters": {"binary_data_size": size}}]}
    )
    fields = {"Inference-Header-Content-Length": str(len(document))}
    answer = server.ask("POST", "/v2/models/identity/infer", document + b"\1\0\0\0", fields)
    assert answer.status == 400, answer.body
    assert "'t'" in answer.error or "binary_data_size" in answer.error
    assert server.alive()


def test_bytes_that_belong_to_no_tensor_are_refused(server: Server):
    tensor = json_tensor("t", "INT8", [2], [1, 2])
    assert binary(server, "identity", [tensor], [1]).status == 400
    document = orjson.dumps({"inputs": [tensor]})
    answer = server.ask(
        "POST", "/v2/models/identity/infer", document + b"xx", {"Inference-Header-Content-Length": str(len(document))}
    )
    assert answer.status == 400


def test_data_and_binary_size_together_are_refused(server: Server):
    document = orjson.dumps({"inputs": [json_tensor("t", "INT8", [1], [1], binary_data_size=1)]})
    fields = {"Inference-Header-Content-Length": str(len(document))}
    assert server.ask("POST", "/v2/models/identity/infer", document + b"\1", fields).status == 400


def test_a_binary_size_without_the_header_is_refused(server: Server):
    """ "the Inference-Header-Content-Length header must be provided"."""
    tensor = {"name": "t", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 1}}
    assert server.infer("identity", tensor).status == 400


def test_binary_and_json_inputs_mix_and_keep_their_order(server: Server):
    inputs: list[dict[str, Any]] = [
        {"name": "a", "shape": [2], "datatype": "INT16", "parameters": {"binary_data_size": 4}},
        json_tensor("b", "BYTES", [1], ["ü"]),
        {"name": "c", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}},
    ]
    document = orjson.dumps({"id": "m", "inputs": inputs})
    fields = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(document))}
    answer = server.ask("POST", "/v2/models/asked/infer", document + b"\1\0\2\0" + b"\1\0\0\0z", fields)
    assert [(o["name"], o["data"]) for o in answer.json["outputs"]] == [("a", [1, 2]), ("b", ["ü"]), ("c", ["z"])]


@pytest.mark.parametrize("default", [True, False, None])
@pytest.mark.parametrize("own", [True, False, None])
def test_an_outputs_own_binary_data_wins(server: Server, default: bool | None, own: bool | None):
    """ "If "binary_data" is specified on an output it overrides this setting"."""
    inputs = [json_tensor(f"INPUT{i}", "INT32", [1, 4], [1, 2, 3, 4]) for i in (0, 1)]
    outputs: list[dict[str, Any]] = [{"name": "OUTPUT0"}, {"name": "OUTPUT1"}]
    if own is not None:
        outputs[1]["parameters"] = {"binary_data": own}
    more = {} if default is None else {"parameters": {"binary_data_output": default}}
    answer = server.infer("simple", *inputs, outputs=outputs, **more)
    first, second = bool(default), bool(default) if own is None else own
    if not first and not second:
        assert [o["data"] for o in answer.json["outputs"]] == [[2, 4, 6, 8], [0, 0, 0, 0]]
        return
    length = int(answer.headers["inference-header-content-length"])
    said = orjson.loads(answer.body[:length])["outputs"]
    assert [("parameters" in o, "data" in o) for o in said] == [(first, not first), (second, not second)]
    assert len(answer.body) - length == 16 * (first + second)


@pytest.mark.parametrize("flag", [1, 0, "true", None, 1.0])
@pytest.mark.parametrize("where", ["request", "output"])
def test_a_binary_flag_is_a_boolean(server: Server, flag: Any, where: str):
    more: dict[str, Any] = (
        {"parameters": {"binary_data_output": flag}}
        if where == "request"
        else {"outputs": [{"name": "classes", "parameters": {"binary_data": flag}}]}
    )
    assert server.infer("labels", json_tensor("scores", "FP32", [1, 4], [1, 2, 3, 4]), **more).status == 400


def test_a_raw_binary_request(server: Server):
    """ "Raw Binary Request": no JSON at all, and every output raw."""
    fields = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
    data = raw_bytes("FP32", [1, 2, 3, 4])
    outputs, pieces = read(server.ask("POST", "/v2/models/labels/infer", data, fields))
    assert (outputs[0]["shape"], pieces) == ([1, 4], [data])
    for wrong in (data[:-1], b""):
        answer = server.ask("POST", "/v2/models/labels/infer", wrong, fields)
        assert answer.status == (400 if wrong else 200), answer.body
    for model in ("simple", "identity", "typed"):
        answer = server.ask("POST", f"/v2/models/{model}/infer", data, fields)
        assert answer.status == 400
        assert "input" in answer.error


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("UINT8", 256), ("UINT16", 65536), ("INT8", 128), ("INT8", -129), ("INT16", 32768), ("INT16", -32769)],
)
def test_typed_values_beyond_the_datatype_are_refused(server: Server, datatype: str, value: int):
    reply = server.grpc_infer("identity", json_tensor("t", datatype, [1], [value]))
    server.grpc_refused("INVALID_ARGUMENT", reply, "'t'", str(value), datatype)


@pytest.mark.parametrize("datatype", CONTENTS)
def test_the_wrong_typed_field_is_refused(server: Server, datatype: str):
    message = infer_message("identity", [json_tensor("t", datatype, [1], [])])
    if datatype == "BYTES":
        message.inputs[0].contents.fp32_contents.append(1.0)
    else:
        message.inputs[0].contents.bytes_contents.append(b"1")
    server.grpc_refused("INVALID_ARGUMENT", server.rpc("ModelInfer", message), "'t'", CONTENTS[datatype])
