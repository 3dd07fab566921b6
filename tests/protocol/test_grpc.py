"""V2 gRPC messages: the protocol document's rules, every datatype raw and typed, and every way to be wrong."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from protocol_support import ALL_DATATYPES, request_facts, response_facts, tensor_lists
from serinus.errors import InvalidInput, ModelFailed, TooLarge, UpstreamFailed
from serinus.protocol import _open_inference_pb2 as pb
from serinus.protocol import generate
from serinus.protocol.documents.model_config import ModelConfig
from serinus.protocol.proto_codec import (
    config_message,
    decode_repository_parameters,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    index_message,
    metadata_message,
    statistics_message,
)
from serinus.protocol.types import (
    InferRequest,
    InferResponse,
    Limits,
    ModelMetadata,
    RequestedOutput,
    ServerMetadata,
    Tensor,
    TensorSpec,
)

FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""inference_grpc.md, "InferTensorContents"."""


def message(datatype: str, shape: list[int], *, raw: bytes | None = None, name: str = "x", **contents: Any) -> Any:
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name=name, datatype=datatype, shape=shape, contents=contents or None)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def decode(request: Any, limits: Limits | None = None) -> InferRequest:
    return decode_request(request.SerializeToString(), limits=limits or Limits())


def test_every_datatype_is_read_from_its_typed_field():
    for datatype, field in FIELDS.items():
        values: list[Any] = [b"a", b"\xff"] if datatype == "BYTES" else [1, 0]
        (tensor,) = decode(message(datatype, [1, 2], **{field: values})).inputs
        assert (tensor.shape, tensor.data.tolist()) == ((1, 2), [values])


def test_a_whole_request_is_read():
    request = message("FP32", [2], raw=struct.pack("<2f", 1, 2))
    request.model_version = "3"
    request.id = "42"
    request.parameters["flag"].bool_param = True
    request.parameters["number"].int64_param = -1
    request.parameters["big"].uint64_param = 2**64 - 1
    request.parameters["real"].double_param = 0.5
    request.inputs[0].parameters["text"].string_param = "t"
    request.outputs.add(name="y").parameters["classification"].int64_param = 2
    decoded = decode_request(request.SerializeToString(), headers={"a": "b"})
    assert (decoded.model_name, decoded.model_version, decoded.id, decoded.headers) == ("m", "3", "42", {"a": "b"})
    assert decoded.parameters == {"flag": True, "number": -1, "big": 2**64 - 1, "real": 0.5}
    assert decoded.inputs[0].parameters == {"text": "t"}
    assert [(output.name, output.parameters) for output in decoded.outputs or ()] == [("y", {"classification": 2})]
    assert decoded.inputs[0].data.tolist() == [1.0, 2.0]
    assert decoded.binary is True


def test_an_absent_id_is_none_and_stays_absent():
    decoded = decode(message("INT32", [1], int_contents=[1]))
    assert (decoded.id, decoded.outputs, decoded.parameters, decoded.binary) == (None, None, {}, False)
    assert pb.ModelInferResponse.FromString(encode_response(InferResponse("m", []), decoded)).id == ""


@pytest.mark.parametrize("raw", [True, False])
def test_raw_in_gives_raw_out_and_typed_in_typed_out(raw: bool):
    request = message("INT32", [1], raw=b"\1\0\0\0") if raw else message("INT32", [1], int_contents=[1])
    outputs = [Tensor.of("a", np.array([[1, -2]], np.int8)), Tensor.of("b", np.array(["t"], object))]
    response = pb.ModelInferResponse.FromString(encode_response(InferResponse("m", outputs, "1", "i"), decode(request)))
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "i")
    assert [(entry.name, entry.datatype, list(entry.shape)) for entry in response.outputs] == [
        ("a", "INT8", [1, 2]),
        ("b", "BYTES", [1]),
    ]
    if raw:
        assert list(response.raw_output_contents) == [b"\x01\xfe", b"\x01\0\0\0t"]
        assert not any(entry.HasField("contents") for entry in response.outputs)
    else:
        assert not response.raw_output_contents
        assert list(response.outputs[0].contents.int_contents) == [1, -2]
        assert list(response.outputs[1].contents.bytes_contents) == [b"t"]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_travel_raw_whatever_came(datatype: str):
    outputs = [
        Tensor.of("a", np.array([1], np.float32)),
        Tensor.of("h", np.array([0.5], np.float16).astype(np.float16)),
    ]
    outputs[1] = Tensor("h", datatype, (1,), outputs[1].data.astype(np.float16 if datatype == "FP16" else np.float32))
    response = pb.ModelInferResponse.FromString(
        encode_response(InferResponse("m", outputs), decode(message("INT32", [1], int_contents=[1])))
    )
    assert len(response.raw_output_contents) == 2
    assert response_facts(decode_response(response.SerializeToString())) == response_facts(InferResponse("m", outputs))


