"""Raw transactions are checked whole before anything is counted: what is wrong is told by column, row and mend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fraud_support as support
from fraud_features import schema
from fraud_features.column_reader import columns_of_instances, parse, parse_labels
from fraud_features.schema import BadTransactions, RawTensor
from fraud_support import NOW_S


def with_value(column: str, row: int, value: Any, n: int = 3) -> dict[str, RawTensor]:
    columns = support.values(n)
    columns.setdefault(column, ["BRL" if column == "currency" else 0] * n)[row] = value
    return support.tensors(columns)


BAD = {
    "negative amount": ("amount", -5.0, ["'amount', row 1", "-5.0 came", "0 to 100000000", "refunds are not scored"]),
    "NaN amount": ("amount", math.nan, ["'amount', row 1", "nan came"]),
    "infinite amount": ("amount", math.inf, ["'amount', row 1", "inf came"]),
    "amount as text": ("amount", "12.5", ["'amount', row 1", "'12.5' came", "a number", "without quotes"]),
    "amount as bool": ("amount", True, ["'amount', row 1", "True came"]),
    "amount null": ("amount", None, ["'amount', row 1", "None came"]),
    "huge integer": ("amount", 10**400, ["'amount'", "too large"]),
    "milliseconds": ("datetime", 1_740_000_000_000, ["'datetime', row 1", "divide by 1000"]),
    "year 1970": ("datetime", 0, ["'datetime', row 1", "0 came", "2000-01-01"]),
    "next week": ("datetime", int(NOW_S) + 7 * 86400, ["'datetime', row 1", "one day from now"]),
    "no time": ("datetime", "yesterday", ["'datetime', row 1", "'yesterday' came", "ISO 8601"]),
    "time as float": ("datetime", 1.74e9, ["'datetime', row 1"]),
    "unknown type": ("type", "ATM", ["'type', row 1", "'ATM' came", "CNP or CP"]),
    "lower case type": ("type", "cp", ["'type', row 1", "in capitals"]),
    "type as number": ("type", 1, ["'type', row 1", "1 came"]),
    "unknown currency": ("currency", "USD", ["'currency', row 1", "'USD' came", "BRL"]),
    "latitude": ("terminal_lat", 91.0, ["'terminal_lat', row 1", "91.0 came", "-90 to 90"]),
    "longitude": ("billing_long", -180.5, ["'billing_long', row 1", "-180 to 180"]),
    "infinite latitude": ("shipping_lat", -math.inf, ["'shipping_lat', row 1", "-inf came"]),
    "empty id": ("customer_id", "", ["'customer_id', row 1", "1 to 128 bytes"]),
    "long id": ("terminal_id", "x" * 129, ["'terminal_id', row 1", "1 to 128 bytes"]),
    "id that is no text": ("transaction_id", b"\xff\xfe", ["'transaction_id', row 1", "UTF-8"]),
    "id as number in text": ("customer_id", 7, ["'customer_id', row 1", "7 came", "text"]),
    "repeated id": ("transaction_id", "s0-0", ["'transaction_id', row 1", "row 0's", "once per request"]),
    "fraud": ("fraud", 2, ["'fraud', row 1", "2 came", "-1 (not known)"]),
}


@pytest.mark.parametrize(("column", "value", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_value_is_named_with_its_column_row_and_mend(column: str, value: Any, words: list[str]):
    with pytest.raises(BadTransactions) as caught:
        parse(with_value(column, 1, value), NOW_S)
    assert len(caught.value.problems) == 1
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("column", "value", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_value_in_a_v1_instance_is_told_alike(column: str, value: Any, words: list[str]):
    rows = support.instances(support.values(3))
    for row in rows:
        row.setdefault(column, "BRL" if column == "currency" else 0)
    rows[1][column] = value
    if column == "customer_id" and value == 7:  # JSON's own types speak for themselves in V1
        assert parse(columns_of_instances(rows), NOW_S).customers[1] == b"7"
        return
    with pytest.raises(BadTransactions) as caught:
        parse(columns_of_instances(rows), NOW_S)
    assert f"'{column}'" in str(caught.value)


SHAPES = {
    "missing column": (lambda c: c.pop("amount"), ["column 'amount': missing", "FP64", "add it"]),
    "unknown column": (lambda c: c.update(curency=RawTensor("BYTES", [3], ["BRL"] * 3)), ["'curency'", "did you mean 'currency'?"]),
    "ragged": (lambda c: c.update(amount=RawTensor("FP64", [2], [1.0, 2.0])), ["'amount': 2 rows", "expected 3"]),
    "two dimensions": (lambda c: c.update(amount=RawTensor("FP64", [1, 3], [[1.0, 2.0, 3.0]])), ["'amount': shape [1, 3]"]),
    "datatype": (lambda c: c.update(amount=RawTensor("BOOL", [3], [True] * 3)), ["'amount': datatype BOOL", "FP64"]),
    "data against shape": (lambda c: c.update(amount=RawTensor("FP64", [3], [1.0])), ["'amount': 1 values", "expected 3"]),
    "raw too short": (lambda c: c.update(type=RawTensor("BYTES", [3], b"\x02\0\0\0CP")), ["'type': raw data", "1 elements"]),
    "raw cut off": (lambda c: c.update(type=RawTensor("BYTES", [3], b"\x09\0\0\0CP")), ["'type': raw data", "ends at byte 13"]),
    "raw odd": (lambda c: c.update(amount=RawTensor("FP64", [3], b"123")), ["'amount': raw data"]),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), SHAPES.values(), ids=SHAPES.keys())
def test_a_column_that_does_not_fit_is_named(spoil: Any, words: list[str]):
    columns = support.tensors(support.values(3))
    spoil(columns)
    with pytest.raises(BadTransactions) as caught:
        parse(columns, NOW_S)
    for word in words:
        assert word in str(caught.value)


def test_problems_of_all_columns_are_told_together():
    columns = support.values(4)
    columns["amount"][0], columns["type"][2], columns["terminal_lat"][3] = -1.0, "X", 200.0
    bad = support.tensors(columns)
    del bad["billing_lat"]
    with pytest.raises(BadTransactions) as caught:
        parse(bad, NOW_S)
    text = str(caught.value)
    assert text.startswith("4 problems: ")
    for word in ("'billing_lat': missing", "'amount', row 0", "'type', row 2", "'terminal_lat', row 3"):
        assert word in text


def test_problems_beyond_the_cap_are_counted():
    columns = support.values(1000)
    columns["amount"] = [-1.0] * 1000
    with pytest.raises(BadTransactions) as caught:
        parse(support.tensors(columns), NOW_S)
    assert len(caught.value.problems) == schema.MAX_PROBLEMS
    assert caught.value.total == 1000
    assert str(caught.value).endswith("; and 980 more")


def test_no_rows_and_no_columns_are_refused():
    with pytest.raises(BadTransactions, match="0 rows came"):
        parse(support.tensors(support.values(0)), NOW_S)
    with pytest.raises(BadTransactions, match="'transaction_id': missing"):
        parse({}, NOW_S)
    with pytest.raises(BadTransactions, match="0 rows came"):
        parse(columns_of_instances([]), NOW_S)


@pytest.mark.parametrize("bad", [None, "x", {"a": 1}, 3])
def test_instances_must_be_a_list(bad: Any):
    with pytest.raises(BadTransactions, match="expected a list of objects"):
        columns_of_instances(bad)


def test_an_instance_that_is_no_object_or_lacks_a_key_is_named():
    rows = support.instances(support.values(3))
    with pytest.raises(BadTransactions, match="instance 1: 5 came"):
        columns_of_instances([rows[0], 5])
    del rows[2]["amount"]
    with pytest.raises(BadTransactions, match="'amount', row 2: nothing came"):
        parse(columns_of_instances(rows), NOW_S)


@pytest.mark.slow
def test_100_000_rows_pass_and_one_more_is_refused():
    columns = support.values(schema.MAX_ROWS, step_s=10)
    assert len(parse(support.tensors(columns), NOW_S)) == schema.MAX_ROWS
    for name in columns:
        columns[name].append(columns[name][0])
    with pytest.raises(BadTransactions, match="100001 rows came, expected at most 100000; split the request"):
        parse(support.tensors(columns), NOW_S)


def test_lists_arrays_raw_bytes_and_instances_read_alike():
    columns = support.values(7)
    want = parse(support.tensors(columns), NOW_S)
    arrays, raw = {}, {}
    for name, data in columns.items():
        datatype = support.DATATYPES[name]
        if datatype == "BYTES":
            arrays[name] = RawTensor("BYTES", [7, 1], np.array([v.encode() for v in data], object).reshape(7, 1))
            raw[name] = RawTensor("BYTES", [7], support.raw_bytes(data))
        else:
            array = np.array(data, "<i8" if datatype == "INT64" else "<f8")
            arrays[name] = RawTensor(datatype, [7, 1], array.reshape(7, 1))
            raw[name] = RawTensor(datatype, [7], array.tobytes())
    nested = {
        name: RawTensor(t.datatype, [7, 1], [[v] for v in t.data]) for name, t in support.tensors(columns).items()
    }
    for other in (arrays, raw, nested, columns_of_instances(support.instances(columns))):
        got = parse(other, NOW_S)
        for field in want.__slots__:
            assert getattr(got, field) == getattr(want, field), field


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2025-03-01T12:30:00Z", 1_740_832_200),
        ("2025-03-01 12:30:00", 1_740_832_200),
        ("2025-03-01T09:30:00-03:00", 1_740_832_200),
        ("2025-03-01T12:30:00.999+00:00", 1_740_832_200),
    ],
)
def test_iso_8601_is_read_as_utc_and_fractions_are_cut(text: str, seconds: int):
    columns = support.values(1)
    tensors = support.tensors(columns)
    tensors["datetime"] = RawTensor("BYTES", [1], [text])
    assert parse(tensors, NOW_S).seconds == [seconds]
    tensors["datetime"] = RawTensor("BYTES", [1], support.raw_bytes([text]))
    assert parse(tensors, NOW_S).seconds == [seconds]


def test_integer_ids_are_their_decimal_text_and_are_remembered_as_integers():
    tensors = support.tensors(support.values(2))
    tensors["transaction_id"] = RawTensor("INT64", [2], np.array([12, -3]))
    tensors["customer_id"] = RawTensor("INT64", [2], [5, 5])
    got = parse(tensors, NOW_S)
    assert (got.ids, got.customers, got.integer_ids) == ([b"12", b"-3"], [b"5", b"5"], True)


def test_unknown_places_are_nan_and_null():
    columns = support.values(2)
    columns["shipping_lat"][0] = math.nan
    rows = support.instances(columns)
    rows[1]["shipping_lat"] = None
    got = parse(columns_of_instances(rows), NOW_S).shipping_lat
    assert math.isnan(got[0])
    assert math.isnan(got[1])


def test_labels_need_their_five_columns_and_no_other():
    columns = support.values(2) | {"fraud": [1, 0]}
    five = {name: columns[name] for name in ("transaction_id", "datetime", "customer_id", "terminal_id", "fraud")}
    assert parse_labels(support.tensors(five) | {"fraud": RawTensor("INT8", [2], [1, 0])}, NOW_S).frauds == [1, 0]
    del five["fraud"]
    with pytest.raises(BadTransactions, match="'fraud': missing"):
        parse_labels(support.tensors(five), NOW_S)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


RAW = st.tuples(st.sampled_from(["BYTES", "FP64", "INT64", "BF16", "INT8"]), st.binary(max_size=40))


def refusal(columns: Any) -> str | None:
    """What is said of columns; None where they are read."""
    try:
        parse(columns(), NOW_S)
    except BadTransactions as error:
        return str(error)
    return None


@given(st.lists(st.dictionaries(st.sampled_from([*support.DATATYPES, "x"]), JSON), max_size=4))
@pytest.mark.slow
def test_whatever_json_comes_is_either_read_or_refused(rows: list[dict[str, Any]]):
    assert refusal(lambda: columns_of_instances(rows)) != ""


@given(st.dictionaries(st.sampled_from(list(support.DATATYPES)), RAW, min_size=6), st.integers(-1, 4))
@pytest.mark.slow
def test_whatever_raw_bytes_come_are_either_read_or_refused(raw: dict[str, tuple[str, bytes]], rows: int):
    columns = {name: RawTensor(datatype, [rows], data) for name, (datatype, data) in raw.items()}
    assert refusal(lambda: columns) != ""
