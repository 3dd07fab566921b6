"""Answers are compressed only where it pays: JSON above a size, unless the server or the client insists."""

from __future__ import annotations

import zlib

import numpy as np
import orjson
import pytest

from rest_support import rest
from serinus.server.rest.content import refuses_plain

ECHO = "/v2/models/echo/infer"
SMALL, LARGE = 10, 20_000
"""Values of an FP64 tensor: 16 KiB of JSON or raw bytes lie between them."""

CASES = {
    "go's client, large JSON": ({}, LARGE, False, "gzip", True),
    "go's client, small JSON": ({}, SMALL, False, "gzip", False),
    "go's client, large tensor": ({}, LARGE, True, "gzip", False),
    "asked for tensors too": ({"compress": "all"}, LARGE, True, "gzip", True),
    "asked for small ones too": ({"compress_min_bytes": 0}, SMALL, False, "gzip", True),
    "asked for none": ({"compress": "off", "compress_min_bytes": 0}, LARGE, False, "gzip", False),
    "a client that takes nothing plain": ({}, SMALL, True, "gzip, identity;q=0", True),
    "a client that takes nothing plain of a server that compresses nothing": (
        {"compress": "off"},
        SMALL,
        False,
        "deflate, *;q=0",
        True,
    ),
}


@pytest.mark.parametrize(("settings", "count", "binary", "accept", "compressed"), CASES.values(), ids=CASES)
async def test_what_is_compressed(settings, count, binary, accept, compressed):
    values = np.random.default_rng(0).normal(size=count)
    document = {
        "inputs": [{"name": "x", "shape": [count], "datatype": "FP64", "data": values.tolist()}],
        "parameters": {"binary_data_output": binary},
    }
    async with rest("echo", **settings) as server:
        plain = await server.ask("POST", ECHO, document)
        answer = await server.ask("POST", ECHO, document, {"Accept-Encoding": accept})
    assert (answer.status, "content-encoding" in answer.headers) == (200, compressed)
    body = zlib.decompress(answer.body, 47) if compressed else answer.body
    assert body == plain.body
    length = int(answer.headers.get("inference-header-content-length", len(body)))
    assert orjson.loads(body[:length])["outputs"][0]["shape"] == [count]


@pytest.mark.parametrize(
    ("field", "refused"),
    [
        (b"gzip", False),
        (b"gzip, identity;q=0", True),
        (b"gzip, identity; q=0.000", True),
        (b"gzip, *;q=0", True),
        (b"gzip, *;q=0, identity", False),
        (b"gzip, identity;q=0.1", False),
        (b"*", False),
        (b"", False),
    ],
)
def test_a_client_refuses_the_plain_form_by_a_weight_of_zero(field: bytes, refused: bool):
    assert refuses_plain(field) == refused


async def test_infinities_in_json_are_as_the_server_was_told():
    body = orjson.dumps(
        {"inputs": [{"name": "x", "shape": [3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}]}
    )
    raw = np.array([1, np.inf, np.nan], np.float32).tobytes()
    fields = {"Inference-Header-Content-Length": str(len(body))}
    found = {}
    for setting in ("null", "tokens", "refuse"):
        async with rest("echo", json_not_finite=setting) as server:
            answer = await server.ask("POST", ECHO, body + raw, fields)
            found[setting] = (answer.status, answer.body.partition(b'"data":')[2])
            assert answer.status == 200 or b"'x' holds an infinity" in answer.body
    assert found == {
        "null": (200, b"[1.0,null,null]}]}"),
        "tokens": (200, b"[1.0,Infinity,NaN]}]}"),
        "refuse": (400, b""),
    }
