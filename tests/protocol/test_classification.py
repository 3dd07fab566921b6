"""The classification extension, by its document's examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serinus.errors import InvalidInput
from serinus.protocol.classification import classification_count, classify
from serinus.protocol.types import Tensor


def classes(values: Any, count: int, labels: tuple[str, ...] = (), dtype: Any = np.float32) -> Any:
    found = classify(Tensor.of("p", np.array(values, dtype)), count, labels)
    assert (found.name, found.datatype, found.shape) == ("p", "BYTES", found.data.shape)
    return found.data.tolist()


def test_the_documents_examples_hold():
    assert classes([1, 5, 10, 4], 2, dtype=np.int32) == [b"10:2", b"5:1"]
    assert classes([1.1, 3.3, 0.5, 2.4], 2) == [b"3.3:1", b"2.4:3"]
    assert classes([1, 5, 10, 4], 2, ("pear", "pickle", "apple"), np.int32) == [b"10:2:apple", b"5:1:pickle"]


def test_each_row_of_a_batch_is_classified_by_itself():
    assert classes([[0.1, 0.9], [0.8, 0.2]], 1, ("a", "b")) == [[b"0.9:1:b"], [b"0.8:0:a"]]
    assert classes([[[1, 2], [3, 4]]], 3) == [[b"4.0:3", b"3.0:2", b"2.0:1"]]


def test_more_classes_than_there_are_give_all_and_none_give_none():
    assert classes([1.0, 2.0], 5) == [b"2.0:1", b"1.0:0"]
    assert classes(np.zeros((0, 3)), 2) == []
    assert [classify(Tensor.of("y", np.zeros(shape)), 2).shape for shape in ((0, 3), (0, 2, 5), (2, 0))] == [
        (0, 2),
        (0, 2),
        (2, 0),
    ]
    assert classes([], 2) == []


def test_equal_values_keep_their_order_and_nan_is_last():
    assert classes([2, 7, 7, 2], 4, dtype=np.uint8) == [b"7:1", b"7:2", b"2:0", b"2:3"]
    assert classes([np.nan, 1, -np.inf], 3) == [b"1.0:1", b"nan:0", b"-inf:2"]


def test_labels_may_hold_any_text_and_may_be_missing():
    assert classes([1.0, 2.0, 3.0], 3, ("", "é:x")) == [b"3.0:2", "2.0:1:é:x".encode(), b"1.0:0"]


@pytest.mark.parametrize("array", [np.array(["a"], object), np.array([True])], ids=["BYTES", "BOOL"])
def test_only_numbers_are_classified(array: np.ndarray):
    with pytest.raises(InvalidInput, match="output 'p': 'classification' wants numbers"):
        classify(Tensor.of("p", array), 1)


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=8), st.integers(1, 10))
def test_the_order_is_that_of_the_values(values: list[int], count: int):
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    assert classes(values, count, dtype=np.int8) == [f"{values[index]}:{index}".encode() for index in expected]


@pytest.mark.parametrize("value", [-1, 1.0, "2", True, None])
def test_a_count_that_is_none_is_refused(value: Any):
    with pytest.raises(InvalidInput, match="output 'p': 'classification' is "):
        classification_count({"classification": value}, "output 'p'")


def test_a_count_is_read_and_absent_is_zero():
    assert classification_count({"classification": 3}, "o") == 3
    assert classification_count({}, "o") == 0
