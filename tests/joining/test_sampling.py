"""The rows that a model is tried on: their kinds, sizes and neighbours, the same every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serinus.dataplane.joining.sampling import ROWS, Scene, scenes
from serinus.protocol.types import TensorSpec

MOST_BYTES = 64 << 20


def drawn(*specs: TensorSpec, given: Any = None) -> list[Scene]:
    return list(scenes(specs, given))


def of(datatype: str, shape: tuple[int, ...] = (-1, 3)) -> dict[str, np.ndarray]:
    """A label without its sizes to the rows of the first scene of that kind."""
    found: dict[str, np.ndarray] = {}
    for scene in drawn(TensorSpec("x", datatype, shape)):
        found.setdefault(scene.label.partition(" ")[0], scene.rows["x"])
    return found


FREE = [
    ("normal", 4, False),
    ("unit", 1, False),
    ("wide", 4, False),
    ("whole", 4, False),
    ("spread", 4, False),
    ("unit", 4, True),
    ("wide", 1, True),
    ("normal", 16, True),
    ("normal", 32, True),
    ("normal", 64, True),
    ("normal", 224, True),
]


def test_free_dimensions_have_sizes_that_are_no_row_counts_and_pictures_come_last():
    found = drawn(TensorSpec("x", "FP32", (-1, -1, 3, -1)))
    assert [(scene.label, scene.rows["x"].shape, scene.fallback) for scene in found] == [
        (f"{kind} numbers, free dimensions of {size}", (5, size, 3, size), fallback) for kind, size, fallback in FREE
    ]


def test_without_free_dimensions_each_kind_is_drawn_once():
    found = drawn(TensorSpec("x", "FP32", (-1, 3)))
    assert [(scene.label, scene.fallback) for scene in found] == [
        (f"{kind} numbers", False) for kind in ("normal", "unit", "wide", "whole", "spread")
    ]
    assert all(scene.rows["x"].shape == (ROWS, 3) for scene in found)


def test_a_free_dimension_of_several_inputs_has_the_same_size():
    for scene in drawn(TensorSpec("a", "FP32", (-1, -1)), TensorSpec("b", "INT64", (-1, 2, -1))):
        assert scene.rows["a"].shape[1] == scene.rows["b"].shape[2]


def test_optional_inputs_are_tried_with_and_without():
    found = drawn(TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (-1, 2), optional=True))
    assert [(scene.label, sorted(scene.rows)) for scene in found[:4]] == [
        ("normal numbers, all inputs", ["a", "b"]),
        ("normal numbers, required inputs", ["a"]),
        ("unit numbers, all inputs", ["a", "b"]),
        ("unit numbers, required inputs", ["a"]),
    ]
    alone = drawn(TensorSpec("b", "FP32", (-1, 2), optional=True))
    assert {tuple(scene.rows) for scene in alone} == {("b",)}, "a scene has inputs"


@pytest.mark.parametrize(
    ("columns", "fits"), [(MOST_BYTES // (5 * 8 * 224), True), (MOST_BYTES // (5 * 8 * 224) + 1, False)]
)
def test_a_fallback_beyond_sixty_four_mebibytes_is_left_out(columns: int, fits: bool, monkeypatch: pytest.MonkeyPatch):
    # Not drawn, for its size: what is asked is which are.
    asked: list[str] = []
    monkeypatch.setattr(
        "serinus.dataplane.joining.sampling._drawn", lambda label, kind, tails, fallback: asked.append(label)
    )
    drawn(TensorSpec("x", "FP32", (-1, -1, columns)))
    assert ("normal numbers, free dimensions of 224" in asked) is fits
    assert "normal numbers, free dimensions of 64" in asked
    assert "spread numbers, free dimensions of 4" in asked


def test_the_same_rows_are_drawn_every_time():
    for one, other in zip(
        drawn(TensorSpec("x", "BYTES", (-1, 2))), drawn(TensorSpec("x", "BYTES", (-1, 2))), strict=True
    ):
        assert one.rows["x"].tolist() == other.rows["x"].tolist()


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_floats_are_features_probabilities_pixels_counts_and_hundreds(datatype: str):
    found = of(datatype, (-1, 300))
    assert {array.dtype.itemsize * 8 for array in found.values()} == {int(datatype[2:])}
    rows = {kind: array.astype(np.float64) for kind, array in found.items()}
    assert rows["normal"].min() < 0
    assert 2 < np.abs(rows["normal"]).max() < 6
    assert rows["unit"].min() >= 0
    assert 0.9 < rows["unit"].max() <= 1
    assert rows["wide"].min() >= 0
    assert 230 < rows["wide"].max() <= 255
    assert set(np.unique(rows["whole"])) <= set(range(10))
    assert (rows["whole"] == 0).mean() > 0.25
    assert rows["spread"].min() < -100
    assert 200 < rows["spread"].max() < 600


@pytest.mark.parametrize("datatype", ["INT32", "UINT32", "INT64", "UINT64"])
def test_integers_are_indices(datatype: str):
    found = of(datatype, (-1, 300))
    spans = {kind: (int(array.min()), int(array.max())) for kind, array in found.items()}
    assert spans == {"normal": (0, 1), "unit": (0, 9), "wide": (1, 2), "whole": (0, 9), "spread": (0, 9)}
    assert {array.dtype for array in found.values()} == {np.dtype(datatype.lower())}


@pytest.mark.parametrize(("datatype", "most"), [("INT8", 127), ("UINT8", 255), ("INT16", 255), ("UINT16", 255)])
def test_small_integers_go_up_to_two_hundred_and_fifty_five(datatype: str, most: int):
    found = of(datatype, (-1, 3000))
    spans = {kind: (int(array.min()), int(array.max())) for kind, array in found.items()}
    whole = (0, most)
    assert spans == {"normal": whole, "unit": (0, 9), "wide": whole, "whole": whole, "spread": whole}


def test_texts_are_words_or_digits_and_truth_values_both():
    found = of("BYTES", (-1, 50))
    assert all(len(text) == 1 and text.isdigit() for text in found["unit"].ravel())
    assert all(len(text) == 6 and text.isalpha() and text.islower() for text in found["normal"].ravel())
    assert found["normal"].shape == (ROWS, 50)
    truths = of("BOOL", (-1, 50))["normal"]
    assert truths.dtype == bool
    assert 0 < truths.mean() < 1


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "INT8", "BOOL"])
def test_rows_of_one_number_differ(datatype: str):
    for kind, array in of(datatype, (-1,)).items():
        assert array.shape == (ROWS,)
        assert len(np.unique(array)) > 1, kind


# Neighbours


def test_loud_neighbours_are_a_thousand_times_as_large_and_as_small():
    (scene, *_) = drawn(TensorSpec("x", "FP64", (-1, 40)))
    loud, rows = scene.loud["x"], scene.rows["x"]
    assert loud.shape == rows.shape
    factors = [1e3, 1e-3, 1e3, 1e-3, 1e3]
    back = {tuple(np.round(row / factor, 9)) for row, factor in zip(loud, factors, strict=True)}
    assert back == {tuple(np.round(row, 9)) for row in rows}


def test_loud_halves_stay_finite():
    spec = TensorSpec("x", "FP16", (-1, 100))
    for scene in drawn(spec):
        assert np.isfinite(scene.loud["x"]).all()
        assert scene.loud["x"].dtype == np.float16
    assert max(float(scene.loud["x"].max()) for scene in drawn(spec)) == float(np.finfo(np.float16).max)


@pytest.mark.parametrize("datatype", ["INT64", "BYTES", "BOOL"])
def test_loud_neighbours_of_all_else_are_the_rows_in_reverse(datatype: str):
    for scene in drawn(TensorSpec("x", datatype, (-1, 3))):
        assert scene.loud["x"].tolist() == scene.rows["x"][::-1].tolist()
        assert scene.loud["x"].base is None, "their own"


def test_extreme_floats_are_no_numbers_infinities_the_largest_and_zeros():
    (scene, *_) = drawn(TensorSpec("x", "FP32", (-1, 2)))
    most = float(np.finfo(np.float32).max / 2)
    found = scene.extreme["x"]
    assert np.isnan(found[0]).all()
    assert found[1:].tolist() == [[np.inf] * 2, [-np.inf] * 2, [most] * 2, [0.0] * 2]
    assert np.isfinite(scene.rows["x"]).all(), "the rows stay as they are"


def test_extreme_texts_are_empty_long_foreign_and_signed():
    (scene, *_) = drawn(TensorSpec("x", "BYTES", (-1, 1)))
    assert [row[0] for row in scene.extreme["x"]] == [b"", b"x" * 1000, "é中".encode(), b"0", b"-1"]


@pytest.mark.parametrize(("datatype", "most"), [("INT64", None), ("INT32", None), ("INT8", 127), ("UINT16", 65535)])
def test_extreme_integers_are_the_least_and_the_largest_and_beyond_where_they_are_no_indices(
    datatype: str, most: int | None
):
    (scene, *_) = drawn(TensorSpec("x", datatype, (-1, 20)))
    rows, found = scene.rows["x"], scene.extreme["x"]
    assert set(found[0]) == {rows.min()}
    assert set(found[1]) == {rows.max()}
    if most is None:
        assert found[2:].tolist() == rows[2:].tolist()
    else:
        assert (set(found[2]), set(found[3])) == ({most}, {0})
        assert found[4].tolist() == rows[4].tolist()


def test_an_input_without_values_has_extremes_without():
    (scene, *_) = drawn(TensorSpec("x", "INT64", (-1, 0)))
    assert scene.extreme["x"].shape == (ROWS, 0)


# Around the model's own example


def test_a_models_own_example_is_varied_first():
    given = {"x": np.full((2, 1000), 100.0, np.float32), "ids": np.arange(2000).reshape(2, 1000)}
    first, second, *_ = drawn(TensorSpec("x", "FP32", (-1, 4)), given=given)
    assert (first.label, first.fallback, second.label) == ("around the model's own example", False, "normal numbers")
    x, ids = first.rows["x"], first.rows["ids"]
    assert (x.shape, x.dtype) == ((ROWS, 1000), np.float32)
    assert 9 < x.std() < 11
    assert 99 < x.mean() < 101
    assert len({tuple(row) for row in ids.tolist()}) == ROWS
    assert all(sorted(row) == list(range(1000)) for row in ids.tolist()), "in another order"
    zeros = drawn(TensorSpec("x", "FP32", (-1, 4)), given={"x": np.zeros((1, 1000))})[0].rows["x"]
    assert 0.09 < zeros.std() < 0.11


@pytest.mark.parametrize("given", [None, {}, {"x": np.float32(1)}, {"x": np.zeros((0, 4))}])
def test_no_example_or_one_without_rows_is_not_varied(given: Any):
    assert drawn(TensorSpec("x", "FP32", (-1, 4)), given=given)[0].label == "normal numbers"
