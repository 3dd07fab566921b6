"""XGBoost files whose indices lead out: XGBoost would follow them and end the process, so they are refused before it sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from depth import draws
from serinus.errors import ConfigError
from serinus.model import Call
from serinus.settings import ModelSettings
from xgboost_server import XGBoostModel

pytestmark = pytest.mark.slow  # a process for each damaged file

xgboost = Deferred("xgboost")


def saved(folder: Path, *, categorical: bool = False, **parameters: Any) -> Path:
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 4)).astype(np.float32)
    rows[:, 1] = random.integers(0, 9, 300)
    label = rows[:, 1] % 2 == 0 if categorical else rows[:, 0] > 0.2
    kinds: dict[str, Any] = {"feature_types": ["q", "c", "q", "q"], "enable_categorical": True} if categorical else {}
    trained = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1, **parameters}
    xgboost.train(trained, xgboost.DMatrix(rows, label, **kinds), 3).save_model(folder / "model.json")
    return folder / "model.json"


def load(path: Path, engine: str = "booster") -> XGBoostModel:
    model = XGBoostModel(ModelSettings(name="m", model_dir=path, extra={"engine": engine}))
    model.load()
    return model


def tree_of(document: dict[str, Any], number: int = 1) -> dict[str, Any]:
    return document["learner"]["gradient_booster"]["model"]["trees"][number]


def put(name: str, at: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        tree_of(document)[name][at] = value

    return change


def parameter(name: str, value: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["learner"]["learner_model_param"].update({name: value})


def _leaf_vector(size: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: tree_of(document)["tree_param"].update(size_leaf_vector=size)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a billion classes": (parameter("num_class", "1000000000"), "num_class or num_target is 1000000000; at most 65536"),
    "a billion targets": (
        parameter("num_target", "1000000000"),
        "num_class or num_target is 1000000000; at most 65536",
    ),
    "a leaf of a billion numbers": (
        _leaf_vector("1000000000"),
        "size_leaf_vector is 1000000000, the model has 1 outputs",
    ),
    "a leaf of fewer numbers than none": (_leaf_vector("-1"), "size_leaf_vector is -1"),
    "a child beyond all": (put("right_children", 0, 2**40), "a child is not one of"),
    "a child below all": (put("left_children", 0, -7), "a child is not one of"),
    "one child": (put("left_children", 0, -1), "has one child"),
    "a ring": (put("left_children", 0, 0), "parents and children disagree"),
    "a parent that is none": (put("parents", 2, -1), "a parent is not one of"),
    "a parent of others": (put("parents", 2, 1), "parents and children disagree"),
    "a root with a parent": (put("parents", 0, 1), "the root has a parent"),
    "a column that is none": (put("split_indices", 0, 99), "split_indices lead out of the model's 4 features"),
    "a fraction for a child": (put("left_children", 0, 1.5), "left_children holds more than whole numbers"),
    "text for a threshold": (put("split_conditions", 0, "x"), "split_conditions holds"),
    "too few thresholds": (lambda d: tree_of(d)["split_conditions"].pop(), "split_conditions holds"),
    "too few gains": (lambda d: tree_of(d)["loss_changes"].pop(), "loss_changes holds"),
    "a default that is none": (put("default_left", 0, 3), "default_left does not say 0 or 1"),
    "more nodes announced": (lambda d: tree_of(d)["tree_param"].update(num_nodes="99999999"), "num_nodes is 99999999"),
    "a category beyond all": (put("categories", 0, 2**31), "a category is not between"),
    "a segment beyond all": (put("categories_sizes", 0, 2**31), "categories_segments lead out"),
    "a set without a node": (lambda d: tree_of(d)["categories_nodes"].pop(), "categories_nodes do not name nodes"),
    "sets left out": (
        lambda d: [tree_of(d)[f"categories_{name}"].clear() for name in ("nodes", "sizes", "segments")] and None,
        "split_type and categories_nodes disagree",
    ),
    "an output that is none": (
        lambda d: d["learner"]["gradient_booster"]["model"]["tree_info"].__setitem__(0, 5),
        "tree_info does not give each",
    ),
    "more trees announced": (
        lambda d: d["learner"]["gradient_booster"]["model"]["gbtree_model_param"].update(num_trees="9"),
        "3 trees came, 9 are announced",
    ),
    "billions of features": (parameter("num_feature", "2000000000"), "num_feature is 2000000000"),
}


@pytest.mark.parametrize("engine", ["auto", "booster"])
@pytest.mark.parametrize("case", CHANGES)
def test_a_file_whose_indices_lead_out_is_refused_in_words(case: str, engine: str, tmp_path: Path):
    change, said = CHANGES[case]
    path = saved(tmp_path, categorical=True)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=said) as caught:
        load(path, engine)
    assert str(path) in str(caught.value)


def _of_xgboost_3_0(tree: dict[str, Any]) -> None:
    del tree["leaf_weights"]
    tree["right_children"] = [
        -1 if left == -1 else right for left, right in zip(tree["left_children"], tree["right_children"], strict=True)
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_of_xgboost_3_0, "leaf_weights is missing; an XGBoost before 3.1"),
        (
            lambda tree: tree["tree_param"].update(size_leaf_vector="2"),
            "size_leaf_vector is 2, the model has 3 outputs",
        ),
        (lambda tree: tree.update(leaf_weights=tree["leaf_weights"][:3]), "lead out of leaf_weights"),
    ],
)
def test_leaves_of_several_numbers_are_where_xgboost_looks_for_them(
    change: Callable[[Any], Any], said: str, tmp_path: Path
):
    rows = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    settings = {"multi_strategy": "multi_output_tree", "tree_method": "hist", "nthread": 1, "max_depth": 2}
    path = tmp_path / "model.json"
    xgboost.train(settings, xgboost.DMatrix(rows, rows), 2).save_model(path)
    assert load(path).outputs
    document = json.loads(path.read_text())
    change(tree_of(document))
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=said):
        load(path)


def test_linear_weights_that_are_too_few_are_refused(tmp_path: Path):
    path = saved(tmp_path, booster="gblinear", max_depth=None)
    document = json.loads(path.read_text())
    document["learner"]["gradient_booster"]["model"]["weights"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="4 weights for 4 features and 1 outputs"):
        load(path)


KINDS: dict[str, dict[str, Any]] = {
    "trees": {},
    "categories": {"categorical": True},
    "dart": {"booster": "dart", "rate_drop": 0.5},
    "linear": {"booster": "gblinear", "max_depth": None},
    "pruned": {"gamma": 5.0},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_xgboost_answers_to_the_last_bit_what_it_is_given_of_json(kind: dict[str, Any], tmp_path: Path):
    """It is given the JSON that was checked, not the file."""
    path = saved(tmp_path, **kind)
    booster = xgboost.Booster(model_file=path)
    rows = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    model = load(path)
    name = model.inputs[0].name
    sent = {name: rows} if not kind.get("categorical") else {name: np.abs(np.round(rows))}
    types = {"feature_types": ["q", "c", "q", "q"], "enable_categorical": True} if kind.get("categorical") else {}
    expected = booster.predict(xgboost.DMatrix(sent[name], **types))
    np.testing.assert_array_equal(model.predict(sent, Call())[model.outputs[0].name], expected)


def test_of_a_key_that_is_there_twice_xgboost_gets_the_value_that_was_checked(tmp_path: Path):
    path = saved(tmp_path)
    text = path.read_text()
    at = text.index('"left_children":')
    path.write_text(f'{text[:at]}"left_children":[99999999],{text[at:]}')
    assert load(path).details["engine"] == "booster"


_MUTATIONS = """
import copy, json, random, sys
sys.modules.update(sklearn=None, pandas=None)  # XGBoost imports them where they are, for nothing that is asked of it here: a second
from pathlib import Path
import numpy as np
from serinus.errors import ConfigError
from serinus.model import Call
from serinus.settings import ModelSettings
from xgboost_server import XGBoostModel

