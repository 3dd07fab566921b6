"""TensorFlow Serving's classify and regress bodies: what protobuf reads of our Examples, and which results are written."""

from __future__ import annotations

import base64
import functools
import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from serinus.errors import InvalidInput
from serinus.protocol.peers.example_codec import Examples, decode, encode, to_request
from serinus.protocol.types import InferResponse, Limits, ModelMetadata, Signature, Tensor, TensorSpec


@functools.cache
def message_of_example() -> Any:
    """Make tf.train.Example's class of its own description (tensorflow/core/example/{example,feature}.proto), in a pool of its own."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")

    def add(message: Any, name: str, number: int, kind: int, type_name: str = "", *, repeated: bool = False) -> Any:
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        return message.field.add(name=name, number=number, type=kind, label=label, type_name=type_name or None)

    for name, kind in (("Bytes", field.TYPE_BYTES), ("Float", field.TYPE_FLOAT), ("Int64", field.TYPE_INT64)):
        add(file.message_type.add(name=f"{name}List"), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("Bytes", "Float", "Int64"), 1):
        add(feature, f"{name.lower()}_list", number, field.TYPE_MESSAGE, f".tf.{name}List").oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, ".tf.Feature")
    add(features, "feature", 1, field.TYPE_MESSAGE, ".tf.Features.FeatureEntry", repeated=True)
    add(file.message_type.add(name="Example"), "features", 1, field.TYPE_MESSAGE, ".tf.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


def read(row: bytes) -> dict[str, tuple[str | None, list[Any]]]:
    """Name to the kind of list that a feature has, and its values, as protobuf reads them."""
    found = message_of_example().FromString(row).features.feature
    kinds = {name: feature.WhichOneof("kind") for name, feature in found.items()}
    return {name: (kind, list(getattr(found[name], kind).value) if kind else []) for name, kind in kinds.items()}


def decoded(document: Any, limits: Limits = Limits()) -> Examples:  # noqa: B008 # frozen
    return decode(json.dumps(document).encode(), limits)


LEAST, MOST = -(2**63), 2**63 - 1
FEATURES: dict[str, tuple[Any, tuple[str | None, list[Any]]]] = {
    "a text": ("é", ("bytes_list", ["é".encode()])),
    "texts": (["a", "", "x" * 300], ("bytes_list", [b"a", b"", b"x" * 300])),
    "bytes": ({"b64": base64.b64encode(b"\xff\x00").decode()}, ("bytes_list", [b"\xff\x00"])),
    "texts and bytes": (["a", {"b64": "Yg=="}], ("bytes_list", [b"a", b"b"])),
    "a float": (0.5, ("float_list", [0.5])),
    "floats": ([1.0, -2.5, 3e-2], ("float_list", [1.0, -2.5, np.float32(3e-2)])),
    "beyond float32": ([1e300, -1e300], ("float_list", [math.inf, -math.inf])),
    "a whole number": (7, ("int64_list", [7])),
    "whole numbers": ([0, 127, 128, 300, -1], ("int64_list", [0, 127, 128, 300, -1])),
    "the bounds of int64": ([LEAST, MOST], ("int64_list", [LEAST, MOST])),
    "truth values": ([True, False, 3], ("int64_list", [1, 0, 3])),
    "none": ([], (None, [])),
}


@pytest.mark.parametrize("case", FEATURES)
def test_protobuf_reads_each_kind_of_feature_as_it_was_sent(case: str):
    value, expected = FEATURES[case]
    found = decoded({"examples": [{"f": value, "other": 1}, {"f": value}]})
    assert [read(row) for row in found.rows] == [{"f": expected, "other": ("int64_list", [1])}, {"f": expected}]
    assert found.signature_name == ""


def test_the_features_of_the_context_are_those_of_every_example():
    found = decoded({"signature_name": "s", "context": {"c": "shared"}, "examples": [{"f": 1}, {"f": 2}, {}]})
    shared = {"c": ("bytes_list", [b"shared"])}
    rows = [read(row) for row in found.rows]
    assert rows == [{**shared, "f": ("int64_list", [1])}, {**shared, "f": ("int64_list", [2])}, shared]
    assert found.signature_name == "s"


@pytest.mark.parametrize("context", [None, {}])
def test_a_context_without_features_adds_none(context: Any):
    (row,) = decoded({"context": context, "examples": [{"f": 1}]}).rows
    assert read(row) == {"f": ("int64_list", [1])}


KINDS = 'a number, a string or {"b64": ...} was expected'
WRONG: dict[str, tuple[Any, str]] = {
    "no examples": ({}, "'examples' is missing, an array of objects of features was expected"),
    "null examples": ({"examples": None}, "'examples' is missing, an array"),
    "empty examples": ({"examples": []}, "'examples' is empty, an array"),
    "an object of examples": ({"examples": {"f": 1}}, "'examples' is an object, an array of objects"),
    "a signature that is none": ({"signature_name": 1, "examples": [{}]}, "'signature_name' is 1, a string was"),
    "an example that is none": ({"examples": [{}, 1]}, "examples[1] is 1, an object of features was expected"),
    "a context that is none": ({"context": [1], "examples": [{}]}, "'context' is an array, an object of features"),
    "a feature twice": (
        {"context": {"b": 1, "a": 1, "c": 1}, "examples": [{}, {"b": 1, "a": 2}]},
        "examples[1] has the feature 'a', which 'context' has for all of them",
    ),
    "mixed": (
        {"examples": [{"f": [1, "a", 0.5]}]},
        "examples[0], feature 'f' mixes bytes and floats and whole numbers; the values of a feature are of one kind",
    ),
    "null": ({"examples": [{"f": None}]}, f"examples[0], feature 'f' holds null; {KINDS}"),
    "nested": ({"examples": [{"f": [[1]]}]}, f"feature 'f' holds an array; {KINDS}"),
    "another object": ({"examples": [{"f": {"b65": "Yg=="}}]}, f"feature 'f' holds an object; {KINDS}"),
    "more than base64": ({"examples": [{"f": {"b64": "Yg==", "a": "b"}}]}, KINDS),
    "base64 of a number": ({"examples": [{"f": {"b64": 1}}]}, KINDS),
    "no base64": ({"examples": [{"f": {"b64": "a b"}}]}, "examples[0], feature 'f': 'b64' is not base64"),
    "base64 that is cut": ({"examples": [{"f": {"b64": "Y"}}]}, "'b64' is not base64"),
    "above int64": ({"examples": [{"f": MOST + 1}]}, f"feature 'f': {MOST + 1} does not fit int64"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_example_is_refused_with_its_place(case: str):
    document, message = WRONG[case]
    with pytest.raises(InvalidInput) as refused:
        decoded(document)
    assert message in str(refused.value)


# The request

BYTES_IN = (TensorSpec("inputs", "BYTES", (-1,)),)
CLASSES, SCORES = TensorSpec("classes", "BYTES", (-1, -1)), TensorSpec("scores", "FP32", (-1, -1))
VALUES = TensorSpec("outputs", "FP32", (-1, 1))


def model(*outputs: TensorSpec, inputs: tuple[TensorSpec, ...] = BYTES_IN, **signatures: Signature) -> ModelMetadata:
    return ModelMetadata("m", (), "tensorflow", inputs, outputs, signatures=signatures)


def test_the_rows_are_one_input_of_bytes():
    request = to_request(Examples([b"a", b"bb"]), model(CLASSES, SCORES), "classify", version="3")
    (tensor,) = request.inputs
    assert (request.model_name, request.model_version, dict(request.parameters)) == ("m", "3", {})
    assert (tensor.name, tensor.datatype, tensor.shape, tensor.data.tolist()) == (
        "inputs",
        "BYTES",
        (2,),
        [b"a", b"bb"],
    )


@pytest.mark.parametrize(
    ("task", "outputs", "does"),
    [
        ("classify", (CLASSES, SCORES), True),
        ("classify", (CLASSES,), True),
        ("classify", (SCORES,), True),
        ("classify", (VALUES,), False),
        ("classify", (CLASSES, VALUES), False),
        ("classify", (), False),
        ("regress", (VALUES,), True),
        ("regress", (SCORES,), False),
        ("regress", (VALUES, SCORES), False),
    ],
)
def test_a_signature_does_what_its_outputs_are_for(task: Any, outputs: tuple[TensorSpec, ...], does: bool):
    for metadata, name in ((model(*outputs), ""), (model(CLASSES, VALUES, s=Signature(BYTES_IN, outputs)), "s")):
        if does:
            assert dict(to_request(Examples([b"a"], name), metadata, task).parameters) == (
                {"signature_name": "s"} if name else {}
            )
        else:
            with pytest.raises(InvalidInput, match=f"does not {task}"):
                to_request(Examples([b"a"], name), metadata, task)


@pytest.mark.parametrize(
    "inputs",
    [
        (TensorSpec("inputs", "FP32", (-1,)),),
        (TensorSpec("x", "BYTES", (-1,)),),
        (*BYTES_IN, TensorSpec("more", "BYTES", (-1,))),
        (),
    ],
    ids=["floats", "another name", "two", "none"],
)
def test_a_signature_takes_the_one_input_of_bytes(inputs: tuple[TensorSpec, ...]):
    with pytest.raises(InvalidInput, match="the default signature does not regress"):
        to_request(Examples([b"a"]), model(VALUES, inputs=inputs), "regress")


def test_a_signature_that_does_not_is_told_with_those_that_do():
    able = Signature(BYTES_IN, (CLASSES,))
    with pytest.raises(InvalidInput) as refused:
        to_request(Examples([b"a"]), model(VALUES, b=able, a=able, r=Signature(BYTES_IN, (VALUES,))), "classify")
    assert str(refused.value) == (
        "the default signature does not classify: one that does has the one input 'inputs', of BYTES, and the output 'classes' and "
        "'scores', or one of them; name one that does, by 'signature_name': 'a', 'b'"
    )
    with pytest.raises(InvalidInput) as refused:
        to_request(Examples([b"a"], "a"), model(VALUES, a=able), "regress")
    assert str(refused.value) == (
        "signature 'a' does not regress: one that does has the one input 'inputs', of BYTES, and the output 'outputs'; no signature of "
        "the model does"
    )


@pytest.mark.parametrize(
    ("signatures", "known"), [({}, "none"), ({"b": Signature((), ()), "a": Signature((), ())}, "'a', 'b'")]
)
def test_a_signature_that_is_not_there_is_told_with_those_that_are(signatures: dict[str, Signature], known: str):
    with pytest.raises(InvalidInput, match=f"'signature_name' is 'x'; the model's signatures are {known}$"):
        to_request(Examples([b"a"], "x"), model(VALUES, **signatures), "regress")


# The results


def results(response: InferResponse, task: Any, rows: int) -> Any:
    return orjson.loads(encode(response, task, rows))


LABELS = np.array([[b"cat", "hund"], [b"\xff", 3]], object)
CHANCES = np.array([[0.75, 0.25], [0.5, 0.5]], np.float32)
RESULTS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "values": ("regress", {"outputs": np.float32([0.5, 1.5])}, [0.5, 1.5]),
    "values in a column": ("regress", {"outputs": np.float64([[0.5], [1.5]])}, [0.5, 1.5]),
    "labels and scores": (
        "classify",
        {"classes": LABELS, "scores": CHANCES},
        [[["cat", 0.75], ["hund", 0.25]], [["\ufffd", 0.5], ["3", 0.5]]],
    ),
    "labels": ("classify", {"classes": LABELS}, [[["cat", 0.0], ["hund", 0.0]], [["\ufffd", 0.0], ["3", 0.0]]]),
    "scores": ("classify", {"scores": CHANCES}, [[["", 0.75], ["", 0.25]], [["", 0.5], ["", 0.5]]]),
    "no classes": ("classify", {"scores": CHANCES[:, :0]}, [[], []]),
}


@pytest.mark.parametrize("case", RESULTS)
def test_results_are_one_a_row(case: str):
    task, arrays, expected = RESULTS[case]
    tensors = [
        Tensor(name, "BYTES", array.shape, array) if array.dtype == object else Tensor.of(name, array)
        for name, array in arrays.items()
    ]
    assert results(InferResponse("m", tensors), task, 2) == {"results": expected}


NO_RESULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "whole numbers": ("regress", {"outputs": np.int64([1, 2])}, "output 'outputs' is INT64 [2]; a regression of 2"),
    "other rows": ("regress", {"outputs": np.float32([1])}, "output 'outputs' is FP32 [1]; a regression of 2 examples"),
    "two columns": ("regress", {"outputs": CHANCES}, "has floats [2] or [2, 1]"),
    "a vector": ("classify", {"scores": CHANCES[0]}, "output 'scores' has shape [2]; a classification of 2 examples"),
    "scores of other rows": ("classify", {"scores": CHANCES[:1]}, "output 'scores' has shape [1, 2]"),
    "labels of other rows": ("classify", {"classes": LABELS[:1], "scores": CHANCES}, "output 'classes' has shape"),
    "scores of whole numbers": ("classify", {"scores": np.ones((2, 2), int)}, "output 'scores' is INT64; floats were"),
    "labels of numbers": ("classify", {"classes": CHANCES}, "output 'classes' is FP32; BYTES was expected"),
    "other classes": (
        "classify",
        {"classes": np.array([[b"a"], [b"b"]], object), "scores": CHANCES},
        "outputs 'classes' [2, 1] and 'scores' [2, 2] have not the same shape",
    ),
}


@pytest.mark.parametrize("case", NO_RESULTS)
def test_outputs_that_are_no_results_are_the_signatures_fault(case: str):
    task, arrays, message = NO_RESULTS[case]
    tensors = [
        Tensor(name, "BYTES", array.shape, array) if array.dtype == object else Tensor.of(name, array)
        for name, array in arrays.items()
    ]
    with pytest.raises(InvalidInput) as refused:
        encode(InferResponse("m", tensors), task, 2)  # pyright: ignore[reportArgumentType] # a name of the table
    assert message in str(refused.value)
