"""The compiled JSON kernel: the same results as the ordinary path, every number to the last bit, no byte out of bounds."""

from __future__ import annotations

import json
import random
import sys
import threading
from math import prod
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import serinus.native as native
from depth import draws
from protocol_support import ODD_NUMBERS, body, damage, outcome, plain_codec, random_body, tensor_json
from representative import every
from serinus.native.json import json_powers
from serinus.protocol.datatypes import NUMPY_DTYPES
from serinus.protocol.json_kernel import JsonKernel
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferRequest, Limits, Tensor

KERNEL = JsonKernel.open(Limits())
pytestmark = pytest.mark.skipif(KERNEL is None, reason="the kernels are not built: python -m serinus.native.build")
FOLDER = Path(native.__file__).parent / "json"


def took(document: bytes) -> bool:
    """Whether the kernel itself decodes the body."""
    assert KERNEL is not None
    return KERNEL.decode_request(document, None, "m", "", {}) is not None


def read(text: str, datatype: str = "FP64") -> float | None:
    """One number through the kernel; None where it leaves it to the ordinary path."""
    assert KERNEL is not None
    document = b'{"inputs":[{"name":"x","shape":[1],"datatype":"%b","data":[%b]}]}' % (datatype.encode(), text.encode())
    request = KERNEL.decode_request(document, None, "m", "", {})
    return None if request is None else request.inputs[0].data[0].item()


def agrees(text: str) -> None:
    value = read(text)
    if value is not None:
        expected = orjson.loads(text)
        assert np.float64(value).tobytes() == np.float64(expected).tobytes(), text


@pytest.mark.parametrize("seed", every(2, range(4)))
def test_both_paths_answer_alike_to_right_and_wrong_requests(seed: int):
    rnd = random.Random(seed)
    codec, plain = RestCodec(), plain_codec()
    count, taken = draws(2500, 2500, 1000), 0
    for _ in range(count):
        document = random_body(rnd)
        assert outcome(codec, document) == outcome(plain, document), document
        taken += took(document)
    assert taken > 0.16 * count


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("datatype", [name for name, dtype in NUMPY_DTYPES.items() if dtype.kind in "iuf"])
def test_the_kernel_takes_a_tensor_of_the_very_limit_and_leaves_one_that_is_a_byte_larger(
    datatype: str, shape: tuple[int, ...]
):
    size = prod(shape) * NUMPY_DTYPES[datatype].itemsize
    document = body(tensor_json(datatype, list(shape), [1] * prod(shape)))
    for most, is_taken in [(size, True), (size - 1, False)]:
        kernel = JsonKernel.open(Limits(tensor_bytes=most))
        assert kernel is not None
        assert (kernel.decode_request(document, None, "m", "", {}) is not None) is is_taken


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "UINT8"])
@pytest.mark.parametrize("count", [40_000, 200_000])
def test_the_numbers_of_a_large_body_keep_no_more_memory_than_four_times_its_bytes(datatype: str, count: int):
    document = body(tensor_json(datatype, [count], [1] * count))
    assert KERNEL is not None
    request = KERNEL.decode_request(document, None, "m", "", {})
    assert request is not None
    array = request.inputs[0].data
    while array.base is not None:
        array = array.base
    assert array.nbytes <= 4 * len(document) + 64


def test_both_paths_answer_alike_to_damaged_real_requests():
    rnd = random.Random(7)
    codec, plain = RestCodec(), plain_codec()
    whole = body(
        tensor_json("FP32", [2, 3], [[0.125, -1e-7, 3], [1e10, 5.5, 6]]),
        tensor_json("INT64", [2], [2**53 + 1, -5], name="ids", parameters={"k": "v"}),
        tensor_json("BYTES", [2, 1], ["C0154", ""], name="texts"),
        id="42",
        outputs=[{"name": "y", "parameters": {"classification": 2}}],
        parameters={"timeout": 1000},
    )
    assert took(whole)
    for _ in range(draws(10_000, 10_000, 3000)):
        document = bytearray(whole)
        damage(rnd, document)
        assert outcome(codec, bytes(document)) == outcome(plain, bytes(document)), bytes(document)


def test_both_paths_answer_alike_to_damaged_requests_with_raw_tensors():
    rnd = random.Random(8)
    codec, plain = RestCodec(), plain_codec()
    tensors = [
        Tensor.of("f", np.array([[0.5, 2]], np.float32)),
        Tensor.of("t", np.array([b"a", b"\xff"], object)),
        Tensor.of("b", np.array([True, False])),
        Tensor("h", "BF16", (1,), np.array([1.5], np.float32)),
    ]
    encoded = codec.encode_request(InferRequest("m", tensors, id="i", binary=True), binary=True)
    whole, length = encoded.to_bytes(), encoded.json_length or 0
    for _ in range(draws(10_000, 10_000, 3000)):
        document = bytearray(whole[:length])
        if rnd.random() < 0.5:
            damage(rnd, document)
        data = bytearray(whole[length:])
        if rnd.random() < 0.5:
            damage(rnd, data)
        sent, claimed = bytes(document + data), max(1, len(document) + rnd.choice((0, 0, 0, 0, -1, 1)))
        assert outcome(codec, sent, claimed) == outcome(plain, sent, claimed), sent