document, path, draw = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), random.Random(5)
values = [-1, 0, 1, 7, 2**31 - 1, -(2**31), 2**31, 2**40, 1.5, 1e39, "x", "-1", "nan", None, [], {}]
loaded = refused = 0
while loaded + refused < int(sys.argv[3]):
    changed = copy.deepcopy(document)
    tree = draw.choice(changed["learner"]["gradient_booster"]["model"]["trees"])
    name = draw.choice([key for key, value in tree.items() if isinstance(value, list) and value])
    at = draw.randrange(len(tree[name]))
    draw.choice([lambda: tree[name].pop(at), lambda: tree[name].append(tree[name][at]),
                 lambda: tree[name].__setitem__(at, draw.choice(values)), lambda: tree.pop(name),
                 lambda: tree[name].__setitem__(at, draw.randrange(len(tree[name])))])()
    path.write_text(json.dumps(changed))
    try:
        model = XGBoostModel(ModelSettings(name="m", model_dir=path, extra={"engine": "booster"}))
        model.load()
        model.predict({model.inputs[0].name: np.full((3, 4), np.nan, np.float32)}, Call())
        loaded += 1
    except ConfigError:
        refused += 1
print(loaded, refused)
"""


@pytest.mark.parametrize("categorical", [False, True])
def test_no_mutation_of_a_tree_ends_the_process(categorical: bool, tmp_path: Path):
    path = saved(tmp_path, categorical=categorical)
    count = draws(150, 60)
    arguments = [sys.executable, "-c", _MUTATIONS, str(path), str(tmp_path / "mutated.json"), str(count)]
    ran = subprocess.run(arguments, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    loaded, refused = map(int, ran.stdout.split()[-2:])
    assert min(loaded, refused) > draws(10, 2)
