"""Histogram-based boosting with categories: compiled, and equal to scikit-learn to the last bit, on random models and hostile rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from depth import DEEP
from serinus.errors import ConfigError, InvalidInput
from serinus.model import Call
from sklearn_support import load, save

pytestmark = pytest.mark.slow

ensemble = Deferred("sklearn.ensemble")
preprocessing = Deferred("sklearn.preprocessing")
pipeline = Deferred("sklearn.pipeline")
compose = Deferred("sklearn.compose")
pd = Deferred("pandas")

RAW = {"classifier": "decision_function", "regressor": "predict"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


def table(random: np.random.Generator, count: int, sizes: list[int], numbers: int, missing: float) -> np.ndarray:
    """Codes of categories, then numbers, a share of all missing."""
    codes = np.stack([random.integers(0, size, count) for size in sizes], axis=1).astype(np.float64)
    made = np.concatenate([codes, random.normal(size=(count, numbers))], axis=1)
    made[random.random(made.shape) < missing] = np.nan
    return made


def target(random: np.random.Generator, data: np.ndarray, classes: int) -> np.ndarray:
    """What the categories' parity and a number decide, with noise."""
    score = 2 * (np.nan_to_num(data[:, 0]) % 2) + np.nan_to_num(data[:, -1]) + 0.3 * random.normal(size=len(data))
    return score if not classes else np.digitize(score, np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1]))


EACH_KIND = [0, 1, 2, 3, 11]
"""Of regression and each number of classes, with missing values and without, and as many categories as there can be."""


@pytest.mark.parametrize("seed", range(12) if DEEP else EACH_KIND)
def test_random_models_of_categories_are_equal_to_the_last_bit(seed: int, tmp_path: Path):
    random = np.random.default_rng(seed)
    sizes = [255 if seed == 11 else int(random.choice([2, 5, 40])) for _ in range(int(random.integers(1, 4)))]
    classes = [0, 2, 3, 5][seed % 4]
    missing = 0.0 if seed % 3 == 0 else 0.15
    data = table(random, 6000 if seed == 11 else 900, sizes, int(random.integers(1, 4)), missing)
    made = ensemble.HistGradientBoostingClassifier if classes else ensemble.HistGradientBoostingRegressor
    live = made(max_iter=15, min_samples_leaf=5, categorical_features=list(range(len(sizes))), random_state=seed)
    live.fit(data, target(random, data, classes))
    save(live, tmp_path)
    model = load(tmp_path)
    assert model.details["engine"] == "compiled", model.details["engine_reason"]
    assert sum(nodes["is_categorical"].sum() for stage in live._predictors for one in stage for nodes in [one.nodes])
    hurt = table(random, 400, sizes, data.shape[1] - len(sizes), 0.3)
    odd = np.array([-1.0, 0.5, 255.0, 256.0, 1e300, -0.0, np.nan])  # none is a category, but -0.0, which is 0
    at = random.random((len(hurt), len(sizes))) < 0.3
    hurt[:, : len(sizes)][at] = random.choice(odd, int(at.sum()))
    method = RAW["classifier" if classes else "regressor"]
    wanted = frozenset([method])
    together = model.predict({"x": hurt}, Call(outputs=wanted))[method]
    expected = getattr(live, method)(hurt)
    np.testing.assert_array_equal(together, expected)
    alone = [model.predict({"x": hurt[n : n + 1]}, Call(outputs=wanted))[method] for n in range(60)]
    np.testing.assert_array_equal(np.concatenate(alone), expected[:60])
    model.unload()


