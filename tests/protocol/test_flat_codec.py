"""The generate extension's flat JSON: which keys are inputs, in which shape, and how a response is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from serinus.errors import InvalidInput, TooLarge
from serinus.protocol.peers.flat_codec import decode, encode
from serinus.protocol.types import InferRequest, InferResponse, Limits, ModelMetadata, Tensor, TensorSpec

TEXT, RATE = TensorSpec("text", "BYTES", (-1,)), TensorSpec("rate", "FP32", (1,))


def decoded(body: Any, *inputs: TensorSpec, limits: Limits = Limits(), **more: Any) -> InferRequest:  # noqa: B008 # frozen
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    metadata = ModelMetadata("m", (), "", inputs or (TEXT, RATE), ())
    return decode(raw, metadata, version=more.get("version", ""), limits=limits, headers=more.get("headers", {}))


def test_inputs_are_tensors_and_every_other_key_is_a_parameter():
    request = decoded(
        {"text": "hi", "seed": 7, "id": "one", "parameters": {"rate": 0.5, "stop": "x", "greedy": True}},
        version="2",
        headers={"a": "b"},
    )
    assert [(one.name, one.datatype, one.shape, one.data.tolist()) for one in request.inputs] == [
        ("text", "BYTES", (1,), [b"hi"]),
        ("rate", "FP32", (1,), [0.5]),
    ]
    assert dict(request.parameters) == {"seed": 7, "stop": "x", "greedy": True}
    assert (request.model_name, request.model_version, request.id, request.headers) == ("m", "2", "one", {"a": "b"})


@pytest.mark.parametrize("identifier", [None, ""])
def test_an_id_may_be_missing_null_or_empty(identifier: Any):
    assert decoded({"text": "hi"}).id is decoded({"text": "hi", "id": identifier}).id is None


SHAPES: list[tuple[tuple[int, ...], int, tuple[int, ...] | None]] = [
    ((-1,), 1, (1,)),
    ((-1,), 5, (5,)),
    ((-1,), 0, (0,)),
    ((1,), 1, (1,)),
    ((3,), 3, (3,)),
    ((3,), 6, None),
    ((3,), 2, None),
    ((-1, 3), 6, (2, 3)),
    ((-1, 3), 4, None),
    ((-1, -1), 4, (1, 4)),
    ((2, -1), 6, (2, 3)),
    ((2, -1, 3), 6, (2, 1, 3)),
    ((-1, 2, -1, 3), 12, (1, 2, 2, 3)),
    ((), 1, ()),
    ((), 2, None),
    ((2, 0), 0, None),
]


@pytest.mark.parametrize(("spec", "count", "shape"), SHAPES)
def test_the_last_free_dimension_takes_as_many_as_there_are(
    spec: tuple[int, ...], count: int, shape: tuple[int, ...] | None
):
    body = {"x": list(range(count))}
    if shape is None:
        with pytest.raises(InvalidInput, match=f"input 'x' has {count} values"):
            decoded(body, TensorSpec("x", "INT64", spec))
    else:
        (tensor,) = decoded(body, TensorSpec("x", "INT64", spec)).inputs
        assert tensor.shape == shape
        assert tensor.data.ravel().tolist() == list(range(count))


WRONG: dict[str, tuple[Any, str]] = {
    "an array": ([1], "the request body is an array"),
    "an id of a number": ({"text": "a", "id": 1}, "'id' is 1, a string was expected"),
    "parameters of a number": ({"parameters": 1}, "'parameters' is 1, an object was expected"),
    "null parameters": ({"parameters": None}, "'parameters' is null, an object was expected"),
    "beside and in": ({"b": 1, "a": 1, "parameters": {"a": 2, "b": 2}}, "'a' is given twice, beside 'parameters'"),
    "an input beside and in": ({"text": "a", "parameters": {"text": "a"}}, "'text' is given twice, beside"),
    "twice": (b'{"text": "a", "text" : "b"}', "'text' is given twice in one object"),
    "twice in parameters": (b'{"text": "a", "parameters": {"s": 1, "s": 2}}', "'s' is given twice in one object"),
    "twice, escaped": (b'{"text": "a", "te\\u0078t": "b"}', "'text' is given twice in one object"),
    "nested": ({"text": [["a"]]}, "input 'text' is nested; a flat request has one value or a flat array"),
    "nested later": ({"text": ["a", ["b"]]}, "input 'text' is nested"),
    "a wrong value": ({"rate": "fast"}, "input 'rate'"),
    "a wrong parameter": ({"text": "a", "stop": ["x"]}, "stop"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_flat_request_is_refused(case: str):
    body, message = WRONG[case]
    with pytest.raises(InvalidInput) as refused:
        decoded(body)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"text": "text: \\"text\\" : a"}', 'text: "text" : a'),
        (b'{"text": "a", "note": "\\"rate\\":"}', "a"),
        (b'{"text": "the text", "parameters": {"note": "text"}}', "the text"),
        (b'{"te\\u0078t": "a"}', "a"),
        (b'{"text": "a", "texts": "b"}', "a"),
    ],
    ids=["a key in a value", "another key in a value", "a word", "escaped once", "a longer key"],
)
def test_a_key_that_only_looks_as_if_it_were_there_twice_is_fine(body: bytes, text: str):
    assert decoded(body).inputs[0].data.tolist() == [text.encode()]


def test_a_model_that_tells_no_inputs_or_one_called_parameters_is_sent_to_infer():
    metadata = ModelMetadata("m", (), "", (), ())
    with pytest.raises(InvalidInput, match=r"model 'm' does not say what its inputs are.*use /infer"):
        decode(b'{"text": "a"}', metadata, version="", limits=Limits(), headers={})
    spec = TensorSpec("parameters", "BYTES", (-1,))
    with pytest.raises(InvalidInput, match=r"an input named 'parameters'.*use /infer"):
        decoded({"parameters": {}}, spec)
    assert decoded({"text": "a"}, spec, TEXT).inputs[0].name == "text"


def test_limits_of_a_body_hold():
    spec = TensorSpec("x", "INT64", (-1,))
    with pytest.raises(TooLarge):
        decoded({"x": [1] * 100}, spec, limits=Limits(tensor_bytes=799))
    assert decoded({"x": [1] * 100}, spec, limits=Limits(tensor_bytes=800)).inputs[0].shape == (100,)


def encoded(*tensors: Tensor, **fields: Any) -> Any:
    return orjson.loads(encode(InferResponse("m", list(tensors), **fields)))


@pytest.mark.parametrize(
    ("array", "written"),
    [
        (np.float32([0.5]), 0.5),
        (np.float32([[0.5]]), 0.5),
        (np.float32([]), []),
        (np.float32([0.5, 1.5]), [0.5, 1.5]),
        (np.int64([[1, 2], [3, 4]]), [1, 2, 3, 4]),
        (np.array([True]), True),
        (np.array([b"hi"], object), "hi"),
        (np.array([b"a", b"b"], object), ["a", "b"]),
    ],
)
def test_one_value_is_written_as_that_and_any_other_number_as_a_flat_array(array: np.ndarray, written: Any):
    datatype = "BYTES" if array.dtype == object else Tensor.of("y", array).datatype
    found = encoded(Tensor("y", datatype, array.shape, array))
    assert found == {"model_name": "m", "model_version": "", "y": written}


def test_a_response_has_its_id_name_version_and_parameters_and_what_comes_first_stays():
    tensors = [Tensor.of("y", np.int64([1])), Tensor.of("score", np.int64([2])), Tensor.of("id", np.int64([3]))]
    found = encode(
        InferResponse("m", tensors, id="one", model_version="2", parameters={"score": 0.5, "model_name": "other"})
    )
    assert found == b'{"id":"one","model_name":"m","model_version":"2","score":0.5,"y":1}'
    assert "id" not in encoded(tensors[0])