def _two_raw() -> Any:
    request = message("INT8", [1], raw=b"\1")
    request.raw_input_contents.append(b"\2")
    return request


def _mixed() -> Any:
    return message("INT8", [1], raw=b"\1", int_contents=[1])


def _twice() -> Any:
    request = message("INT8", [1], int_contents=[1])
    request.inputs.add(name="x", datatype="INT8", shape=[1], contents={"int_contents": [1]})
    return request


def _with(**members: Any) -> Any:
    request = message("INT8", [1], int_contents=[1])
    request.MergeFrom(pb.ModelInferRequest(**members))
    return request


def _empty_parameter() -> Any:
    request = message("INT8", [1], int_contents=[1])
    request.parameters["p"].SetInParent()
    return request


def _shared(part: str) -> Any:
    request = message("INT8", [1], int_contents=[1])
    target = request.inputs[0] if part == "input" else request.outputs.add(name="y")
    target.parameters["shared_memory_region"].string_param = "r"
    return request


def _shared_beside_raw() -> Any:
    request = message("INT8", [1], raw=b"\1")
    request.inputs.add(name="s", datatype="INT8", shape=[1])
    request.inputs[1].parameters["shared_memory_region"].string_param = "r"
    return request


WRONG = [
    (_two_raw(), "'raw_input_contents' holds 2 tensors, 'inputs' names 1"),
    (_mixed(), "input 'x': both 'contents' and 'raw_input_contents' are there, one of them was expected"),
    (_twice(), "input 'x' is given twice"),
    (pb.ModelInferRequest(model_name="m"), "'inputs' is empty: at least one input was expected"),
    (pb.ModelInferRequest(), "'model_name' is empty"),
    (message("INT8", [1], name="", int_contents=[1]), "input 0: 'name' is empty"),
    (message("INT9", [1], int_contents=[1]), "input 'x': 'datatype' is 'INT9', it must be one of BOOL"),
    (message("", [1], int_contents=[1]), "input 'x': 'datatype' is '', it must be one of BOOL"),
    (message("INT8", [-1], int_contents=[1]), "input 'x': shape [-1] has a negative dimension"),
    (message("INT8", [1] * 33, int_contents=[1]), "input 'x': 'shape' has 33 dimensions, the limit is 32 (max_rank)"),
    (message("INT8", [2, 3], int_contents=[1] * 5), "input 'x': shape [2, 3] holds 6 values, 'int_contents' has 5"),
    (message("INT8", [1]), "input 'x': shape [1] holds 1 values, 'int_contents' has 0"),
    (message("INT8", [2], int_contents=[1, 128]), "input 'x': int_contents[1] is 128, INT8 holds -128 to 127"),
    (message("INT16", [1], int_contents=[-32769]), "input 'x': int_contents[0] is -32769, INT16 holds -32768 to 32767"),
    (message("UINT8", [1], uint_contents=[300]), "input 'x': uint_contents[0] is 300, UINT8 holds 0 to 255"),
    (message("UINT16", [1], uint_contents=[65536]), "input 'x': uint_contents[0] is 65536, UINT16 holds 0 to 65535"),
    (message("INT32", [1], fp32_contents=[1]), "input 'x': INT32 travels in 'int_contents', 'fp32_contents' came"),
    (
        message("FP32", [1], fp32_contents=[1], fp64_contents=[1]),
        "input 'x': FP32 travels in 'fp32_contents', 'fp64_contents'",
    ),
    (message("FP16", [1], fp32_contents=[1]), "input 'x': FP16 has no typed field; send it in 'raw_input_contents'"),
    (message("BF16", [1], fp32_contents=[1]), "input 'x': BF16 has no typed field; send it in 'raw_input_contents'"),
    (message("FP32", [2], raw=b"\0" * 7), "input 'x': shape [2] of FP32 takes 8 bytes, 7 came"),
    (message("FP32", [2**31], raw=b"\0" * 4), "input 'x': shape [2147483648] of FP32 takes 8589934592 bytes, 4 came"),
    (message("FP32", [2**62, 2**62], fp32_contents=[1]), f"input 'x': shape [{2**62}, {2**62}] holds {2**124} values"),
    (message("BYTES", [2**62], raw=b""), f"input 'x': shape [{2**62}] of BYTES takes at least {2**64} bytes"),
    (_with(outputs=[{"name": ""}]), "requested output 0: 'name' is empty"),
    (_with(outputs=[{"name": "y"}, {"name": "y"}]), "requested output 'y' is given twice"),
    (_empty_parameter(), "request: parameter 'p' has no value; a string, number or boolean was expected"),
    (_shared("input"), "input 'x': shared memory is not offered by this server"),
    (_shared_beside_raw(), "input 's': shared memory is not offered by this server; send the values"),
    (_shared("output"), "requested output 'y': shared memory is not offered by this server"),
]


