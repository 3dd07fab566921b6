"""What a large JSON text holds is counted before it is parsed, by the kernel and without it alike."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import orjson
import pytest

from depth import draws
from representative import every
from serinus.errors import TooLarge
from serinus.protocol import json_census
from serinus.protocol.json_census import MOST_CONTAINERS, MOST_VALUES, check_census

COUNTERS = ["compiled", "plain"]
PADDING = b" " * (1 << 20)
"""A text of less than a mebibyte is not looked at."""


@pytest.fixture(params=COUNTERS)
def counter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "plain":
        monkeypatch.setattr(json_census, "library", lambda: None)
    json_census._counter.cache_clear()
    yield request.param
    json_census._counter.cache_clear()


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        (b'{"a":[1,2,[3]]}', (4, 2)),
        (rb'{"[,\"{[":"\\",",":"\\\","}', (2, 1)),
        (b"", (0, 0)),
        (b'"[[[', (0, 0)),
        (b'"\\', (0, 0)),
        (b"[[[", (3, 0)),
    ],
    ids=["nested", "strings", "empty", "open string", "open escape", "open arrays"],
)
def test_what_stands_in_strings_is_not_counted(text: bytes, counted: tuple[int, int]):
    assert json_census._counter()(text)[:2] == counted
    if not text.startswith(b'"'):  # an open string is no JSON, which the parser says
        assert json_census._count(text)[:2] == counted


def test_both_counters_agree():
    random.seed(5)
    for _ in range(300):
        text = b"".join(random.choices([b"[", b"]", b"{", b"}", b",", b'"a"', rb'"\""', rb'"\\"', b'"[,"', b"1"], k=60))
        assert json_census._counter()(text)[:2] == json_census._count(text)[:2]


def test_without_the_kernel_each_thing_is_weighed_as_documented():
    # An array, an object, two commas, a key, two texts, what texts hold beyond a mark, and one number of three digits or more.
    weight = 80 + 216 + 2 * 8 + 16 + 2 * 56 + len('ab"') + len('k"') + len('xyz"') + 32
    assert json_census._count(b'[1.25,"ab",{"k":"xyz"}]') == (3, 2, weight)
    assert json_census._count(b'["",12]') == (1, 1, 80 + 8)  # an empty text is kept once


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"[]," * (MOST_CONTAINERS + 1), "arrays"),
        (b"{}," * (MOST_CONTAINERS // 2 + 1), "objects"),
        (b"1," * (MOST_VALUES + 1), "values"),
    ],
    ids=["arrays", "objects", "values"],
)
@pytest.mark.usefixtures("counter")
def test_more_than_can_be_looked_at_in_a_second_is_refused(text: bytes, word: str):
    with pytest.raises(TooLarge, match=word):
        check_census(text, "the request body")


@pytest.mark.parametrize(
    "text",
    [
        b"[" * MOST_CONTAINERS + 4 * PADDING,  # a body of 5 MB may take 100
        b"," * MOST_VALUES + PADDING,
        b'"' + b"[," * (MOST_VALUES + 1) + b'"' + PADDING,
        b"[" * 1000,
        b"[" + b"{}," * 349_000 + b"0]",
    ],
    ids=["arrays", "values", "a string", "a small text", "the largest that is not looked at"],
)
@pytest.mark.parametrize("counter", every(2, COUNTERS), indirect=True)
@pytest.mark.usefixtures("counter")
def test_what_is_within_the_limits_is_taken(text: bytes):
    check_census(text, "the request body")


@pytest.mark.parametrize(
    ("unit", "most", "said"),
    [
        (b"[", 1_048_576, "more than 1048576 arrays"),
        (b"{", 524_288, "or half as many objects"),
        (b",", 4_194_304, "more than 4194304 values"),
    ],
    ids=["arrays", "objects", "values"],
)
def test_a_million_arrays_half_as_many_objects_and_four_million_values_are_the_most(unit: bytes, most: int, said: str):
    room = b" " * 6_000_000  # such a body may take 120 MB
    check_census(unit * most + room, "the request body")
    with pytest.raises(TooLarge, match=said):
        check_census(unit * (most + 1) + room, "the request body")


TINY = {
    "objects of one number": b'{"x":1},',
    "empty arrays": b"[],",
    "empty objects": b"{},",
    "rows of a digit": b"[1],",
    "deep arrays": b"[" * 60 + b"]" * 60 + b",",
    "objects in objects": b'{"a":[{"b":"cd"}]},',
}
ORDINARY = {
    "rows of a number": b"[0.25],",
    "rows of numbers": b"[0.25,0.5,0.75],",
    "objects of three numbers": b'{"a":1.5,"b":2.5,"c":3},',
    "letters": b'"a",',
    "empty texts": b'"",',
    "escapes": rb'"\u0416\n",',
    "numbers": b"300,",
    "thousands of digits": b"0." + b"1" * 4000 + b",",
    "a wide text": b'"' + b"a" * 5000 + "\N{GRINNING FACE}".encode() + b'",',
    "customers": b'{"amount":12.5,"country":"DE","age":31,"merchant":"m-12345"},',
}


def repeated(unit: bytes, size: int = 2 * len(PADDING)) -> bytes:
    return b"[" + unit * (size // len(unit)) + b"0]"


def taken(value: object) -> int:
    """What a parsed document takes in memory, by CPython's own word."""
    seen: dict[int, object] = {}
    left, total = [value], 0
    while left:
        one = left.pop()
        if id(one) not in seen:
            seen[id(one)] = one
            total += -(-sys.getsizeof(one) // 16) * 16
            if isinstance(one, dict):
                left += [*one, *one.values()]
            elif isinstance(one, list):
                left += one
    return total


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.usefixtures("counter")
def test_a_text_that_would_take_more_than_twenty_times_its_size_is_refused(kind: str):
    with pytest.raises(TooLarge, match=r"20 times its size|arrays, or half as many objects"):
        check_census(repeated(TINY[kind]), "the request body")


@pytest.mark.parametrize("kind", every(5, ORDINARY))
@pytest.mark.usefixtures("counter")
def test_what_people_send_is_taken_and_takes_no_more_than_twenty_times_its_size(kind: str):
    text = repeated(ORDINARY[kind], draws(2 * len(PADDING), len(PADDING) // 2, len(PADDING) // 8))
    check_census(text, "the request body")
    assert taken(orjson.loads(text)) <= 20.5 * len(text)
