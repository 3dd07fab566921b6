"""The parts of an inference request's and response's JSON, checked one by one.

Source: Open Inference Protocol, inference_rest.md, "Inference Request JSON Object".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidInput, TooLarge
from .binary_codec import BinaryReader, binary_flag, binary_size
from .classification import check_classes
from .json_codec import check_datatype, check_name, check_shape, decode_data, decode_parameters, describe, is_nested
from .raw import decode
from .types import NO_PARAMETERS, Limits, RequestedOutput, Tensor

__all__ = ["TensorHead", "decode_id", "decode_requested_outputs", "decode_tensors", "read_head", "read_list"]


class TensorHead:
    """A tensor's JSON without its values.

    Attributes:
        what: its name in messages: "input 'x'".
        size: the parameter `binary_data_size`, which `parameters` no longer has; None: the values are in the JSON.
    """

    __slots__ = ("datatype", "name", "parameters", "shape", "size", "what")

    def __init__(self, entry: Any, index: int, role: str, limits: Limits) -> None:
        place = f"{role} {index}"
        if type(entry) is not dict:
            raise InvalidInput(f"{place} is {describe(entry)}, an object was expected")
        for key in ("name", "datatype", "shape"):
            if entry.get(key) is None:
                named = entry.get("name")
                raise InvalidInput(f"{f'{role} {named!r}' if type(named) is str else place}: {key!r} is missing")
        self.name = check_name(entry["name"], place, limits)
        self.what = what = f"{role} {self.name!r}"
        self.datatype = check_datatype(entry["datatype"], what)
        self.shape = check_shape(entry["shape"], what, limits)
        parameters = decode_parameters(entry.get("parameters"), what, limits)
        if "shared_memory_region" in parameters:
            raise InvalidInput(f"{what}: shared memory is not offered by this server; send the values")
        self.size = binary_size(parameters, what)
        if self.size is None:
            if entry.get("data") is None:
                raise InvalidInput(f"{what}: neither 'data' nor the parameter 'binary_data_size' is there")
        else:
            if "data" in entry:
                raise InvalidInput(
                    f"{what}: both 'data' and the parameter 'binary_data_size' are there, one was expected"
                )
            parameters = {key: value for key, value in parameters.items() if key != "binary_data_size"}
        self.parameters: Mapping[str, Any] = parameters or NO_PARAMETERS


def read_list(value: Any, role: str, limits: Limits) -> list[Any]:
    """Check `inputs` of a request, or `outputs` of a response, before its entries are looked at.

    Raises:
        InvalidInput: missing, empty or no array.
        TooLarge: more entries than `limits.tensors`.
    """
    if value is None:
        raise InvalidInput(f"'{role}s' is missing: an array of at least one {role} was expected")
    if type(value) is not list:
        raise InvalidInput(f"'{role}s' is {describe(value)}, an array of at least one {role} was expected")
    if not value:
        raise InvalidInput(f"'{role}s' is empty: at least one {role} was expected")
    if len(value) > limits.tensors:
        raise TooLarge(f"'{role}s' holds {len(value)} tensors, the limit is {limits.tensors} (max_tensors)")
    return value


def decode_tensors(value: Any, role: str, reader: BinaryReader, limits: Limits) -> list[Tensor]:
    """Read `inputs` of a request (role "input"), or `outputs` of a response ("output").

    Raises:
        InvalidInput: with the tensor's name, what came and what was expected.
        TooLarge: one of the limits was passed.
    """
    tensors: list[Tensor] = []
    names: set[str] = set()
    for index, entry in enumerate(read_list(value, role, limits)):
        head = read_head(entry, index, role, names, limits)
        nested = False
        if head.size is None:
            data = decode_data(head.what, head.datatype, head.shape, entry["data"], limits)
            nested = is_nested(entry["data"])
        else:
            data = decode(head.what, head.datatype, head.shape, reader.take(head.what, head.size), limits)
        tensors.append(Tensor(head.name, head.datatype, head.shape, data, head.parameters, nested))
    return tensors


def read_head(entry: Any, index: int, role: str, names: set[str], limits: Limits) -> TensorHead:
    """Read a tensor's JSON without its values, and add its name to `names`.

    Raises:
        InvalidInput: as `decode_tensors`; also when the name is there already.
        TooLarge: one of the limits was passed.
    """
    head = TensorHead(entry, index, role, limits)
    if head.name in names:
        raise InvalidInput(f"{head.what} is given twice")
    names.add(head.name)
    return head


def decode_id(value: Any) -> str | None:
    """Check `id`; None where it is left out."""
    if value is None or type(value) is str:
        return value
    raise InvalidInput(f"'id' is {describe(value)}, a string was expected")


def decode_requested_outputs(value: Any, limits: Limits) -> list[RequestedOutput] | None:
    """Check a request's `outputs`; None where it is left out.

    Raises:
        InvalidInput: with the output's name, what came and what was expected.
        TooLarge: one of the limits was passed.
    """
    if value is None:
        return None
    if type(value) is not list:
        raise InvalidInput(f"'outputs' is {describe(value)}, an array was expected")
    if len(value) > limits.tensors:
        raise TooLarge(f"'outputs' names {len(value)} tensors, the limit is {limits.tensors} (max_tensors)")
    outputs: list[RequestedOutput] = []
    names: set[str] = set()
    for index, entry in enumerate(value):
        place = f"requested output {index}"
        if type(entry) is not dict:
            raise InvalidInput(f"{place} is {describe(entry)}, an object was expected")
        if entry.get("name") is None:
            raise InvalidInput(f"{place}: 'name' is missing")
        name = check_name(entry["name"], place, limits)
        if name in names:
            raise InvalidInput(f"requested output {name!r} is given twice")
        names.add(name)
        what = f"requested output {name!r}"
        parameters = decode_parameters(entry.get("parameters"), what, limits)
        if parameters:
            binary_flag(parameters, "binary_data", what)
            if "shared_memory_region" in parameters:
                raise InvalidInput(f"{what}: shared memory is not offered by this server")
            check_classes(parameters, what, limits)
        outputs.append(RequestedOutput(name, parameters))
    return outputs
