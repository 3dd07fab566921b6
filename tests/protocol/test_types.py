"""What the protocol's values are by themselves: equal to whom, what they say by default, what is found in them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import serinus
from serinus.protocol.types import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    Limits,
    ModelMetadata,
    RequestedOutput,
    ServerMetadata,
    Signature,
    Tensor,
    TensorSpec,
    no_parameters,
)

ARRAY = np.array([1, 2], np.int32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tensor("x", "INT32", (2,), ARRAY),
        lambda: RequestedOutput("y"),
        lambda: InferRequest("m", ()),
        lambda: InferResponse("m", ()),
    ],
    ids=["Tensor", "RequestedOutput", "InferRequest", "InferResponse"],
)
def test_what_is_on_the_hot_path_is_equal_to_itself_alone_and_may_be_a_key(make: Any):
    first, second = make(), make()
    assert first == first
    assert first != second
    assert len({first, second, first}) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda name: TensorSpec(name, "FP32", (-1,)),
        lambda name: Signature((TensorSpec(name, "FP32", (-1,)),), ()),
        lambda name: ModelMetadata(name, (), "p", (), ()),
        lambda name: ServerMetadata(name, "1", ()),
        lambda name: Limits(tensors=len(name)),
    ],
    ids=["TensorSpec", "Signature", "ModelMetadata", "ServerMetadata", "Limits"],
)
def test_what_describes_is_equal_where_it_says_the_same_and_cannot_be_changed(make: Any):
    assert make("a") == make("a")
    assert make("a") != make("bc")
    with pytest.raises(AttributeError):
        setattr(make("a"), dataclasses.fields(make("a"))[0].name, "b")


def test_a_request_says_nothing_by_default():
    request = InferRequest("m", ())
    assert (request.model_version, request.id, request.outputs, request.deadline) == ("", None, None, None)
    assert (request.priority, request.binary) == (0, False)
    assert request.parameters == request.headers == {}
    response = InferResponse("m", ())
    assert (response.model_version, response.id) == ("", None)
    assert response.parameters == response.headers == {}
    assert Tensor("x", "INT32", (2,), ARRAY).nested is False
    assert Tensor("x", "INT32", (2,), ARRAY).parameters == {}
    assert RequestedOutput("y").parameters == {}


def test_a_spec_is_of_a_tensor_that_must_come_and_has_no_labels_by_default():
    spec = TensorSpec("x", "FP32", (-1,))
    assert (spec.labels, spec.optional) == ((), False)
    metadata = ModelMetadata("m", (), "p", (), ())
    assert (metadata.parameters, metadata.signatures) == ({}, {})


def test_tensors_are_found_by_their_names_and_none_by_another():
    first, second = Tensor.of("a", ARRAY), Tensor.of("b", ARRAY)
    request, response = InferRequest("m", [first, second]), InferResponse("m", [first, second])
    for find in (request.input, response.output):
        assert find("a") is first
        assert find("b") is second
        assert find("ab") is None
        assert find("") is None


@pytest.mark.parametrize(
    ("array", "datatype", "named"),
    [
        (np.zeros((2, 3), np.float32), None, "FP32"),
        (np.zeros((2, 3), np.float32), "BF16", "BF16"),
        (np.zeros((), np.uint8), None, "UINT8"),
        (np.zeros(1, object), None, "BYTES"),
        (np.zeros(1, bool), None, "BOOL"),
    ],
)
def test_an_array_becomes_a_tensor_of_its_own_shape_and_type(array: np.ndarray, datatype: str | None, named: str):
    tensor = Tensor.of("x", array, datatype)
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", named, array.shape)
    assert tensor.data is array


def test_an_array_that_has_no_place_in_the_protocol_is_refused():
    with pytest.raises(KeyError):
        Tensor.of("x", np.zeros(1, np.complex64))


@pytest.mark.parametrize(
    ("spec", "batched", "told"),
    [
        (TensorSpec("x", "FP32", (-1, 3)), True, ("TYPE_FP32", (3,), False)),
        (TensorSpec("x", "FP32", (-1, 3)), False, ("TYPE_FP32", (-1, 3), False)),
        (TensorSpec("x", "INT8", (1, 3)), True, ("TYPE_INT8", (1, 3), False)),
        (TensorSpec("x", "BYTES", (-1,)), True, ("TYPE_STRING", (1,), True)),
        (TensorSpec("x", "BYTES", (-1,)), False, ("TYPE_STRING", (-1,), False)),
        (TensorSpec("x", "BOOL", ()), True, ("TYPE_BOOL", (1,), True)),
    ],
)
def test_a_models_configuration_leaves_the_batch_out(spec: TensorSpec, batched: bool, told: tuple[str, Any, bool]):
    assert spec.in_config(batched=batched) == told


def test_the_shared_empty_parameters_cannot_be_filled():
    shared: Any = no_parameters()
    assert shared is NO_PARAMETERS
    for fill in (
        lambda: shared.__setitem__("a", 1),
        lambda: shared.update(a=1),
        lambda: shared.setdefault("a", 1),
        lambda: shared.__ior__({"a": 1}),
    ):
        with pytest.raises(TypeError):
            fill()
    assert shared == {}
    assert hash(shared) == hash(NO_PARAMETERS)


def test_the_limits_that_hold_by_default_are_those_that_are_documented():
    table = (Path(serinus.__file__).parent / "LIMITS.md").read_text()
    documented = dict(re.findall(r"^\| `max_(\w+)`[^|]*\|[^|]*\| (\d+) \|", table, re.MULTILINE))
    limits = Limits()
    for name in ("body_bytes", "tensor_bytes", "tensors", "rank", "json_depth", "name_bytes", "classes"):
        assert getattr(limits, name) == int(documented[name]), name
