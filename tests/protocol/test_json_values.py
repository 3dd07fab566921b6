"""Arrays and scalars of every NumPy type as JSON, and the three ways to write what JSON has no number for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from serinus.errors import InvalidInput, ModelFailed
from serinus.protocol.documents.json_values import dump_array, dump_document
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferRequest, InferResponse, Tensor
from serinus.protocol.v1_codec import decode, encode

INTEGERS = "bBhHiIlLqQ"
"""NumPy's codes: two types of 8 bytes on Linux, of which ONNX Runtime answers the one that orjson does not know as a scalar."""
FLOATS = "efdg"


@pytest.mark.parametrize("code", INTEGERS)
def test_every_integer_is_written_as_a_scalar_and_in_arrays_of_any_shape(code: str):
    scalar = np.dtype(code).type(7)
    document = {
        "scalar": scalar,
        "none": np.array(7, code),
        "one": np.array([7, 8], code),
        "two": np.array([[7, 8]], code).T,
        "big endian": np.array([7], np.dtype(code).newbyteorder(">")),
        "object": np.array([scalar, None], object),
        "key": {scalar: 1},
    }
    assert json.loads(dump_document(document)) == {
        "scalar": 7,
        "none": 7,
        "one": [7, 8],
        "two": [[7], [8]],
        "big endian": [7],
        "object": [7, None],
        "key": {"7": 1},
    }


@pytest.mark.parametrize("code", FLOATS)
def test_every_float_is_written_as_a_scalar_and_in_arrays(code: str):
    scalar = np.dtype(code).type(0.5)
    document = {"scalar": scalar, "none": np.array(0.5, code), "many": np.array([0.5, np.nan, 2], code)[::2]}
    assert json.loads(dump_document(document)) == {"scalar": 0.5, "none": 0.5, "many": [0.5, 2.0]}


OTHERS: list[tuple[str, Any, Any]] = [
    ("bool", np.bool_(True), True),
    ("bools", np.array([[True], [False]]), [[True], [False]]),
    ("str", np.str_("é"), "é"),
    ("strs", np.array([["a"], ["bc"]]), [["a"], ["bc"]]),
    ("str of no dimension", np.array("a"), "a"),
    ("bytes", np.bytes_(b"a"), "a"),
    ("bytes of no dimension", np.array(b"a"), "a"),
    ("bytes that are no text", np.array([b"\xff"]), [{"b64": "/w=="}]),
    ("object", np.array([b"a", "b", 1, None, [2.5]], object), ["a", "b", 1, None, [2.5]]),
    ("object of no dimension", np.array({"a": 1}, object), {"a": 1}),
    ("matrix", np.array([[1, 2]]).view(np.matrix), [[1, 2]]),
    ("empty", np.zeros((0, 3)), []),
    ("rows of nothing", np.zeros((2, 0), np.float32), [[], []]),
    ("date", np.datetime64("2020-01-02T03:04:05"), "2020-01-02T03:04:05"),
    ("dates", np.array(["2020-01-02"], "M8[s]"), ["2020-01-02T00:00:00"]),
]


@pytest.mark.parametrize(("value", "expected"), [case[1:] for case in OTHERS], ids=[case[0] for case in OTHERS])
def test_what_else_numpy_has_is_written(value: Any, expected: Any):
    assert json.loads(dump_document({"predictions": value})) == {"predictions": expected}


def test_floats_are_as_short_as_their_type_allows_wherever_they_are():
    values = {"a": np.float32(0.1), "b": np.array([0.1], np.float32), "c": np.array(0.1, np.float32)}
    assert dump_document(values) == b'{"a":0.1,"b":[0.1],"c":0.1}'
    assert dump_document({"a": np.array([0.1, np.inf], np.float32)}, "tokens") == b'{"a":[0.1,Infinity]}'


NO_JSON: list[tuple[str, Any, str]] = [
    ("complex", np.complex64(1j), "complex64"),
    ("complexes", np.array([1j]), "complex128"),
    ("duration", np.timedelta64(5, "s"), "timedelta64"),
    ("durations", np.array([5], "m8[s]"), "timedelta64"),
    ("records", np.zeros(2, [("a", "i4")]), "'a'"),
    ("a set", {1, 2}, "set"),
]


