"""A body of /invocations never becomes much more than it is: what it would make is counted, or made of its own size."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from serinus.errors import InvalidInput, TooLarge
from serinus.model import Model
from serinus.protocol.types import TensorSpec
from serinus.settings import ModelSettings

read_body = Deferred("mlflow_server.invocations", "read_body")
to_request = Deferred("mlflow_server.invocations", "to_request")
NO_SIGNATURE = Deferred("mlflow_server.signature", "NO_SIGNATURE")


class Asked(Model):
    """Takes one input of any kind."""


def model(datatype: str = "BYTES", shape: tuple[int, ...] = (-1,)) -> Model:
    made = Asked(ModelSettings(name="m"))
    made.inputs = (TensorSpec("x", datatype, shape),)
    return made


@pytest.fixture
def little() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()


def text_of(body: Any) -> bytes:
    return json.dumps(body).encode()


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        pytest.param(text_of({"dataframe_records": [{f"a{n}": 1} for n in range(2100)]}), "application/json",
                     "2100 rows of 2100 different names are a table of more than 4194304 values", id="a column of its own in each record"),
        pytest.param(b",".join(b"%d" % n for n in range(2100)) + b"\n" + (b"," * 2099 + b"\n") * 2100, "text/csv",
                     "4194304 values", id="empty values"),
    ],
)  # fmt: skip
def test_a_table_that_a_small_body_blows_up_to_is_refused(body: bytes, kind: str, said: str):
    with pytest.raises(TooLarge, match=said):
        read_body(body, kind)


def test_rows_of_next_to_nothing_are_counted():
    with pytest.raises(TooLarge, match="more than 1048576 rows"):
        read_body(b"a\n" + b"1\n" * (1 << 20) + b"1\n", "text/csv")


@pytest.mark.usefixtures("little")
def test_empty_lines_of_csv_take_no_room():
    asked = read_body(b"a\n" + b"\n" * 2_000_000 + b"1\n", "text/csv")
    assert asked.columns == {"a": [1.0]}


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("form", ["inputs", "instances", "dataframe_split"])
def test_a_long_text_among_short_ones_takes_no_more_room_than_its_own(form: str):
    texts = ["x" * 10_000] + ["y"] * 6000
    data = {
        "inputs": {"x": texts},
        "instances": [{"x": text} for text in texts],
        "dataframe_split": {"columns": ["x"], "data": [[text] for text in texts]},
    }
    asked = read_body(text_of({form: data[form]}), "application/json")
    (tensor,) = to_request(asked, model(), NO_SIGNATURE).inputs
    assert tensor.data.tolist() == [text.encode() for text in texts]


@pytest.mark.usefixtures("little")
def test_numbers_beside_a_long_text_are_refused_in_its_own_room():
    asked = read_body(text_of({"inputs": {"x": ["x" * 10_000] + [1] * 6000}}), "application/json")
    with pytest.raises(InvalidInput, match="texts and 1 are mixed"):
        to_request(asked, model(), NO_SIGNATURE)


@pytest.mark.parametrize(
    ("values", "datatype", "shape", "expected"),
    [
        pytest.param([["a", "b"], ["c", None]], "BYTES", (-1, 2), [[b"a", b"b"], [b"c", None]], id="texts in rows"),
        pytest.param("a", "BYTES", (-1,), [b"a"], id="one text"),
        pytest.param([[1, None], [2.5, 3]], "FP64", (-1, 2), [[1.0, None], [2.5, 3.0]], id="a missing number"),
        pytest.param([True, False], "BOOL", (-1,), [True, False], id="truth values"),
        pytest.param([[], []], "FP64", (-1, -1), [[], []], id="rows of nothing"),
    ],
)
def test_values_become_a_tensor_of_their_shape(values: Any, datatype: str, shape: tuple[int, ...], expected: Any):
    asked = read_body(text_of({"inputs": {"x": values}}), "application/json")
    (tensor,) = to_request(asked, model(datatype, shape), NO_SIGNATURE).inputs
    data = tensor.data
    got = np.where(np.isnan(data), None, data).tolist() if data.dtype.kind == "f" else data.tolist()
    assert got == expected


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([["a"], ["b", "c"]], "different lengths"),
        ([["a"], "b"], "different lengths"),
        ([[1], [1, 2]], "different lengths"),
        ([[1], 2], "different lengths"),
        ([{"a": 1}], "an object are mixed"),
    ],
)
def test_what_is_no_tensor_is_refused_in_words(values: Any, said: str):
    asked = read_body(text_of({"inputs": {"x": values}}), "application/json")
    with pytest.raises(InvalidInput, match=said):
        to_request(asked, model(), NO_SIGNATURE)
