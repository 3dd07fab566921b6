"""JSON requests at their bounds: names, parameters, shapes and depth are held to the byte, and no sooner."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from protocol_support import plain_codec
from serinus.errors import InvalidInput, TooLarge
from serinus.protocol.json_codec import decode_parameters, describe, encode_data, load_object, load_value
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferRequest, Limits

CODECS = pytest.mark.parametrize("make", [RestCodec, plain_codec], ids=["kernel", "ordinary"])


def decode(make: Any, document: Any, **limits: int) -> InferRequest:
    body = document if isinstance(document, bytes) else json.dumps(document, ensure_ascii=False).encode()
    return make(Limits(**limits)).decode_request(body, model_name="m")


def tensor(name: str = "x", **fields: Any) -> dict[str, Any]:
    return {"name": name, "shape": [1], "datatype": "INT32", "data": [1], **fields}


NAMES = [("a" * 12, 12), ("é" * 6, 12), ("\U0001f426" * 3, 12), ("a" * 5, 5), ("a", 1)]


@CODECS
@pytest.mark.parametrize(("name", "size"), NAMES, ids=["ascii", "two", "four", "short", "one"])
def test_a_tensors_name_is_bounded_in_bytes(make: Any, name: str, size: int):
    assert decode(make, {"inputs": [tensor(name)]}, name_bytes=size).inputs[0].name == name
    with pytest.raises(InvalidInput, match=f"'name' has {size} bytes, the limit is {size - 1}"):
        decode(make, {"inputs": [tensor(name)]}, name_bytes=size - 1)


@CODECS
@pytest.mark.parametrize(("name", "size"), NAMES, ids=["ascii", "two", "four", "short", "one"])
def test_a_wanted_outputs_and_a_parameters_names_are_bounded_in_bytes(make: Any, name: str, size: int):
    wanted = {"inputs": [tensor()], "outputs": [{"name": name}]}
    named = {"inputs": [tensor()], "parameters": {name: 1}}
    assert [each.name for each in decode(make, wanted, name_bytes=size).outputs or ()] == [name]
    assert decode(make, named, name_bytes=size).parameters == {name: 1}
    for document in (wanted, named):
        with pytest.raises(InvalidInput, match=f"{size} bytes, the limit is {size - 1}" if size > 1 else "limit is 0"):
            decode(make, document, name_bytes=size - 1)


@CODECS
def test_as_many_tensors_outputs_and_parameters_as_the_limit_are_taken_and_one_more_is_not(make: Any):
    documents: list[dict[str, Any]] = [
        {"inputs": [tensor(f"x{n}") for n in range(3)]},
        {"inputs": [tensor()], "outputs": [{"name": f"y{n}"} for n in range(3)]},
        {"inputs": [tensor()], "parameters": {f"p{n}": n for n in range(3)}},
        {"inputs": [tensor(parameters={f"p{n}": n for n in range(3)})]},
    ]
    for document in documents:
        decode(make, document, tensors=3)
        with pytest.raises(TooLarge, match=r"3 .*the limit is 2 \(max_tensors\)"):
            decode(make, document, tensors=2)


@CODECS
def test_as_many_dimensions_as_the_limit_are_taken_and_one_more_is_not(make: Any):
    for data in ([1], [[[1]]]):
        document = {"inputs": [tensor(shape=[1, 1, 1], data=data)]}
        assert decode(make, document, rank=3).inputs[0].shape == (1, 1, 1)
        with pytest.raises(InvalidInput, match="'shape' has 3 dimensions, the limit is 2"):
            decode(make, document, rank=2)


@CODECS
def test_a_tensor_as_large_as_the_limit_is_taken_and_a_larger_one_is_not(make: Any):
    document = {"inputs": [tensor(shape=[3], data=[1, 2, 3])]}
    assert decode(make, document, tensor_bytes=12).inputs[0].data.tolist() == [1, 2, 3]
    with pytest.raises(TooLarge, match="12 bytes decoded, the limit is 11"):
        decode(make, document, tensor_bytes=11)


@CODECS
def test_a_body_as_long_as_the_limit_is_taken_and_a_longer_one_is_not(make: Any):
    body = json.dumps({"inputs": [tensor()]}).encode()
    assert decode(make, body, body_bytes=len(body)).model_name == "m"
    with pytest.raises(TooLarge, match=f"has {len(body)} bytes, the limit is {len(body) - 1}"):
        decode(make, body, body_bytes=len(body) - 1)


@CODECS
def test_the_other_dimensions_of_an_empty_tensor_are_held_to_the_limit_as_values_of_eight_bytes(make: Any):
    document = {"inputs": [tensor(shape=[0, 4], data=[])]}
    assert decode(make, document, tensor_bytes=32).inputs[0].data.shape == (0, 4)
    with pytest.raises(InvalidInput, match="its other dimensions pass the limit of 31 bytes"):
        decode(make, document, tensor_bytes=31)


@pytest.mark.parametrize(
    "text",
    [
        "[[[1]]]",
        '{"a": {"b": [1]}}',
        '[[1], [[2]], "]]]]"]',
        '["[[[[", [[3]]]',
        '[["\\"[[["], [[1]]]',
        '[["\\\\"], [[1]]]',
    ],
    ids=str,
)
@pytest.mark.parametrize("padding", [0, 300], ids=["few brackets", "many brackets"])
def test_depth_is_that_of_the_deepest_value_whatever_texts_hold(text: str, padding: int):
    body = f"{text[:-1]}{', []' * padding}]" if padding and text[0] == "[" else text
    assert load_value(body.encode(), "it", Limits(json_depth=3)) == json.loads(body)
    with pytest.raises(InvalidInput, match=r"it is nested deeper than 2 levels \(max_json_depth\)"):
        load_value(body.encode(), "it", Limits(json_depth=2))


@pytest.mark.parametrize(
    ("document", "kind"), [(b"[]", "an array"), (b"1", "1"), (b"null", "null"), (b'"a"', "the string 'a'")]
)
def test_what_is_no_object_is_refused_by_its_kind(document: bytes, kind: str):
    with pytest.raises(InvalidInput) as caught:
        load_object(document, "the body", Limits())
    assert str(caught.value) == f"the body is {kind}, a JSON object was expected"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a" * 40, f"the string '{'a' * 40}'"),
        ("a" * 41, f"the string '{'a' * 40}'..."),
        (int("1" * 40), "1" * 40),
        (int("1" * 41), "1" * 40 + "..."),
        (True, "true"),
        (False, "false"),
        (1.5, "1.5"),
        ({}, "an object"),
    ],
)
def test_a_value_is_described_by_its_kind_and_in_part(value: Any, said: str):
    assert describe(value) == said


def test_a_parameters_name_is_shown_in_part_where_its_value_is_refused():
    with pytest.raises(InvalidInput) as caught:
        decode_parameters({"n" * 60: [1]}, "request", Limits())
    assert str(caught.value) == (
        f"request: parameter '{'n' * 40}'... is an array, a string, number or boolean was expected"
    )


@pytest.mark.parametrize(
    ("array", "written"),
    [
        (np.arange(6, dtype=np.int32).reshape(2, 3), b"[0,1,2,3,4,5]"),
        (np.arange(6, dtype=np.int32).reshape(2, 3).T, b"[0,3,1,4,2,5]"),
        (np.arange(6, dtype=np.int32)[::2], b"[0,2,4]"),
        (np.array(3, np.int32), b"[3]"),
        (np.zeros((0, 2), np.int32), b"[]"),
        (np.array([1.0, 2.0]), b"[1,2]"),
    ],
    ids=["rows", "transposed", "strided", "scalar", "empty", "cast"],
)
def test_an_output_is_written_flat_in_the_order_of_its_rows(array: np.ndarray, written: bytes):
    assert encode_data("y", array, "INT32") == written
