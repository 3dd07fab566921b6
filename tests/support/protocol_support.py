"""Requests for the codecs' tests: written by hand, drawn by hypothesis, and damaged on purpose."""

from __future__ import annotations

import json
import random
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serinus.errors import SerinusError
from serinus.protocol.datatypes import BYTES, NUMPY_DTYPES
from serinus.protocol.raw import round_to_bfloat16
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferRequest, InferResponse, Limits, Tensor

ALL_DATATYPES = tuple(NUMPY_DTYPES)

DAMAGE = b'[]{},:"0123456789-.eE \\\n\x00\xff'
"""Bytes that matter to a JSON parser."""

# fmt: off
ODD_NUMBERS = (
    "-0", "0", "-0.0", "1.0", "1e2", "1E+2", "1e-5", "01", "1.", "-", ".5", "true", "false", "null", "1e400",
    "-1e400", "1e39", "3.5e38", "65520", "65519", "4.9e-324", "2.4703282292062327e-324", "2.4703282292062328e-324",
    "1.7976931348623158e308", "1.7976931348623159e308", "9007199254740993", "9007199254740993.0",
    "18446744073709551615", "18446744073709551616", "-9223372036854775808", "-9223372036854775809",
    "9223372036854775807", "0.000000000000000000000000000001", "100000000000000000000000.5e-10", "1e", "1e+", "+1",
    "1_0", "0x1", "NaN", "Infinity", "1e-99999999999", "0e99999999999",
)
# fmt: on


def plain_codec(limits: Limits | None = None) -> RestCodec:
    """A codec that never asks the compiled kernel."""
    codec = RestCodec(limits or Limits())
    codec._kernel = None
    return codec


def body(*inputs: dict[str, Any], **members: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **members}).encode()


def tensor_json(datatype: str, shape: list[int], data: Any, name: str = "x", **members: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **members}


def values_of(array: np.ndarray) -> Any:
    """Something that compares equal exactly when two arrays are the same, NaN and the sign of zero included."""
    return array.tolist() if array.dtype == object else (str(array.dtype), array.tobytes())


def tensor_facts(tensor: Tensor) -> tuple[Any, ...]:
    assert tensor.data.dtype == NUMPY_DTYPES[tensor.datatype]
    assert tensor.data.shape == tensor.shape
    assert tensor.data.flags.aligned
    assert tensor.data.flags.c_contiguous
    return tensor.name, tensor.datatype, tensor.shape, dict(tensor.parameters), values_of(tensor.data)


def request_facts(request: InferRequest) -> tuple[Any, ...]:
    outputs = request.outputs
    return (
        request.model_name,
        request.model_version,
        request.id,
        request.binary,
        dict(request.parameters),
        None if outputs is None else [(output.name, dict(output.parameters)) for output in outputs],
        [tensor_facts(tensor) for tensor in request.inputs],
    )


def response_facts(response: InferResponse) -> tuple[Any, ...]:
    return (
        response.model_name,
        response.model_version,
        response.id,
        dict(response.parameters),
        [tensor_facts(tensor) for tensor in response.outputs],
    )


def outcome(codec: RestCodec, document: bytes, json_length: int | None = None) -> Any:
    """What a codec makes of a body: the request's facts, or the error's class and message."""
    try:
        return request_facts(codec.decode_request(document, model_name="m", json_length=json_length))
    except SerinusError as error:
        return type(error), str(error)


_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


