"""Models at the edge: sets of categories that would lead a walk astray, and no columns or outputs at all."""

from __future__ import annotations

import numpy as np
import pytest

from serinus.native import library
from serinus.native.trees.forest import Forest
from serinus.native.trees.forest64 import Forest64, Sets, Trees

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not built: python -m serinus.native.build")

SPLIT = Trees(
    starts=np.array([0, 3]),
    left=np.array([1, -1, -1], np.int32),
    right=np.array([2, -1, -1], np.int32),
    feature=np.zeros(3, np.int32),
    value=np.array([0.0, 1.0, 2.0]),
    default_left=np.zeros(3, bool),
    outputs=np.zeros(1, np.int32),
)


def forest(first: list[int], words: list[int]) -> Forest64:
    sets = Sets(np.array(first, np.int64), np.array(words, np.int64), np.array([0b101, 0], np.uint32))
    return Forest64(SPLIT, sets=sets, columns=1, groups=1, zeros=np.zeros(1, bool))


@pytest.mark.parametrize(
    ("first", "words"),
    [(0, 3), (1, 2), (2, 1), (0, -1), (2**62, 2**62), (2**63 - 1, 1), (1, 2**63 - 1)],
    ids=str,
)
def test_a_set_of_categories_outside_the_sets_is_refused(first: int, words: int):
    with pytest.raises(ValueError, match="categories lead out of their sets"):
        forest([first, -1, -1], [words, 0, 0])


def test_a_node_with_an_empty_set_among_sets_without_any_category_sends_all_to_the_right() -> None:
    sets = Sets(np.array([0, -1, -1], np.int64), np.zeros(3, np.int64), np.zeros(0, np.uint32))
    made = Forest64(SPLIT, sets=sets, columns=1, groups=1, zeros=np.zeros(1, bool))
    assert made.margins(np.array([[0.0], [1.0], [np.nan], [-1.0]] * 5)).ravel().tolist() == [2.0] * 20


@pytest.mark.parametrize(("first", "words"), [([0, -1], [1, 0, 0]), ([0, -1, -1], [1, 0])], ids=["first", "words"])
def test_sets_that_do_not_speak_of_every_node_are_refused(first: list[int], words: list[int]):
    with pytest.raises(ValueError, match="every node needs its place"):
        forest(first, words)


@pytest.mark.parametrize(("first", "words"), [(0, 1), (0, 2), (1, 1), (2, 0)], ids=str)
def test_a_category_goes_left_where_its_bit_is_set(first: int, words: int):
    made = forest([first, -1, -1], [words, 0, 0])
    rows = np.array([[0.0], [1.0], [2.0], [31.0], [64.0], [-1.0], [np.nan], [np.inf], [1e300]])
    members = {0.0, 2.0} if first == 0 else set()
    expected = [[1.0] if row[0] in members else [2.0] for row in rows]
    np.testing.assert_array_equal(made.margins(rows), expected)


LEAF = Trees(
    starts=np.array([0, 1]),
    left=np.array([-1], np.int32),
    right=np.array([-1], np.int32),
    feature=np.zeros(1, np.int32),
    value=np.array([2.0], np.float32),
    default_left=np.zeros(1, bool),
    outputs=np.zeros(1, np.int32),
)


@pytest.mark.parametrize("count", [1, 5, 100])
def test_a_forest_without_columns_answers_the_sum_of_its_leaves(count: int):
    rows = np.empty((count, 0), np.float32)
    made = Forest(LEAF, columns=0, base=np.ones(1))
    np.testing.assert_array_equal(made.predict(rows), np.full((count, 1), 3.0, np.float32))
    exact = Forest64(LEAF, columns=0, groups=1, zeros=np.zeros(0, bool))
    np.testing.assert_array_equal(exact.predict(rows.astype(np.float64)), np.full((count, 1), 2.0))


def test_a_forest_without_outputs_answers_none():
    ints, flags = np.empty(0, np.int32), np.empty(0, bool)
    none = Trees(np.zeros(1, np.int64), ints, ints, ints, np.empty(0, np.float32), flags, ints)
    rows = np.zeros((3, 2), np.float32)
    assert Forest(none, columns=2, base=np.zeros(0)).predict(rows).shape == (3, 0)
