"""Bytes of responses in their several ways of being written, and of the words in messages, at their bounds."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from serinus.errors import InvalidInput
from serinus.protocol import rest_codec, v1_codec
from serinus.protocol.json_codec import describe, load_object, load_value
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import (
    InferRequest,
    InferResponse,
    Limits,
    ModelMetadata,
    RequestedOutput,
    Tensor,
    TensorSpec,
)

PLAIN = InferRequest("m", [])
Y = Tensor.of("y", np.array([[1.5, 2.5]], np.float32))
Y_JSON = {"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.5]}


def written(response: InferResponse, request: InferRequest = PLAIN, codec: RestCodec | None = None) -> Any:
    return json.loads((codec or RestCodec()).encode_response(response, request).to_bytes())


@pytest.mark.parametrize("twice", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("version", ["", "3"])
@pytest.mark.parametrize("request_id", [None, "", 'a"b', "é"])
def test_the_usual_response_is_written_with_and_without_an_id_and_the_same_the_second_time(
    request_id: str | None, version: str, twice: bool
):
    codec = RestCodec()
    response = InferResponse("m", [Y], version, request_id)
    expected: dict[str, Any] = {"model_name": "m", "outputs": [Y_JSON]}
    expected |= {"model_version": version} if version else {}
    expected |= {"id": request_id} if request_id is not None else {}
    if twice:
        written(response, codec=codec)
    assert written(response, codec=codec) == expected
    assert len(codec._frames) == 1


def test_a_frame_is_of_one_name_version_output_datatype_and_shape():
    codec = RestCodec()
    arrays = [np.zeros((1, 2), np.float32), np.zeros((2, 1), np.float32), np.zeros((1, 2), np.int64)]
    for name, version, output, array in itertools.product("ab", ("", "1"), "yz", arrays):
        response = InferResponse(name, [Tensor.of(output, array)], version)
        for _ in range(2):
            told = written(response, codec=codec)
            (tensor,) = told["outputs"]
            assert (told["model_name"], told.get("model_version", "")) == (name, version)
            assert (tensor["name"], tensor["shape"]) == (output, list(array.shape))
    assert len(codec._frames) == 24


def test_clients_cannot_grow_the_frames_without_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rest_codec, "_MAX_FRAMES", 3)
    codec = RestCodec()
    for rows in range(1, 9):
        written(InferResponse("m", [Tensor.of("y", np.zeros(rows, np.float32))]), codec=codec)
        assert len(codec._frames) <= 3


@pytest.mark.parametrize("request_id", [None, "7"])
def test_a_response_with_parameters_or_of_several_outputs_is_written_in_the_general_way(request_id: str | None):
    with_parameters = InferResponse("m", [Y], "1", request_id, parameters={"a": 1})
    told = written(with_parameters)
    assert (told["parameters"], told["outputs"], told.get("id")) == ({"a": 1}, [Y_JSON], request_id)
    several = written(InferResponse("m", [Y, Tensor.of("z", np.array([True]))], "", request_id))
    assert [tensor["name"] for tensor in several["outputs"]] == ["y", "z"]
    assert several["outputs"][1]["data"] == [True]
    own = written(InferResponse("m", [Tensor("y", "FP32", (1, 2), Y.data, {"p": "q"})]))
    assert own["outputs"] == [{**Y_JSON, "parameters": {"p": "q"}}]
    assert written(InferResponse("m", []))["outputs"] == []


@pytest.mark.parametrize(
    ("binary", "outputs", "raw"),
    [
        (False, None, []),
        (True, None, ["y", "z"]),
        (False, [RequestedOutput("y", {"binary_data": True}), RequestedOutput("z")], ["y"]),
        (True, [RequestedOutput("y", {"binary_data": False}), RequestedOutput("z")], ["z"]),
    ],
)
def test_outputs_travel_raw_where_the_request_or_the_output_says_so(binary: bool, outputs: Any, raw: list[str]):
    request = InferRequest("m", [], outputs=outputs, binary=binary)
    encoded = RestCodec().encode_response(
        InferResponse("m", [Y, Tensor.of("z", np.array([3], np.int32))], id="1"), request
    )
    data = encoded.to_bytes()
    assert encoded.length == len(data)
    document = json.loads(data[: encoded.json_length] if encoded.json_length is not None else data)
    assert document["id"] == "1"
    sizes = {tensor["name"]: tensor.get("parameters", {}).get("binary_data_size") for tensor in document["outputs"]}
    assert [name for name, size in sizes.items() if size is not None] == raw
    tail = data[encoded.json_length :] if encoded.json_length is not None else b""
    assert len(tail) == sum(size or 0 for size in sizes.values())


def test_a_clients_request_says_all_that_it_has():
    request = InferRequest(
        "m", [Y, Y], id="7", parameters={"a": 1}, outputs=[RequestedOutput("p"), RequestedOutput("q", {"classification": 2})], binary=True
    )  # fmt: skip
    document = json.loads(RestCodec().encode_request(request, binary=False).to_bytes())
    assert document["id"] == "7"
    assert document["parameters"] == {"a": 1, "binary_data_output": True}
    assert document["outputs"] == [{"name": "p"}, {"name": "q", "parameters": {"classification": 2}}]
    assert document["inputs"] == [Y_JSON, Y_JSON]
    bare = json.loads(RestCodec().encode_request(InferRequest("m", [Y]), binary=False).to_bytes())
    assert bare == {"inputs": [Y_JSON]}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        ("a" * 40, f"the string '{'a' * 40}'"),
        ("a" * 41, f"the string '{'a' * 40}'..."),
        (int("1" * 40), "1" * 40),
        (int("1" * 41), "1" * 40 + "..."),
        (1.5, "1.5"),
        ([], "an array"),
        ({}, "an object"),
    ],
)
def test_a_value_is_named_in_a_message_by_its_kind_and_in_part(value: Any, said: str):
    assert describe(value) == said


@pytest.mark.parametrize("depth", [4, 5])
def test_json_may_be_nested_so_deep_and_no_deeper(depth: int):
    limits = Limits(json_depth=4)
    text = b"[" * depth + b"]" * depth
    if depth == 4:
        assert load_value(text, "it", limits) == [[[[]]]]
    else:
        with pytest.raises(InvalidInput):
            load_value(text, "it", limits)


def test_json_may_be_so_long_and_no_longer_and_an_object_where_one_is_wanted():
    from serinus.errors import TooLarge

    assert load_object(b'{"a":1}', "it", Limits(body_bytes=7)) == {"a": 1}
    with pytest.raises(TooLarge):
        load_object(b'{"a":1}', "it", Limits(body_bytes=6))
    with pytest.raises(InvalidInput, match="it is an array, a JSON object was expected"):
        load_object(b"[]", "it", Limits())
    with pytest.raises(InvalidInput):
        load_object(b"", "it", Limits())


# V1


def answer_in_rows(*outputs: Tensor) -> Any:
    metadata = ModelMetadata("m", (), "p", (TensorSpec("x", "FP32", (-1,)),), ())
    payload = v1_codec.decode(b'{"instances": [1.0]}', Limits())
    v1_codec.to_request(payload, metadata, model_version="", limits=Limits())
    return json.loads(v1_codec.encode(InferResponse("m", list(outputs)), payload))


def of(name: str, *shape: int) -> Tensor:
    return Tensor.of(name, np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_several_outputs_are_written_row_by_row_one_row_included(rows: int):
    told = answer_in_rows(of("a", rows), of("b", rows, 2))
    assert told == {"predictions": [{"a": float(n), "b": [2.0 * n, 2.0 * n + 1]} for n in range(rows)]}


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ((of("a", 1), of("b", 2)), r"\('a' \[1\], 'b' \[2\]\); ask in column format"),
        ((of("a"), of("b")), r"different numbers of rows \('a' \[\], 'b' \[\]\)"),
    ],
    ids=["different", "no rows"],
)
def test_outputs_without_common_rows_cannot_be_written_row_by_row(outputs: tuple[Tensor, ...], said: str):
    with pytest.raises(InvalidInput, match=said):
        answer_in_rows(*outputs)


def test_no_output_at_all_is_no_prediction():
    assert answer_in_rows() == {"predictions": []}
    assert answer_in_rows(of("a")) == {"predictions": 0.0}


def test_classes_of_no_number_come_last_also_after_negative_ones():
    from serinus.protocol.classification import classify

    array = np.array([[np.nan, -1.0, 2.0, -np.inf, np.inf]], np.float32)
    told = classify(Tensor.of("y", array), 4, ()).data.tolist()
    assert told == [[b"inf:4", b"2.0:2", b"-1.0:1", told[0][3]]]
    assert told[0][3] in (b"nan:0", b"-inf:3")
    ties = classify(Tensor.of("y", np.array([3, 5, 5, -(2**63)], np.int64)), 9, ("a", "", "c")).data.tolist()
    assert ties == [b"5:1", b"5:2:c", b"3:0:a", b"-9223372036854775808:3"]


def test_the_default_limits_are_those_that_are_documented():
    limits = Limits()
    assert (limits.tensors, limits.name_bytes, limits.classes) == (1024, 1024, 65_536)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_tensor_is_found_by_its_name(name: str):
    tensors = [Tensor.of(each, np.array([n], np.int32)) for n, each in enumerate("acb")]
    for found in (InferResponse("m", tensors).output(name), InferRequest("m", tensors).input(name)):
        assert found is not None
        assert found.data.tolist() == ["acb".index(name)]
    assert InferRequest("m", tensors).input("d") is None