def test_categories_of_a_frame_are_texts_by_name(tmp_path: Path):
    random = np.random.default_rng(3)
    cities = np.array(["rome", "oslo", "lima"], object)
    frame = pd.DataFrame(
        {
            "income": random.normal(size=600),
            "city": pd.Categorical(random.choice(cities, 600)),
            "rooms": pd.Categorical(random.integers(1, 5, 600)),
        }
    )
    wanted = (frame.income > 0) ^ (frame.city == "oslo")
    live = ensemble.HistGradientBoostingClassifier(max_iter=10, categorical_features="from_dtype").fit(frame, wanted)
    save(live, tmp_path)
    model = load(tmp_path)
    assert model.details["engine"] == "compiled", model.details["engine_reason"]
    assert [(spec.name, spec.datatype) for spec in model.inputs] == [
        ("income", "FP64"),
        ("city", "BYTES"),
        ("rooms", "FP64"),
    ]
    asked = {
        "income": np.array([0.1, -0.2, 0.3, 0.4, 5.0]),
        "city": np.array([b"oslo", b"rome", b"berlin", b"lima", b"oslo"], object),
        "rooms": np.array([1.0, 2.0, 9.0, np.nan, 4.0]),
    }
    same = pd.DataFrame({**asked, "city": [one.decode() for one in asked["city"]]})
    got = model.predict(asked, Call(outputs=frozenset({"decision_function", "predict"})))
    np.testing.assert_array_equal(got["decision_function"], live.decision_function(same))
    np.testing.assert_array_equal(got["predict"], live.predict(same))
    model.unload()


def test_behind_an_encoder_and_beside_scaled_columns_it_is_compiled_too(tmp_path: Path):
    random = np.random.default_rng(4)
    frame = pd.DataFrame({"city": random.choice(["a", "b", "c", "d"], 500), "n": random.normal(size=500)})
    first = compose.ColumnTransformer(
        [
            ("c", preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan), ["city"]),
            ("n", preprocessing.StandardScaler(), ["n"]),
        ]
    )
    boosting = ensemble.HistGradientBoostingRegressor(max_iter=10, categorical_features=[0])
    live = pipeline.make_pipeline(first, boosting).fit(frame, (frame.city == "b") * 2.0 + frame.n)
    save(live, tmp_path)
    model = load(tmp_path)
    assert model.details["engine"] == "compiled", model.details["engine_reason"]
    asked = {"city": np.array([b"a", b"z", b"b"], object), "n": np.array([0.0, 1.0, np.nan])}
    same = pd.DataFrame({"city": ["a", "z", "b"], "n": asked["n"]})
    np.testing.assert_array_equal(
        model.predict(asked, Call(outputs=frozenset({"predict"})))["predict"], live.predict(same)
    )
    model.unload()


def test_an_infinite_category_is_refused_as_scikit_learn_refuses_it(tmp_path: Path):
    random = np.random.default_rng(5)
    data = table(random, 300, [4], 1, 0.0)
    live = ensemble.HistGradientBoostingRegressor(max_iter=5, categorical_features=[0]).fit(data, data[:, 0] % 2)
    save(live, tmp_path)
    model = load(tmp_path)
    odd = np.array([[np.inf, 0.0]])
    with pytest.raises(ValueError, match="infinity"):
        live.predict(odd)
    with pytest.raises(InvalidInput, match="infinite"):
        model.predict({"x": odd}, Call(outputs=frozenset({"predict"})))
    fine = np.array([[1.0, np.inf]])
    got = model.predict({"x": fine}, Call(outputs=frozenset({"predict"})))["predict"]
    np.testing.assert_array_equal(got, live.predict(fine))
    model.unload()


def test_a_partial_of_what_nobody_trusts_is_refused_by_the_name_of_what_it_calls(tmp_path: Path):
    import functools
    import os

    live = pipeline.make_pipeline(
        preprocessing.FunctionTransformer(functools.partial(os.getenv, "HOME"), validate=False),
        ensemble.HistGradientBoostingRegressor(max_iter=2),
    )
    live.steps[1][1].fit(np.zeros((30, 1)), np.arange(30.0))
    save(live, tmp_path)
    with pytest.raises(ConfigError) as refused:
        load(tmp_path)
    assert "getenv" in str(refused.value)
    assert "functools.partial" not in str(refused.value).partition("--allow")[0]


def damaged(live: Any) -> Any:
    live._predictors[0][0].nodes["bitset_idx"][:] = 9999
    return live


def test_a_node_whose_categories_lead_out_of_their_sets_is_refused(tmp_path: Path):
    random = np.random.default_rng(6)
    data = table(random, 300, [4], 1, 0.0)
    live = ensemble.HistGradientBoostingRegressor(max_iter=3, categorical_features=[0]).fit(data, data[:, 0] % 2)
    save(damaged(live), tmp_path)
    with pytest.raises(ConfigError, match="lead out of their sets"):
        load(tmp_path)
