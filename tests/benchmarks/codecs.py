"""Microseconds per call of the codecs: `python tests/benchmarks/codecs.py [--repeat N]`.

Best of N runs, so that what else the machine does counts little; one thread, no sockets. "orjson" is the same call without the
compiled kernel, "parse" orjson alone on the same body, as a yardstick; "odd" a tensor at an odd address, which has to be copied.
"""

from __future__ import annotations

import argparse
import json
import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import orjson

from serinus.protocol import proto_codec
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferRequest, InferResponse, Tensor


def microseconds(call: Callable[[], Any], repeat: int) -> float:
    """Time one call: as many per run as take ~20 ms, the best of `repeat` runs."""
    timer = timeit.Timer(call)
    number = max(1, int(0.02 / max(timer.timeit(3) / 3, 1e-7)))
    return min(timer.repeat(repeat, number)) / number * 1e6


def show(name: str, **figures: float) -> None:
    """Print one line of the table."""
    print(f"{name:<34}" + "".join(f"{key:>10} {value:9.2f}" for key, value in figures.items()))


def rows_of_features(rows: int, repeat: int) -> None:
    """Time requests and responses of the fraud model's shape: rows of 30 features in, one score per row out."""
    generator = np.random.default_rng(0)
    codec, plain = RestCodec(), RestCodec()
    plain._kernel = None
    values = generator.normal(size=(rows, 30)).astype(np.float32)
    request = InferRequest("m", [Tensor.of("x", values)], id="42")
    short = [round(value, 6) for value in values.astype(float).reshape(-1).tolist()]
    for name, data in (("6 decimals", short), ("17 digits, nested", values.astype(float).tolist())):
        tensor = {"name": "x", "shape": [rows, 30], "datatype": "FP32", "data": data}
        text = json.dumps({"id": "42", "inputs": [tensor]}).encode()
        show(
            f"{rows} x 30 JSON in, {name}",
            kernel=microseconds(partial(codec.decode_request, text, model_name="m"), repeat),
            orjson=microseconds(partial(plain.decode_request, text, model_name="m"), repeat),
            parse=microseconds(partial(orjson.loads, text), repeat),
        )
    encoded = codec.encode_request(request, binary=True)
    body, length = encoded.to_bytes(), encoded.json_length
    message = proto_codec.encode_request(request)
    typed = proto_codec.encode_request(request, raw=False)
    response = InferResponse("m", [Tensor.of("y", generator.random(rows).astype(np.float32))], id="42")
    raw, plain_request = InferRequest("m", [], binary=True), InferRequest("m", [])
    show(
        f"{rows} x 30 in",
        binary=microseconds(lambda: codec.decode_request(body, model_name="m", json_length=length), repeat),
        gRPC=microseconds(lambda: proto_codec.decode_request(message), repeat),
        typed=microseconds(lambda: proto_codec.decode_request(typed), repeat),
    )
    show(
        f"{rows} scores out",
        JSON=microseconds(lambda: codec.encode_response(response, plain_request), repeat),
        binary=microseconds(lambda: codec.encode_response(response, raw), repeat),
        gRPC=microseconds(lambda: proto_codec.encode_response(response, raw), repeat),
        typed=microseconds(lambda: proto_codec.encode_response(response, plain_request), repeat),
    )


def image(repeat: int) -> None:
    """Time one 1 x 224 x 224 x 3 FP32 tensor."""
    values = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    codec = RestCodec()
    request = InferRequest("m", [Tensor.of("x", values)])
    encoded = codec.encode_request(request, binary=True)
    body, length = encoded.to_bytes(), encoded.json_length or 0
    odd = body[:length] + b" " + body[length:]
    message = proto_codec.encode_request(request)
    text = codec.encode_request(request, binary=False).to_bytes()
    show(
        "image in",
        binary=microseconds(lambda: codec.decode_request(body, model_name="m", json_length=length), repeat),
        odd=microseconds(lambda: codec.decode_request(odd, model_name="m", json_length=length + 1), repeat),
        gRPC=microseconds(lambda: proto_codec.decode_request(message), repeat),
        JSON=microseconds(lambda: codec.decode_request(text, model_name="m"), repeat),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Microseconds per call of the codecs.")
    parser.add_argument("--repeat", type=int, default=15, help="runs to take the best of")
    options = parser.parse_args()
    for count in (1, 64, 1024):
        rows_of_features(count, options.repeat)
    image(options.repeat)
