"""Where a request keeps its pictures: a BYTES tensor, or V1 instances.

Theory of operation. JSON has no bytes, so a picture in JSON is base64: {"b64": "..."} as TensorFlow Serving writes it, or the bare
string as KServe's examples do; so also in BYTES tensors of V2 JSON. Raw bytes come over the binary extension and gRPC. Which of
the two an element of a BYTES tensor is, its first bytes tell: a file of a format that is read here never begins like base64 text
that decodes to one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["BadRequest", "of_instances", "of_tensor"]

_KEYS = ("image", "image_bytes", "data", "b64")
"""Where an instance that is an object keeps its picture: KServe's and TensorFlow Serving's examples."""
_MAGIC = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8")


class BadRequest(ValueError):
    """The request holds no pictures where they are due; the message says where, for the client."""


def of_tensor(name: str, datatype: str, shape: Sequence[int], array: np.ndarray) -> list[bytes]:
    """Take the pictures of a V2 request's input.

    Args:
        name: of the input, for messages.
        datatype: as the request says.
        shape: [n] or [n, 1].
        array: its elements, bytes or str.

    Raises:
        BadRequest: another datatype or shape, or an element that is neither bytes nor base64.
    """
    if datatype != "BYTES":
        raise BadRequest(f"input '{name}': datatype is {datatype}, BYTES was expected: one whole image file per row")
    if len(shape) not in {1, 2} or (len(shape) == 2 and shape[1] != 1) or not shape[0]:
        raise BadRequest(f"input '{name}': shape is {list(shape)}, [n] or [n, 1] was expected with n at least 1")
    pictures = []
    for element in array.reshape(-1).tolist():
        content = element.encode() if isinstance(element, str) else bytes(element)
        if not content.startswith(_MAGIC):
            content = _base64(content) or content  # what it is not, the decoder will say
        pictures.append(content)
    return pictures


def of_instances(instances: Any) -> list[bytes]:
    """Take the pictures of a V1 request.

    Args:
        instances: {"b64": ...}, base64 strings, or objects that hold one of the two under `image`, `image_bytes` or `data`,
            or under their only key.

    Raises:
        BadRequest: no list, or an instance that is none of these; all of them are named.
    """
    if not isinstance(instances, list) or not instances:
        raise BadRequest("'instances': a list with at least one picture was expected")
    pictures, problems = [], []
    for row, instance in enumerate(instances):
        text = _text(instance)
        content = _base64(text.encode()) if isinstance(text, str) else None
        if content is None:
            what = (
                "is not base64"
                if isinstance(text, str)
                else 'holds no picture: {"b64": "..."} or a base64 string was expected'
            )
            problems.append(f"instances[{row}] {what}")
        else:
            pictures.append(content)
    if problems:
        raise BadRequest("; ".join(problems[:8]))
    return pictures


def _text(instance: Any) -> Any:
    """Follow an instance to its base64 text; anything else where there is none."""
    for _ in range(2):
        if not isinstance(instance, Mapping):
            break
        key = next((key for key in _KEYS if key in instance), next(iter(instance)) if len(instance) == 1 else None)
        instance = instance[key] if key is not None else None
    return instance


def _base64(text: bytes) -> bytes | None:
    if text.startswith(b"data:"):  # a browser's data URL
        text = text.partition(b",")[2]
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
