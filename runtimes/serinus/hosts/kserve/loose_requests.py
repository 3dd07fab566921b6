"""What KServe's REST server takes beyond the protocol: BYTES data with elements that are no strings.

KServe hands a class the JSON's own values: `["a", 1, null, 2.5, true]` of datatype BYTES are these, in `data` and in `as_numpy()`
(kserve.protocol.infer_type, `InferRequest.from_bytes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from ...errors import ClientError
from ...protocol.datatypes import BYTES
from ...protocol.json_codec import load_object
from ...protocol.rest_codec import RestCodec
from ...protocol.types import InferRequest, Limits

__all__ = ["loose_request"]


def loose_request(
    body: bytes, model_name: str, version: str, headers: Mapping[str, str], limits: Limits
) -> InferRequest | None:
    """Read a body that the protocol refuses.

    Args:
        body: JSON.
        model_name: from the URL.
        version: likewise.
        headers: kept in the request.
        limits: as for any other body.

    Returns:
        The request, in which arrays of BYTES hold `bytes`, and whatever else the JSON has, as they are; None where something else is wrong.
    """
    try:
        document = load_object(body, "the request body", limits)
        mixed: dict[int, list[Any]] = {}
        inputs = document.get("inputs")
        for index, entry in enumerate(inputs if type(inputs) is list else ()):
            if type(entry) is dict and entry.get("datatype") == BYTES and type(entry.get("data")) is list:
                elements = list(_elements(entry["data"]))
                if any(type(element) is not str for element in elements):
                    mixed[index] = elements
                    entry["data"] = _as_strings(entry["data"])
        request = RestCodec(limits).decode_request(
            orjson.dumps(document) if mixed else body,
            model_name=model_name,
            model_version=version,
            headers=headers,
        )
    except ClientError:
        return None
    if not mixed:
        return request
    tensors = list(request.inputs)
    for index, elements in mixed.items():
        array = np.empty(len(elements), dtype=object)
        array[:] = [element.encode() if type(element) is str else element for element in elements]
        tensors[index] = replace(tensors[index], data=array.reshape(tensors[index].shape))
    return replace(request, inputs=tensors)


def _elements(data: list[Any]) -> Iterator[Any]:
    for value in data:
        if type(value) is list:
            yield from _elements(value)
        else:
            yield value


def _as_strings(data: list[Any]) -> list[Any]:
    """Keep the nesting, for the checks of shape and count; what is no string stands as an empty one."""
    return [_as_strings(value) if type(value) is list else value if type(value) is str else "" for value in data]
