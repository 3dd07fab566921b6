"""Inference-Header-Content-Length: where the JSON ends and the tensors begin (extension_binary_data.md)."""

from __future__ import annotations

import struct

import orjson
import pytest

from http_support import Raw
from rest_support import rest, wire

INFER = "/v2/models/row/infer"
TENSOR = struct.pack("<3f", 1, 2, 3)
HEAD = orjson.dumps(
    {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}]}
)
JSON = orjson.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]})
LENGTH = "Inference-Header-Content-Length"


async def test_the_length_says_where_the_tensors_begin_and_none_at_all_means_one_raw_input():
    async with rest("row") as server:
        plain = await server.ask("POST", INFER, JSON)
        split = await server.ask("POST", INFER, HEAD + TENSOR, {LENGTH: str(len(HEAD))})
        assert plain.status == split.status == 200
        assert split.json["outputs"] == plain.json["outputs"]
        whole = await server.ask("POST", INFER, JSON, {LENGTH: str(len(JSON))})
        assert whole.json["outputs"] == plain.json["outputs"]
        raw = await server.ask("POST", INFER, TENSOR, {LENGTH: "0"})
        assert raw.status == 200
        assert raw.body.endswith(struct.pack("<2f", *plain.json["outputs"][0]["data"])), "raw in, raw out"


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 20, "12, 13"])
async def test_a_length_that_is_no_number_is_refused_by_name(value: str):
    async with rest("row") as server:
        answer = await server.ask("POST", INFER, HEAD + TENSOR, {LENGTH: value})
        assert answer.status == 400
        assert answer.json["error"] == f"header {LENGTH} is '{value}'; expected the JSON part's bytes"


@pytest.mark.parametrize("length", ["0", "5", "70"])
async def test_a_model_that_is_not_there_is_told_before_what_is_wrong_with_the_body(length: str):
    async with rest("row") as server:
        answer = await server.ask("POST", "/v2/models/nobody/infer", HEAD + TENSOR, {LENGTH: length})
        assert answer.status == 404
        assert "nobody" in answer.json["error"]


@pytest.mark.parametrize(("second", "status"), [(len(JSON), 200), (5, 400)], ids=["the same", "another"])
async def test_a_length_that_is_given_twice_is_one_length(second: int, status: int):
    """One length, extension_binary_data.md; fields of one name, RFC 9110, 5.3."""
    async with rest("row") as server:
        client = await Raw.open(server.port)
        head, end, body = wire("POST", INFER, JSON, {LENGTH: str(len(JSON))}).partition(b"\r\n\r\n")
        await client.send(head + f"\r\n{LENGTH}: {second}".encode() + end + body)
        assert (await client.answer()).status == status
        assert (await server.ask_on(client, "POST", INFER, JSON)).status == 200, "the connection lives on"
        await client.close()
