"""The recommender's pure parts: requests, candidates, rankings, catalogues, figures."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

import recommender_support as support
from recommender_features.catalogue import Catalogue
from recommender_features.evaluation import interval, ndcg, ranks, recall
from recommender_features.features import candidates, find_users, model_inputs, top_k
from recommender_features.questions import BadQuestion, Question, ask_instances, ask_tensor

CATALOGUE = Catalogue(
    inputs=("user", "candidates"),
    item_ids=np.array([11, 22, 33]),
    popularity=np.array([0.2, 0.9, 0.5], np.float32),
    user_ids=np.array([5, 6]),
    user_features=np.zeros((2, 1), np.float32),
    history=np.array([[0, 1], [0, 0]]),
    seen=np.array([1, 3]),
    seen_ends=np.array([0, 2, 2]),
    titles=(b"One", b"Two", "Drei ü".encode()),
)


@pytest.mark.parametrize(
    ("datatype", "shape", "values", "parameters", "message"),
    [
        pytest.param("FP32", [1], [1.0], {}, "datatype FP32 came, INT64 or BYTES was expected", id="floats"),
        pytest.param("INT64", [1, 2], [1, 2], {}, r"shape \[1, 2\] came, \[n\] was expected", id="a matrix"),
        pytest.param("INT64", [0], [], {}, "0 users came, 1 to 1000", id="nobody"),
        pytest.param("INT64", [1001], [1] * 1001, {}, "1001 users came", id="too many"),
        pytest.param("INT64", [2], [1], {}, "holds 2 values, data has 1", id="short data"),
        pytest.param("BYTES", [1], [b""], {}, "row 0: an id of 0 characters", id="an empty id"),
        pytest.param("BYTES", [1], [b"\xff"], {}, "row 0: an id that is not UTF-8", id="bytes that are no text"),
        pytest.param("INT64", [1], [1], {"k": 0}, "'k': 0 came, an integer from 1 to 100", id="k of 0"),
        pytest.param("INT64", [1], [1], {"k": 101}, "'k': 101 came", id="k of 101"),
        pytest.param("INT64", [1], [1], {"k": True}, "'k': True came", id="k of true"),
        pytest.param("INT64", [1], [1], {"exclude_seen": "no"}, "'exclude_seen': 'no' came", id="a word for a flag"),
    ],
)
def test_a_bad_tensor_is_refused_with_what_came_and_what_was_expected(datatype, shape, values, parameters, message):
    with pytest.raises(BadQuestion, match=message):
        ask_tensor(datatype, shape, values, parameters)


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        pytest.param({}, "'instances': dict came, a list", id="no list"),
        pytest.param([{"user": 1}], r"instances\[0\]: unknown key 'user'", id="another key"),
        pytest.param([{}], r"instances\[0\]: 'user_id' is missing", id="no id"),
        pytest.param([5, {"user_id": 1.5}], r"instances\[1\].user_id: float came", id="a fraction"),
        pytest.param([True], r"instances\[0\]: bool came", id="a truth"),
    ],
)
def test_bad_instances_are_refused_by_their_place(instances, message):
    with pytest.raises(BadQuestion, match=message):
        ask_instances(instances, {})


def test_ids_are_taken_as_text_or_numbers_and_options_have_defaults():
    assert ask_tensor("BYTES", [2, 1], [[b"5"], [b"x"]], {}) == Question(("5", "x"), 10, True)
    assert ask_instances([5, {"user_id": "6"}], {"k": 3, "exclude_seen": False}) == Question((5, "6"), 3, False)


def test_what_was_seen_is_no_candidate_unless_it_may_be():
    users = np.array([0, 1, -1])
    assert candidates(CATALOGUE, users, exclude_seen=True).tolist() == [[0, 2, 0], [1, 2, 3], [1, 2, 3]]
    assert candidates(CATALOGUE, users, exclude_seen=False).tolist() == [[1, 2, 3]] * 3


def test_the_best_come_first_and_rows_with_too_few_end_in_no_item():
    offered = np.array([[1, 2, 3], [0, 2, 0]])
    picks = top_k(offered, np.array([[0.1, 0.3, 0.2], [9, 0.5, 9]], np.float32), 4)
    assert picks.numbers.tolist() == [[2, 3, 1, 0], [2, 0, 0, 0]]
    assert picks.item_ids(CATALOGUE).tolist() == [[22, 33, 11, -1], [22, -1, -1, -1]]
    assert picks.titles(CATALOGUE)[0].tolist() == [b"Two", "Drei ü".encode(), b"One", b""]
    assert picks.scores[1].tolist() == [0.5, 0, 0, 0]


def test_scores_that_are_nan_are_never_recommended():
    assert top_k(np.array([[1, 2]]), np.array([[np.nan, -5.0]], np.float32), 2).numbers.tolist() == [[2, 0]]


def test_a_version_gets_the_tensors_that_its_catalogue_names_in_that_order():
    both = dataclasses.replace(CATALOGUE, inputs=("history", "user_features", "candidates"))
    offered = candidates(both, np.array([0]), exclude_seen=False)
    assert list(model_inputs(both, np.array([0]), offered)) == ["history", "user_features", "candidates"]
    assert model_inputs(CATALOGUE, np.array([1]), offered)["user"].tolist() == [1]
    assert find_users({5: 0, "5": 0}, (5, "5", "x", 7)).tolist() == [0, 0, -1, -1]


def test_a_catalogue_comes_back_as_it_was_saved_with_and_without_titles(tmp_path: Path):
    CATALOGUE.save(tmp_path)
    back = Catalogue.load(tmp_path)
    assert (back.inputs, back.titles) == (CATALOGUE.inputs, CATALOGUE.titles)
    assert np.array_equal(back.seen_by(0), [1, 3])
    (tmp_path / "titles.json").unlink()
    assert Catalogue.load(tmp_path).titles == ()


def test_a_folder_without_a_catalogue_or_with_a_broken_one_says_how_to_mend_it(tmp_path: Path):
    with pytest.raises(ValueError, match="make models-recommender"):
        Catalogue.load(tmp_path)
    dataclasses.replace(CATALOGUE, inputs=("person",), popularity=np.zeros(2, np.float32)).save(tmp_path)
    with pytest.raises(ValueError, match=r"inputs person are none of .*takes no candidates.*popularity of 2 items"):
        Catalogue.load(tmp_path)
    (tmp_path / "catalogue.npz").write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match="no catalogue"):
        Catalogue.load(tmp_path)


def test_figures_are_those_of_their_definitions():
    scores = np.array([[9, 1, 2, 3], [9, 1, 1, 0], [9, 5, 4, 3]], np.float32)
    found = ranks(scores, np.array([1, 2, 3]), [np.array([3]), np.array([], int), np.array([1, 2])])
    assert found.tolist() == [1, 1, 0]  # column 0 is no item; what was seen does not count; a tie counts against
    assert recall(found, 1).tolist() == [0, 0, 1]
    assert ndcg(found, 2) == pytest.approx([1 / math.log2(3), 1 / math.log2(3), 1])
    low, high = interval(np.r_[np.zeros(500), np.ones(500)], seed=3)
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / math.sqrt(1000), abs=0.005)
    assert high == pytest.approx(0.5 + 1.96 * 0.5 / math.sqrt(1000), abs=0.005)


def test_the_committed_figures_have_version_2_better_beyond_chance():
    figures = json.loads((support.SERVICE / "metrics.json").read_text())
    for metric in ("recall_at_10", "ndcg_at_10"):
        assert figures["v2_minus_v1"][metric]["interval_95"][0] > 0
        assert figures["v1"][metric]["mean"] > figures["popularity"][metric]["mean"]


def test_nothing_made_of_the_ratings_is_committed():
    import subprocess

    listed = subprocess.run(["git", "ls-files", str(support.SERVICE)], capture_output=True, text=True, cwd=support.ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert not [name for name in listed.stdout.split() if name.endswith((".npz", ".pt2", ".pt", ".inter"))]
    assert "titles.json" not in listed.stdout
