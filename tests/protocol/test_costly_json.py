"""Bodies of many tiny values: their depth is told from the text, and their strings are made by parts, with the same results."""

from __future__ import annotations

import gc
import random

import numpy as np
import orjson
import pytest

from serinus.errors import InvalidInput
from serinus.protocol import json_codec, json_kernel
from serinus.protocol.json_codec import _depth, _depth_of_text, load_value
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import Limits

DEEP = Limits(json_depth=1000)


def nested(depth: int, leaf: str = "") -> str:
    return "[" * depth + leaf + "]" * depth


TEXTS = {
    "flat": "[" + ",".join(["[]"] * 1000) + "]",
    "brackets in strings": "[" + ",".join(['"[[[{{{"'] * 500) + ",[[1]]]",
    "escaped quotes": "[" + ",".join([r'"\"[["', r'"\\"', r'"\\\"[[["', "[[[]]]"] * 300) + "]",
    "objects": "[" + ",".join(['{"a[":{"b":[]}}'] * 300) + "]",
    "deep": nested(900, '"]]]]"'),
}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("text", TEXTS)
def test_the_depth_of_a_text_is_that_of_its_document(text, chunk, monkeypatch):
    monkeypatch.setattr(json_codec, "_LARGE_BYTES", chunk)
    body = TEXTS[text].encode()
    assert _depth_of_text(body) == _depth(orjson.loads(body), DEEP)


def test_the_depth_of_random_texts_is_that_of_their_documents():
    source = random.Random(0)

    def value(depth: int) -> object:
        kind = source.randrange(4 if depth < 8 else 2)
        if kind == 0:
            return "".join(source.choices('[]{}"\\aé\n', k=source.randrange(6)))
        if kind == 1:
            return source.random()
        children = [value(depth + 1) for _ in range(source.randrange(4))]
        return children if kind == 2 else {f'{"[" * index}"{index}': child for index, child in enumerate(children)}

    for _ in range(300):
        document = [value(1)]
        assert _depth_of_text(orjson.dumps(document)) == _depth(document, DEEP)


def test_nesting_is_refused_in_a_body_of_many_arrays():
    body = ("[" + "[]," * 5000 + nested(70) + "]").encode()
    with pytest.raises(InvalidInput, match="max_json_depth"):
        load_value(body, "the request body", Limits())
    assert len(load_value(body, "the request body", Limits(json_depth=71))) == 5001


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was_found(enabled):
    large = b'["' + b"x" * (2 << 20) + b'"]'
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        load_value(large, "the request body", Limits())
        assert gc.isenabled() is enabled
        with pytest.raises(InvalidInput):
            load_value(large[:-1], "the request body", Limits())
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("count", [2, 3, 4, 5, 9])
def test_strings_that_are_made_by_parts_are_those_that_came(count, monkeypatch):
    monkeypatch.setattr(json_kernel, "_TEXTS", 4)
    words = [f"word {index}" * (index % 3) for index in range(count)]
    body = orjson.dumps({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [count], "data": words}]})
    (tensor,) = RestCodec().decode_request(body, model_name="m").inputs
    assert tensor.data.tolist() == [word.encode() for word in words]
    assert tensor.data.dtype == np.dtype(object)
