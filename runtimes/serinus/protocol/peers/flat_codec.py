"""The generate extension's flat JSON: `{"text_input": "...", "temperature": 0.5}` to a request, a response to `{"text_output": "..."}`.

Sources: Triton, extension_generate.md; its server's http_server.cc, `ConvertGenerateRequest`, `ExactMappingInput`, `ConvertGenerateResponse`.

A key that is the name of an input of the model holds that input's values: one value or a flat array of them; every other key is a parameter,
and so are the keys of the object `parameters`, where inputs may stand too. A shape is made of the model's: the last of its free dimensions
takes as many as there are, the others 1. `id` is given back. An output of one value is answered as that value, any other as a flat array.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from ...errors import InvalidInput
from ..json_codec import decode_data, decode_parameters, describe, encode_data, load_object
from ..types import InferRequest, InferResponse, Limits, ModelMetadata, Tensor, TensorSpec

__all__ = ["decode", "encode"]

_BODY: Final = "the request body"


def decode(
    body: bytes, metadata: ModelMetadata, *, version: str, limits: Limits, headers: Mapping[str, str]
) -> InferRequest:
    """Read a body.

    Args:
        body: JSON.
        metadata: the model's; its inputs say which keys are tensors.
        version: the one asked for; empty: the server chooses.
        limits: of the body.
        headers: of the request.

    Raises:
        InvalidInput: no object, values that do not fit an input, or a parameter that is none.
        TooLarge: one of the limits was passed.
    """
    document = load_object(body, _BODY, limits)
    _check_once(body, document)
    inputs = {spec.name: spec for spec in metadata.inputs}
    if not inputs:
        raise InvalidInput(
            f"model '{metadata.name}' does not say what its inputs are, so no key of a flat request can be one; use /infer"
        )
    identifier = document.pop("id", None)
    if identifier is not None and type(identifier) is not str:
        raise InvalidInput(f"'id' is {describe(identifier)}, a string was expected")
    nested = {}
    if "parameters" in document:
        if "parameters" in inputs:
            raise InvalidInput(
                "the model has an input named 'parameters', which flat requests keep for the object; use /infer"
            )
        nested = document.pop("parameters")
        if type(nested) is not dict:
            raise InvalidInput(f"'parameters' is {describe(nested)}, an object was expected")
    twice = sorted(document.keys() & nested.keys())
    if twice:
        raise InvalidInput(f"{twice[0]!r} is given twice, beside 'parameters' and in it")
    document |= nested
    tensors = [_tensor(inputs[name], document.pop(name), limits) for name in list(document) if name in inputs]
    parameters = decode_parameters(document, _BODY, limits)
    return InferRequest(metadata.name, tensors, version, identifier or None, parameters, headers=headers)


def _check_once(body: bytes, document: Mapping[str, Any]) -> None:
    """Refuse a key that is there twice: the parser keeps the last one, and half of what was sent would be lost.

    Where nothing is escaped and each key is written once, there can be no second one: that is cheap to see, and nearly always so.
    """
    nested = document.get("parameters")
    keys = [*document, *(nested if type(nested) is dict else ())]
    if b"\\" not in body and all(len(re.findall(re.escape(orjson.dumps(key)) + rb"\s*:", body)) == 1 for key in keys):
        return

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise InvalidInput(f"{key!r} is given twice in one object")
            found[key] = value
        return found

    json.loads(body, object_pairs_hook=once)


def _tensor(spec: TensorSpec, value: Any, limits: Limits) -> Tensor:
    what = f"input {spec.name!r}"
    values = value if type(value) is list else [value]
    if any(type(one) is list for one in values):
        raise InvalidInput(
            f"{what} is nested; a flat request has one value or a flat array of them, /infer takes the rest"
        )
    shape = _shape(what, spec, len(values))
    return Tensor(spec.name, spec.datatype, shape, decode_data(what, spec.datatype, shape, values, limits))


def _shape(what: str, spec: TensorSpec, count: int) -> tuple[int, ...]:
    left, fixed = count, 1
    for size in spec.shape:
        fixed *= size if size != -1 else 1
    if fixed == 0 or left % fixed:
        raise InvalidInput(f"{what} has {count} values, which cannot have the shape {list(spec.shape)} (-1: any)")
    left //= fixed
    shape = []
    for size in reversed(spec.shape):
        shape.append(left if size == -1 else size)
        left = 1 if size == -1 else left
    if left != 1:
        raise InvalidInput(f"{what} has {count} values, the model takes {list(spec.shape)}")
    return tuple(reversed(shape))


def encode(response: InferResponse) -> bytes:
    """Write a response.

    Raises:
        InvalidInput: a BYTES output is not UTF-8.
    """
    members: dict[str, bytes] = {}
    if response.id:
        members["id"] = orjson.dumps(response.id)
    members["model_name"] = orjson.dumps(response.model_name)
    members["model_version"] = orjson.dumps(response.model_version)
    for name, value in response.parameters.items():
        members.setdefault(name, orjson.dumps(value))
    for tensor in response.outputs:
        values = encode_data(tensor.name, tensor.data, tensor.datatype)
        members.setdefault(tensor.name, values[1:-1] if tensor.data.size == 1 else values)
    return b"{" + b",".join(orjson.dumps(name) + b":" + value for name, value in members.items()) + b"}"