@pytest.mark.parametrize(("request_", "text"), WRONG, ids=[case[-1][:60] for case in WRONG])
def test_a_wrong_message_is_refused_and_says_why(request_: Any, text: str):
    with pytest.raises(InvalidInput) as caught:
        decode(request_)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x01\xff", b"\x2a\x02\x0a\x05", b"{}"], ids=repr)
def test_bytes_that_are_no_message_are_refused(data: bytes):
    with pytest.raises(InvalidInput, match="the message is no ModelInferRequest"):
        decode_request(data)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(body_bytes=5), "the message has"),
        (Limits(tensor_bytes=7), "input 'x': 8 bytes decoded, the limit is 7"),
        (Limits(tensors=0), "the message holds 1 inputs, the limit is 0"),
        (Limits(name_bytes=0), "input 0: 'name' has 1 bytes, the limit is 0"),
    ],
    ids=str,
)
def test_each_limit_is_honoured(limits: Limits, text: str):
    for request in (message("FP32", [1, 2], raw=b"\0" * 8), message("FP32", [1, 2], fp32_contents=[1, 2])):
        with pytest.raises((TooLarge, InvalidInput)) as caught:
            decode(request, limits)
        assert str(caught.value).startswith(text)
        assert type(caught.value) is (InvalidInput if limits.rank == 1 or limits.name_bytes == 0 else TooLarge)


def test_a_raw_tensor_is_not_copied_element_by_element():
    image = np.arange(224 * 224 * 3, dtype=np.float32).reshape(1, 224, 224, 3)
    decoded = decode_request(encode_request(InferRequest("m", [Tensor.of("x", image)])))
    assert not decoded.inputs[0].data.flags.writeable
    np.testing.assert_array_equal(decoded.inputs[0].data, image, strict=True)


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@given(given_tensors=tensor_lists())
def test_a_request_comes_back_as_it_was(raw: bool, given_tensors: list[Tensor]):
    parameters = {"a": 1, "b": "x", "c": True, "d": 0.5, "e": 2**64 - 1}
    request = InferRequest("m", given_tensors, "2", "i", parameters, [RequestedOutput("y", {"binary_data": False})])
    back = decode_request(encode_request(request, raw=raw))
    request.binary = raw or any(tensor.datatype in ("FP16", "BF16") for tensor in given_tensors)
    assert request_facts(back) == request_facts(request)


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@given(given_tensors=tensor_lists())
def test_a_response_comes_back_as_it_was(raw: bool, given_tensors: list[Tensor]):
    response = InferResponse("m", given_tensors, "2", "i", {"a": 1})
    back = decode_response(encode_response(response, InferRequest("m", [], binary=raw)))
    assert response_facts(back) == response_facts(response)


def test_what_a_model_may_not_return_is_its_own_fault():
    with pytest.raises(ModelFailed, match="output 'y': its values cannot be written as FP32"):
        encode_response(
            InferResponse("m", [Tensor("y", "FP32", (1,), np.array(["a"], object))]), InferRequest("m", [], binary=True)
        )
    with pytest.raises(ModelFailed, match="parameter 'p' is an array"):
        encode_response(InferResponse("m", [], parameters={"p": [1]}), InferRequest("m", []))


@pytest.mark.parametrize(
    "data", [b"\xff", pb.ModelInferResponse(raw_output_contents=[b""]).SerializeToString()], ids=repr
)
def test_a_response_that_is_none_is_the_upstreams_fault(data: bytes):
    with pytest.raises(UpstreamFailed, match="the predictor's answer"):
        decode_response(data)


MODEL = ModelMetadata(
    "m",
    ("1", "2"),
    "xgboost_ubj",
    (TensorSpec("x", "FP32", (-1, 30)), TensorSpec("t", "BYTES", (-1,), optional=True)),
    (TensorSpec("y", "FP32", (-1,)),),
    {"engine": "forest", "checked": True},
)


