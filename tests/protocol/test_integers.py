"""Where a JSON number stops being a certain integer: 2^53 for those written as floats, the datatype's bounds for all."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from protocol_support import plain_codec
from serinus.errors import InvalidInput, TooLarge
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import Limits

CODECS = [pytest.param(RestCodec(), id="kernel"), pytest.param(plain_codec(), id="plain")]
BOUNDS = {
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, 2**64 - 1),
}


def read(codec: RestCodec, datatype: str, written: str) -> Any:
    """The one value of a request whose data is written so."""
    text = '{"inputs":[{"name":"x","shape":[1],"datatype":"%s","data":[%s]}]}' % (datatype, written)  # noqa: UP031
    (value,) = codec.decode_request(text.encode(), model_name="m").inputs[0].data.tolist()
    assert type(value) is int
    return value


def refusal(codec: RestCodec, datatype: str, written: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(codec, datatype, written)
    return str(caught.value)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("datatype", BOUNDS)
def test_the_bounds_of_a_datatype_are_taken_and_the_next_integers_refused(codec: RestCodec, datatype: str):
    low, high = BOUNDS[datatype]
    assert [read(codec, datatype, str(value)) for value in (low, high)] == [low, high]
    for beyond in (low - 1, high + 1):
        said = refusal(codec, datatype, str(beyond))
        assert f"{datatype} holds" in said
        assert f"{low} to {high}" in said


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize(
    "written", ["9007199254740992.0", "9007199254740991.0", "9.007199254740992e15", "9007199254740992e0", "3e15", "0.0"]
)
def test_a_float_up_to_two_to_the_53_is_the_integer_that_it_says(codec: RestCodec, sign: str, written: str):
    assert read(codec, "INT64", sign + written) == int(float(sign + written))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("written", ["9007199254740994.0", "9007199254740994e0", "1e16", "1e300"])
def test_a_float_beyond_two_to_the_53_is_no_certain_integer(codec: RestCodec, sign: str, written: str):
    assert float(written) >= math.nextafter(2.0**53, math.inf)
    assert "INT64 holds the integers -9223372036854775808 to 9223372036854775807" in refusal(
        codec, "INT64", sign + written
    )


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**62 + 1, 10**18 + 7])
def test_an_integer_beyond_two_to_the_53_arrives_to_the_last_digit(codec: RestCodec, value: int):
    assert read(codec, "INT64", str(value)) == value


@pytest.mark.parametrize("codec", CODECS)
def test_a_large_integer_beside_a_float_keeps_its_last_digit(codec: RestCodec):
    text = '{"inputs":[{"name":"x","shape":[3],"datatype":"INT64","data":[9007199254740993, 2.0, -9007199254740993]}]}'
    got = codec.decode_request(text.encode(), model_name="m").inputs[0].data.tolist()
    assert got == [2**53 + 1, 2, -(2**53) - 1]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("place", range(4))
def test_the_message_names_the_place_of_the_value_that_is_wrong(codec: RestCodec, place: int):
    flat = [1, 2, 3, 4]
    flat[place] = 300
    nested = [flat[:2], flat[2:]]
    for data, where in ((flat, f"data[{place}]"), (nested, f"data[{place // 2}][{place % 2}]")):
        body = json.dumps({"inputs": [{"name": "x", "shape": [2, 2], "datatype": "UINT8", "data": data}]}).encode()
        with pytest.raises(InvalidInput) as caught:
            codec.decode_request(body, model_name="m")
        assert str(caught.value) == f"input 'x': {where} is 300, UINT8 holds 0 to 255"


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("most", "fits"), [(32, True), (31, False)])
def test_the_bytes_of_a_tensor_are_bounded_to_the_byte(plain: bool, most: int, fits: bool):
    codec = plain_codec(Limits(tensor_bytes=most)) if plain else RestCodec(Limits(tensor_bytes=most))
    body = b'{"inputs":[{"name":"x","shape":[4],"datatype":"INT64","data":[1,2,3,4]}]}'
    if fits:
        assert codec.decode_request(body, model_name="m").inputs[0].data.tolist() == [1, 2, 3, 4]
    else:
        with pytest.raises(TooLarge, match="32 bytes decoded, the limit is 31"):
            codec.decode_request(body, model_name="m")
