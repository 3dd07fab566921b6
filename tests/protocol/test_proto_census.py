"""What is counted of a message before it is parsed, to the last of each bound; by the kernel and by the same in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serinus.errors import TooLarge
from serinus.protocol import proto_census
from serinus.protocol.proto_census import MOST_FIELDS, MOST_NUMBERS, check_few_fields, check_message, is_laborious

FIELDS, NUMBERS, BYTES = 1024, 16_384, 262_144
"""What is read in a millisecond."""


@pytest.fixture(params=["compiled", "plain"])
def counter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "plain":
        monkeypatch.setattr(proto_census, "library", lambda: None)
    proto_census._counter.cache_clear()
    yield request.param
    proto_census._counter.cache_clear()


def varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def contents(number: int, payload: bytes) -> bytes:
    return field(5, field(5, field(number, payload)))


# A message of n fields, numbers, or bytes outside of raw tensors, and how many are read in a millisecond.
COUNTED: dict[str, tuple[Callable[[int], bytes], int]] = {
    "fields": (lambda n: b"\x18\x01" * n, FIELDS),
    "fixed fields of 8 bytes": (lambda n: (b"\x19" + bytes(8)) * n, FIELDS),
    "fixed fields of 4 bytes": (lambda n: (b"\x1d" + bytes(4)) * n, FIELDS),
    "raw tensors": (lambda n: field(7, b"x" * 1000) * n, FIELDS),
    "parameters": (lambda n: field(4, b"") * n, FIELDS),
    "parts of a parameter": (lambda n: field(4, field(1, b"") * (n - 1)), FIELDS),
    "parts of its value": (lambda n: field(4, field(2, b"\x08\x01" * (n - 2))), FIELDS),
    "parts of an input": (lambda n: field(5, field(1, b"") * (n - 1)), FIELDS),
    "parameters of an input": (lambda n: field(5, field(4, field(1, b""))) + b"\x18\x01" * (n - 3), FIELDS),
    "parts of an output": (lambda n: field(6, field(2, field(2, b"\x08\x01"))) + b"\x18\x01" * (n - 4), FIELDS),
    "values of BYTES": (lambda n: field(5, field(5, field(8, b"") * (n - 2))), FIELDS),
    "dimensions": (lambda n: field(5, field(3, b"\x01" * n)), NUMBERS),
    "long dimensions": (lambda n: field(5, field(3, b"\x81\x01" * n)), NUMBERS),
    **{f"integers of field {number}": (lambda n, k=number: contents(k, b"\x01" * n), NUMBERS) for number in range(2, 6)},
    "long integers": (lambda n: contents(3, b"\xff\xff\x01" * n), NUMBERS),
    "a text": (lambda n: field(1, b"x" * n), BYTES),
    "a name of an input": (lambda n: field(5, field(1, b"x" * n)), BYTES),
    "floats": (lambda n: contents(6, b"x" * n), BYTES),
    "doubles": (lambda n: contents(7, b"x" * n), BYTES),
    "a value of BYTES": (lambda n: contents(8, b"x" * n), BYTES),
}  # fmt: skip


@pytest.mark.parametrize("kind", COUNTED)
def test_each_kind_is_counted_to_its_bound_and_not_beyond(kind: str, counter: str):
    make, most = COUNTED[kind]
    assert not is_laborious(make(most))
    assert is_laborious(make(most + 1))


def test_a_raw_tensor_of_any_size_costs_nothing(counter: str):
    assert not is_laborious(field(7, bytes(10 * BYTES)))
    assert is_laborious(field(8, bytes(10 * BYTES)))


def test_what_several_parts_hold_adds_up(counter: str):
    half = contents(2, b"\x01" * (NUMBERS // 2))
    assert not is_laborious(half * 2)
    assert is_laborious(half * 2 + field(5, field(3, b"\x01")))
    text = field(1, b"x" * (BYTES // 2))
    assert not is_laborious(text + field(5, text))
    assert is_laborious(text + field(5, text + field(2, b"x")))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x18",
        b"\x80" * 11,
        field(5, b"x")[:-1],
        b"\x2a\xff\xff\xff\x7f",
        b"\x19\x00",
        field(5, b"\x80"),
        field(5, b"\x18\x01" * 2 * FIELDS)[:-1],
    ],
    ids=[
        "empty",
        "no value",
        "a varint too long",
        "cut",
        "longer than all",
        "a fixed one cut",
        "cut within",
        "many and cut",
    ],
)
def test_what_is_damaged_is_left_to_whoever_parses_it(message: bytes, counter: str):
    assert not is_laborious(message)
    check_message(message)
    check_few_fields(message)


def test_limits_of_a_request_are_a_million_fields_and_four_million_numbers():
    assert (MOST_FIELDS, MOST_NUMBERS) == (1_048_576, 4_194_304)
    proto_census._counter.cache_clear()
    check_message(b"\x18\x01" * MOST_FIELDS)
    check_message(contents(3, b"\x01" * MOST_NUMBERS))
    for message in (b"\x18\x01" * (MOST_FIELDS + 1), contents(3, b"\x01" * (MOST_NUMBERS + 1))):
        with pytest.raises(TooLarge, match=r"more than 1048576 fields .* or more than 4194304 typed integers"):
            check_message(message)


def test_bytes_of_a_message_have_no_limit_of_their_own(counter: str):
    message = field(1, bytes(20 * BYTES))
    check_message(message)
    check_few_fields(message)


def test_other_calls_have_few_fields_and_numbers(counter: str):
    check_few_fields(b"\x18\x01" * FIELDS)
    check_few_fields(contents(3, b"\x01" * NUMBERS))
    for message in (b"\x18\x01" * (FIELDS + 1), contents(3, b"\x01" * (NUMBERS + 1))):
        with pytest.raises(TooLarge, match="the message holds more than 1024 fields; no call but inference"):
            check_few_fields(message)