def test_metadata_is_whole():
    answer = metadata_message(MODEL)
    assert (answer.name, list(answer.versions), answer.platform) == ("m", ["1", "2"], "xgboost_ubj")
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in answer.inputs] == [
        ("x", "FP32", [-1, 30]),
        ("t", "BYTES", [-1]),
    ]
    assert dict(answer.properties) == {"engine": "forest", "checked": "true"}
    server = metadata_message(ServerMetadata("serinus", "1", ("statistics",)))
    assert (server.name, server.version, list(server.extensions)) == ("serinus", "1", ["statistics"])


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 160, 194, 223, 224, 300, 8191, 8192, 20_000, 100_000])
@pytest.mark.parametrize("letter", ["x", "ü"])
def test_metadata_as_mlserver_has_it_decodes_in_either_form(size: int, letter: str):
    text = letter * size
    message = metadata_message(replace(MODEL, parameters={"said": text, "checked": True}), mlservers=True)
    answer = pb.ModelMetadataResponse.FromString(message.SerializeToString())  # field 6 holds strings, which are UTF-8
    told = {name: pb.InferParameter.FromString(value.encode()) for name, value in answer.properties.items()}
    assert {parameter.WhichOneof("parameter_choice") for parameter in told.values()} == {"string_param"}
    assert told["checked"].string_param == "true"
    assert told["said"].string_param.rstrip(" ") == text


def test_the_configuration_leaves_the_batch_out_of_the_shapes_of_a_batched_model():
    config = config_message(ModelConfig(MODEL, 64, 0.001)).config
    assert (config.name, config.max_batch_size) == ("m", 64)
    assert [(entry.name, entry.data_type, list(entry.dims), entry.optional) for entry in config.input] == [
        ("x", 11, [30], False),
        ("t", 13, [1], True),
    ]
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    assert [entry.HasField("reshape") for entry in config.input] == [False, True]
    assert list(config.input[1].reshape.shape) == []
    single = config_message(ModelConfig(MODEL)).config
    assert [list(entry.dims) for entry in single.input] == [[-1, 30], [-1]]
    assert not single.HasField("dynamic_batching")


def test_every_datatype_has_a_place_in_the_configuration():
    for datatype in ALL_DATATYPES:
        metadata = ModelMetadata("m", (), "p", (TensorSpec("x", datatype, (1,)),), ())
        assert config_message(ModelConfig(metadata)).config.input[0].data_type > 0


def test_the_index_and_the_statistics_are_filled():
    index = index_message(
        [{"name": "m", "version": "1", "state": "READY", "reason": ""}, {"name": "n", "state": "UNAVAILABLE"}]
    )
    assert [(model.name, model.version, model.state) for model in index.models] == [
        ("m", "1", "READY"),
        ("n", "", "UNAVAILABLE"),
    ]
    duration = {"count": 2, "ns": 7}
    answer = statistics_message(
        [
            {
                "name": "m",
                "version": "1",
                "last_inference": 5,
                "inference_count": 6,
                "execution_count": 4,
                "inference_stats": {"success": duration, "queue": {"count": 0, "ns": 0}},
                "response_stats": {"0": {"success": duration}},
                "batch_stats": [{"batch_size": 3, "compute_infer": duration}],
                "memory_usage": [{"type": "GPU", "id": 0, "byte_size": 9}],
            }
        ]
    )
    (stat,) = answer.model_stats
    assert (stat.last_inference, stat.inference_count, stat.execution_count) == (5, 6, 4)
    assert (stat.inference_stats.success.count, stat.inference_stats.success.ns) == (2, 7)
    assert stat.inference_stats.HasField("queue")
    assert not stat.inference_stats.HasField("fail")
    assert stat.response_stats["0"].success.ns == 7
    assert (stat.batch_stats[0].batch_size, stat.batch_stats[0].compute_infer.count) == (3, 2)
    assert stat.memory_usage[0].byte_size == 9


def test_a_load_request_names_its_model_in_either_clients_field():
    ours = pb.RepositoryModelLoadRequest(model_name="m")
    ours.parameters["config"].string_param = "{}"
    assert decode_repository_parameters(ours) == ("m", {"config": "{}"})
    assert decode_repository_parameters(pb.RepositoryModelLoadRequest(repository_name="m")) == ("m", {})
    with pytest.raises(InvalidInput, match="'model_name' is empty"):
        decode_repository_parameters(pb.RepositoryModelUnloadRequest())


def test_the_generated_module_is_what_its_generator_writes():
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools")
    text = generate.generate()
    scope: dict[str, Any] = {}
    exec(text, scope)
    assert scope["DESCRIPTOR"].serialized_pb == pb.DESCRIPTOR.serialized_pb
    assert {name for name in scope if name[:1].isupper()} == {name for name in vars(pb) if name[:1].isupper()}


def test_fields_that_are_not_known_do_not_disturb_the_values():
    contents = pb.InferTensorContents(fp32_contents=[1, 2]).SerializeToString() + b"\x78\x05"  # field 15
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[2]).contents.MergeFromString(contents)
    assert decode(request).inputs[0].data.tolist() == [1.0, 2.0]


def test_packed_and_unpacked_fields_are_the_same():
    unpacked = b"\x35" + struct.pack("<f", 1.5) + b"\x35" + struct.pack("<f", -2)
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[2]).contents.MergeFromString(unpacked)
    assert decode(request).inputs[0].data.tolist() == [1.5, -2.0]