@pytest.mark.parametrize(("value", "said"), [case[1:] for case in NO_JSON], ids=[case[0] for case in NO_JSON])
def test_what_json_has_no_place_for_is_refused_in_words(value: Any, said: str):
    with pytest.raises(ModelFailed, match=r"cannot be written as JSON: it holds .* of type") as caught:
        dump_document({"predictions": [value]})
    assert said in str(caught.value)


ODD = np.array([[1.5, np.nan], [np.inf, -np.inf]], np.float32)
AS_TOKENS = b"[[1.5,NaN],[Infinity,-Infinity]]"


def test_tokens_stand_where_null_would():
    assert dump_array("output 'y'", ODD, "null") == b"[[1.5,null],[null,null]]"
    assert dump_array("output 'y'", ODD, "tokens") == AS_TOKENS
    assert dump_document({"null": "null", "y": ODD}, "tokens") == b'{"null":"null","y":%b}' % AS_TOKENS
    for scalar, token in (
        (np.float16(np.inf), b"Infinity"),
        (float("-inf"), b"-Infinity"),
        (np.float64(np.nan), b"NaN"),
    ):
        document = {3: [(scalar, None)], "o": np.array([scalar], object)}
        assert dump_document(document, "tokens") == b'{"3":[[%b,null]],"o":[%b]}' % (token, token)
    assert dump_array("output 'y'", np.array([1, 2], np.int64), "tokens") == b"[1,2]"


def test_an_infinity_is_refused_where_it_would_be_lost_and_nan_is_not():
    missing = ODD[:1]
    assert dump_array("output 'y'", missing, "refuse") == b"[[1.5,null]]"
    assert dump_document({"y": missing, "z": float("nan")}, "refuse") == b'{"y":[[1.5,null]],"z":null}'
    with pytest.raises(InvalidInput, match=r"output 'y' holds an infinity, which JSON does not have.*binary_data"):
        dump_array("output 'y'", ODD, "refuse")
    for value in (ODD, np.float32(np.inf), float("-inf"), np.array([np.inf], object), [{"a": np.array(np.inf)}]):
        with pytest.raises(InvalidInput, match="the answer holds an infinity"):
            dump_document({"predictions": value}, "refuse")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_v2_and_v1_answers_follow_the_setting(dtype: Any):
    response = InferResponse("m", [Tensor.of("y", ODD.astype(dtype))])
    two = InferResponse("m", [Tensor.of("y", ODD.astype(dtype)), Tensor.of("n", np.array([1, 2]))])
    for answer in (response, two):
        body = RestCodec(not_finite="tokens").encode_response(answer, InferRequest("m", [])).to_bytes()
        assert b'"data":[1.5,NaN,Infinity,-Infinity]' in body
        np.testing.assert_array_equal(RestCodec().decode_response(body).outputs[0].data, ODD.astype(dtype))
        with pytest.raises(InvalidInput, match="output 'y' holds an infinity"):
            RestCodec(not_finite="refuse").encode_response(answer, InferRequest("m", []))
    rows = decode(b'{"instances":[1]}')
    assert encode(response, rows) == b'{"predictions":[[1.5,null],[null,null]]}'
    assert encode(response, rows, "tokens") == b'{"predictions":%b}' % AS_TOKENS
    assert encode(two, rows, "tokens") == b'{"predictions":[{"y":[1.5,NaN],"n":1},{"y":[Infinity,-Infinity],"n":2}]}'
    with pytest.raises(InvalidInput, match="infinity"):
        encode(response, rows, "refuse")


def test_v1_rows_hold_integers_of_onnx_runtimes_type():
    outputs = [Tensor.of("label", np.array([3, 4], np.longlong)), Tensor.of("p", np.array([0.5, 0.25], np.float16))]
    body = encode(InferResponse("m", outputs), decode(b'{"instances":[1,2]}'))
    assert body == b'{"predictions":[{"label":3,"p":0.5},{"label":4,"p":0.25}]}'
    whole = [Tensor.of("y", np.array(3, np.longlong))]
    assert encode(InferResponse("m", whole), decode(b'{"inputs":1}')) == b'{"outputs":3}'