@pytest.mark.parametrize(
    "texts",
    [
        ["one"],
        ["one", "two, three"],
        [""],
        [],
        ["S\u00e3o"],
        ["a", "\u00e3"],
        ['a"b'],
        ["back\\slash"],
        ["\x7f"],
        ["[{:"],
    ],
)
def test_strings_come_out_as_by_the_ordinary_path_however_often_the_form_was_seen(texts: list[str]):
    codec, plain = RestCodec(), plain_codec()
    for extra in ("", "x", "\u00e9", "yy"):
        varied = [text + extra for text in texts]
        document = body(
            tensor_json("BYTES", [len(varied)], varied, name="t"), tensor_json("FP32", [1], [0.5]), id=extra
        )
        assert outcome(codec, document) == outcome(plain, document)
        decoded = codec.decode_request(document, model_name="m").inputs[0].data.tolist()
        assert decoded == [text.encode() for text in varied]


def test_requests_that_differ_in_their_plain_strings_share_a_template():
    kernel = JsonKernel.open(Limits())
    assert kernel is not None
    for number in range(5):
        document = body(tensor_json("BYTES", [2], [f"id-{number}", "BRL"], name="t"))
        assert kernel.decode_request(document, None, "m", "", {}) is not None
    (workspace,) = kernel._free
    assert len(workspace.templates) == 1


def test_every_cut_of_a_request_is_refused_alike():
    whole = body(tensor_json("FP32", [2, 2], [[1, 2.5], [3, 4e1]]), tensor_json("BOOL", [1], [True], name="b"), id="i")
    codec, plain = RestCodec(), plain_codec()
    for end in range(len(whole)):
        assert outcome(codec, whole[:end]) == outcome(plain, whole[:end])
        assert not took(whole[:end])


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(5e-324)
@example(2.2250738585072014e-308)
@example(2.225073858507201e-308)
@example(1.7976931348623157e308)
@example(-0.0)
def test_a_double_comes_back_to_the_bit(value: float):
    for text in (repr(value), f"{value:.17e}", f"{value:.18e}"):
        found = read(text)
        assert found is not None
        assert np.float64(found).tobytes() == np.float64(value).tobytes()


@given(st.integers(0, 10**22), st.integers(-360, 330))
@example(9007199254740993, 0)
@example(9007199254740992999999, -6)
@example(17976931348623158, 292)
@example(2470328229206232720, -342)
def test_any_significand_and_exponent_is_rounded_once(significand: int, exponent: int):
    agrees(f"{significand}e{exponent}")
    agrees(f"-{significand}.0E{exponent:+d}")
    agrees(f"0.{significand}e{exponent}")


@given(st.integers(1, 2**53 - 1), st.integers(-30, 40))
def test_halfway_cases_go_to_even(mantissa: int, power: int):
    """A value midway between two doubles, written out in full."""
    exact = (2 * mantissa + 1) * 2**power if power >= 0 else None
    text = str(exact) if exact is not None else f"{(2 * mantissa + 1) * 5**-power}e{power}"
    agrees(text)
    agrees(text.replace("e", ".0e") if "e" in text else text + ".0")


@pytest.mark.slow
def test_random_numbers_agree_with_the_ordinary_path():
    generator = np.random.default_rng(3)
    bits = generator.integers(0, 2**64, draws(200_000, 50_000), dtype=np.uint64).view(np.float64)
    values = bits[np.isfinite(bits)].tolist()
    texts = [repr(value) for value in values] + [f"{value:.{digits}g}" for digits in (3, 9, 15, 19) for value in values]
    document = b'{"inputs":[{"name":"x","shape":[%d],"datatype":"FP64","data":[%b]}]}' % (
        len(texts),
        ",".join(texts).encode(),
    )
    assert KERNEL is not None
    request = KERNEL.decode_request(document, None, "m", "", {})
    assert request is not None
    expected = np.array([float(text) for text in texts])
    np.testing.assert_array_equal(request.inputs[0].data.view(np.uint64), expected.view(np.uint64))


