"""Inference requests as the bytes of whole HTTP messages, each with rows of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote

import numpy as np

from ...protocol.rest_codec import RestCodec
from ...protocol.types import InferRequest, Tensor
from ..forms.samples import take_rows
from .loadgen import http_message

__all__ = ["MOST_MESSAGES", "request_messages"]

MOST_MESSAGES: Final = 64
"""Different requests that are sent in turn."""
_MOST_BYTES: Final = 2**24
"""The generator reads its job from a pipe; a few large requests are as good as many."""


def request_messages(
    samples: Mapping[str, np.ndarray],
    rows: int,
    *,
    model: str = "model",
    version: str = "",
    host: str = "127.0.0.1",
    headers: Sequence[tuple[str, str]] = (),
) -> tuple[bytes, ...]:
    """Write requests over the binary extension.

    Args:
        samples: arrays by input, with equally many rows, which are taken in turn.
        rows: of one request.
        model: its name.
        version: of the model; empty: the server chooses.
        host: value of `Host`.
        headers: besides Host, Content-Type and lengths.

    Returns:
        2 to `MOST_MESSAGES` messages, fewer the larger they are.
    """
    codec = RestCodec()
    messages = []
    row_bytes = sum(array[:1].nbytes for array in samples.values()) * rows
    path = (
        f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "") + "/infer"
    )
    for index in range(max(2, min(MOST_MESSAGES, _MOST_BYTES // max(row_bytes, 1)))):
        tensors = [Tensor.of(name, array) for name, array in take_rows(samples, rows, index * rows).items()]
        body = codec.encode_request(InferRequest(model, tensors), binary=True)
        fields = [("Content-Type", body.content_type), *headers]
        if body.json_length is not None:
            fields.append(("Inference-Header-Content-Length", str(body.json_length)))
        messages.append(http_message(host, path, body.chunks, fields))
    return tuple(messages)
