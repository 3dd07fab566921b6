"""The float64 forest by itself: leaves that hold vectors, sums that start elsewhere, values near zero; and what it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fuzz
from hypothesis import strategies as st

from serinus.native.trees.forest64 import Forest64, Sets
from serinus.native.trees.walker import Link, Trees


def _stumps(random: np.random.Generator, count: int, columns: int, leaves: int) -> Trees:
    """Trees of two levels, whose leaves number one of `leaves` vectors."""
    left, right = np.tile([1, 3, -1, -1, -1], count), np.tile([2, 4, -1, -1, -1], count)
    inner = left != -1
    value = np.where(inner, random.choice([-1.0, 0.0, 1e-40, 0.5], 5 * count), random.integers(0, leaves, 5 * count))
    return Trees(
        starts=np.arange(0, 5 * count + 1, 5),
        left=left.astype(np.int32),
        right=right.astype(np.int32),
        feature=random.integers(0, columns, 5 * count).astype(np.int32),
        value=value,
        default_left=random.random(5 * count) < 0.5,
        outputs=np.zeros(count, np.int32),
    )


def _walk(trees: Trees, rows: np.ndarray, vectors: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Walk the trees as written, node by node, in Python."""
    sums = np.tile(base, (len(rows), 1))
    for start in trees.starts[:-1]:
        for index, row in enumerate(rows):
            node = 0
            while trees.left[start + node] != -1:
                at = start + node
                value = row[trees.feature[at]]
                left = trees.default_left[at] if np.isnan(value) else value <= trees.value[at]
                node = (trees.left if left else trees.right)[at]
            sums[index] += vectors[int(trees.value[start + node])]
    return sums


@given(
    seed=st.integers(0, 2**32 - 1),
    trees=st.integers(1, 20),
    groups=st.integers(1, 5),
    rows=st.integers(0, 80),
    missing=st.booleans(),
)
@fuzz(max_examples=60, deadline=None)
def test_a_leafs_vector_is_added_whole_in_the_order_of_the_trees(
    seed: int, trees: int, groups: int, rows: int, missing: bool
) -> None:
    random = np.random.default_rng(seed)
    made, vectors, base = _stumps(random, trees, 4, 7), random.normal(size=(7, groups)), random.normal(size=groups)
    data = random.choice([-1.0, 0.0, 1e-41, 0.5, 2.0, np.inf] + [np.nan] * (2 * missing), (rows, 4))
    wanted = _walk(made, data, vectors, base)
    forest = Forest64(made, vectors=vectors, columns=4, groups=groups, base=base, divisor=trees)
    np.testing.assert_array_equal(forest.margins(data), wanted)
    np.testing.assert_array_equal(forest.predict(data), wanted / trees)
    # With sets of categories the walk is another; no node looks one up here, and nothing changes.
    sets = Sets(np.full(5 * trees, -1), np.zeros(5 * trees, np.int64), np.ones(1, np.uint32))
    with_sets = Forest64(made, vectors=vectors, sets=sets, columns=4, groups=groups, base=base)
    np.testing.assert_array_equal(with_sets.margins(data), wanted)


def _one_split(threshold: float, **settings: object) -> Forest64:
    trees = Trees(
        starts=np.array([0, 3]),
        left=np.array([1, -1, -1], np.int32),
        right=np.array([2, -1, -1], np.int32),
        feature=np.zeros(3, np.int32),
        value=np.array([threshold, 1.0, 2.0]),
        default_left=np.zeros(3, np.bool_),
        outputs=np.zeros(1, np.int32),
    )
    return Forest64(trees, columns=1, groups=1, **settings)  # type: ignore[arg-type] # passed on as they came


def test_a_value_near_zero_is_compared_as_it_is_unless_the_framework_takes_it_for_zero() -> None:
    rows = np.array([[1e-36], [0.0], [1e-30]])
    np.testing.assert_array_equal(_one_split(0.0).margins(rows)[:, 0], [2, 1, 2])
    np.testing.assert_array_equal(_one_split(0.0, near_zero=1e-35).margins(rows)[:, 0], [1, 1, 2])


def test_a_value_on_a_threshold_goes_left() -> None:
    rows = np.array([[0.1], [np.nextafter(0.1, 1)], [np.nan]])
    np.testing.assert_array_equal(_one_split(0.1, base=[10.0]).margins(rows)[:, 0], [11, 12, 12])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vectors": np.zeros((2, 1))}, "a leaf's vector is not one of 2"),
        ({"vectors": np.zeros((3, 2))}, "vectors have shape"),
        ({"base": np.zeros(2)}, "base has shape"),
        ({"zeros": np.zeros(2)}, "2 flags for 1 columns"),
        ({"link": Link.SIGMOID, "zeros": np.zeros(0)}, "0 flags for 1 columns"),
    ],
    ids=["number", "width", "base", "zeros", "no-zeros"],
)
def test_arrays_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _one_split(0.5, **settings)