def test_floats_of_32_bits_are_the_rounded_doubles():
    generator = np.random.default_rng(4)
    texts = [
        repr(value) for value in (generator.normal(size=20_000) * 10.0 ** generator.integers(-46, 38, 20_000)).tolist()
    ]
    document = b'{"inputs":[{"name":"x","shape":[%d],"datatype":"FP32","data":[%b]}]}' % (
        len(texts),
        ",".join(texts).encode(),
    )
    assert KERNEL is not None
    request = KERNEL.decode_request(document, None, "m", "", {})
    assert request is not None
    expected = np.asarray([float(text) for text in texts], np.float64).astype(np.float32)
    np.testing.assert_array_equal(request.inputs[0].data.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("text", ODD_NUMBERS)
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "INT64", "UINT64", "INT8", "BOOL"])
def test_odd_numbers_are_read_or_refused_alike(text: str, datatype: str):
    document = b'{"inputs":[{"name":"x","shape":[1],"datatype":"%b","data":[%b]}]}' % (datatype.encode(), text.encode())
    assert outcome(RestCodec(), document) == outcome(plain_codec(), document)


@pytest.mark.parametrize("datatype", ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"])
def test_integers_are_taken_to_the_ends_of_their_range_and_no_further(datatype: str):
    info = np.iinfo(datatype.lower())
    assert read(str(info.min), datatype) == info.min
    assert read(str(info.max), datatype) == info.max
    assert read(str(int(info.min) - 1), datatype) is None
    assert read(str(int(info.max) + 1), datatype) is None
    assert read("1.0", datatype) is None
    assert read("1e0", datatype) is None


USUAL = [
    tensor_json("FP32", [1, 3], [0.5, 1, -2e-3]),
    tensor_json("FP32", [1, 3], [[0.5, 1, -2e-3]]),
    {"data": [1, 2], "name": "x", "shape": [2], "datatype": "INT32"},
    tensor_json("BOOL", [2], [True, 0]),
    tensor_json("FP16", [2], [0.1, 3]),
    tensor_json("BF16", [2], [0.1, 3]),
    tensor_json("UINT64", [2], [2**64 - 1, 0]),
    tensor_json("FP64", [0], []),
    tensor_json("FP64", [2, 0], [[], []]),
    tensor_json("BYTES", [1], ['a] " b']),
]


@pytest.mark.parametrize("tensor", USUAL, ids=json.dumps)
def test_the_kernel_takes_what_clients_usually_send(tensor: dict[str, object]):
    for document in (
        body(tensor),
        body(tensor, id="42"),
        json.dumps({"id": "é", "inputs": [tensor]}, indent=2).encode(),
    ):
        if b"\\u" not in document:
            assert took(document), document
        assert outcome(RestCodec(), document) == outcome(plain_codec(), document)


def test_a_large_body_is_taken_too():
    values = np.random.default_rng(5).normal(size=(500, 30))
    document = body(tensor_json("FP32", [500, 30], values.tolist()), tensor_json("INT64", [3], [1, 2, 3], name="z"))
    assert len(document) > 64 * 1024
    assert took(document)
    request = RestCodec().decode_request(document, model_name="m")
    np.testing.assert_array_equal(request.inputs[0].data, values.astype(np.float32), strict=True)
    assert request.inputs[1].data.tolist() == [1, 2, 3]


def test_ever_new_skeletons_do_not_pile_up():
    codec = RestCodec()
    for index in range(1000):
        codec.decode_request(body(tensor_json("FP32", [1], [1], name=f"x{index}")), model_name="m")
    assert codec._kernel is not None
    (workspace,) = codec._kernel._free
    assert len(workspace.templates) <= 256


def test_ids_of_all_kinds_share_a_skeleton_and_are_told_apart():
    codec = RestCodec()
    ids = [f"request-{index}" for index in range(500)] + ["", "ünï", None]
    for given_id in ids:
        members = {} if given_id is None else {"id": given_id}
        document = json.dumps({"inputs": [tensor_json("FP32", [1], [1])], **members}, ensure_ascii=False).encode()
        assert codec.decode_request(document, model_name="m").id == given_id
    assert codec._kernel is not None
    assert len(codec._kernel._free[0].templates) == 2


def test_threads_do_not_see_each_others_numbers():
    codec = RestCodec()
    wrong: list[int] = []

    def work(number: int) -> None:
        document = body(tensor_json("INT32", [50], [number] * 50), id=str(number))
        for _ in range(2000):
            request = codec.decode_request(document, model_name="m")
            if request.id != str(number) or set(request.inputs[0].data.tolist()) != {number}:
                wrong.append(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_the_table_of_powers_is_what_its_generator_writes():
    assert (FOLDER / "json_powers.h").read_text() == json_powers.header()


def test_each_power_of_five_is_its_reciprocal_or_itself_to_128_bits():
    for q, power in zip(range(json_powers.SMALLEST, json_powers.LARGEST + 1), json_powers.powers(), strict=True):
        assert power.bit_length() == 128
        shift = 128 - (5**q).bit_length() if q >= 0 else 127 + (5**-q).bit_length() - (1 if 5**-q == 1 else 0)
        exact_times = (5**q << shift if shift >= 0 else 5**q >> -shift) if q >= 0 else None
        if exact_times is not None:
            assert power == exact_times
        else:
            assert abs(power * 5**-q - (1 << shift)) <= 2 * 5**-q