@st.composite
def tensors(draw: st.DrawFn, name: str = "x", *, text_only: bool = False, finite: bool = False) -> Tensor:
    """Any tensor: every datatype, any shape of up to 4 dimensions, empty ones included."""
    datatype = draw(st.sampled_from(ALL_DATATYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    if datatype == BYTES:
        element = _TEXT.map(str.encode) if text_only else st.binary(max_size=8)
        array = np.empty(prod(shape), dtype=object)
        array[:] = draw(st.lists(element, min_size=prod(shape), max_size=prod(shape)))
        return Tensor(name, BYTES, shape, array.reshape(shape))
    dtype = NUMPY_DTYPES[datatype]
    elements = (
        st.floats(width=dtype.itemsize * 8, allow_nan=not finite, allow_infinity=not finite)
        if dtype.kind == "f"
        else None
    )
    array = draw(hnp.arrays(dtype, shape, elements=elements))
    if datatype == "BF16":
        array = round_to_bfloat16(array)
        if finite:
            array = np.where(np.isfinite(array), array, np.float32(0))
    return Tensor(name, datatype, shape, array)


@st.composite
def tensor_lists(draw: st.DrawFn, **options: bool) -> list[Tensor]:
    names = draw(st.lists(_TEXT.filter(bool), min_size=1, max_size=3, unique=True))
    return [draw(tensors(name, **options)) for name in names]


def _number(rnd: random.Random) -> str:
    choice = rnd.random()
    if choice < 0.3:
        return str(rnd.randint(-300, 300))
    if choice < 0.4:
        return str(rnd.randint(-(2**66), 2**66))
    if choice < 0.6:
        return repr(rnd.gauss(0, 1))
    if choice < 0.7:
        return repr(rnd.gauss(0, 1) * 10.0 ** rnd.randint(-320, 306))
    if choice < 0.75:
        return rnd.choice((*ODD_NUMBERS, '"a"', "[]"))
    if choice < 0.85:
        return f"{rnd.randint(0, 999)}.{''.join(rnd.choice('0123456789') for _ in range(rnd.randint(1, 30)))}"
    return f"{''.join(rnd.choice('123456789') for _ in range(rnd.randint(1, 24)))}e{rnd.randint(-340, 310)}"


def _fitting(rnd: random.Random, datatype: str) -> str:
    if datatype == "BOOL":
        return rnd.choice(("true", "false", "0", "1"))
    if datatype == BYTES:
        return rnd.choice(('"a"', '"é"', '"\\u0041"', '""', '"]"', '"\\""'))
    if datatype.startswith("UINT"):
        return str(rnd.randint(0, 200))
    if datatype.startswith("INT"):
        return str(rnd.randint(-100, 100))
    return rnd.choice((repr(rnd.gauss(0, 1)), str(rnd.randint(-9, 9)), "null"))


def _nested(shape: list[int], values: list[str]) -> str:
    if not shape:
        return values.pop()
    return f"[{','.join(_nested(shape[1:], values) for _ in range(shape[0]))}]"


def _random_input(rnd: random.Random, name: str) -> str:
    datatype = rnd.choice(ALL_DATATYPES)
    shape = [rnd.randint(0, 3) for _ in range(rnd.randint(0, 3))]
    fits = rnd.random() < 0.7
    values = [_fitting(rnd, datatype) if fits else _number(rnd) for _ in range(prod(shape))]
    data = _nested(shape, values) if shape and rnd.random() < 0.5 else f"[{', '.join(values)}]"
    members = [f'"name":"{name}"', f'"shape":{shape}', f'"datatype":"{datatype}"', f'"data" : {data}']
    if rnd.random() < 0.3:
        rnd.shuffle(members)
    if rnd.random() < 0.2:
        members.insert(rnd.randint(0, 4), '"parameters":{"a":1,"data":2}')
    return f"{{{', '.join(members)}}}"


def random_body(rnd: random.Random) -> bytes:
    """An inference request that is right about half of the time, and else wrong in its values or its bytes."""
    members = [f'"inputs":[{",".join(_random_input(rnd, f"x{i}") for i in range(rnd.randint(1, 3)))}]']
    if rnd.random() < 0.4:
        ids = (
            '"id":"abc"',
            '"id":""',
            '"id":null',
            '"id":"a\\n"',
            '"id":5',
            '"id":"é"',
            '"i\\u0064":"e"',
            '"id":"a","id":"b"',
        )
        members.append(rnd.choice(ids))
    if rnd.random() < 0.2:
        members.append('"parameters":{"binary_data_output":true}')
    if rnd.random() < 0.2:
        members.append('"outputs":[{"name":"y","parameters":{"binary_data":false}}]')
    if rnd.random() < 0.1:
        members.append('"else":{"inputs":[{"data":[1]}]}')
    rnd.shuffle(members)
    document = bytearray(f"{{{','.join(members)}}}".encode())
    if rnd.random() < 0.4:
        damage(rnd, document)
    return bytes(document)


def damage(rnd: random.Random, document: bytearray) -> None:
    """Change, insert or delete up to three bytes."""
    for _ in range(rnd.randint(1, 3)):
        if not document:
            return
        place, choice = rnd.randrange(len(document)), rnd.random()
        if choice < 0.3:
            del document[place : place + rnd.randint(1, 4)]
        elif choice < 0.6:
            document[place:place] = bytes([rnd.choice(DAMAGE)])
        else:
            document[place] = rnd.choice(DAMAGE)
