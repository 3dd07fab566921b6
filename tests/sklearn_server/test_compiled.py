"""Each kind of estimator that is compiled, against scikit-learn on rows that training did not see."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from representative import every
from serinus.errors import ConfigError, InvalidInput
from serinus.model import Call
from sklearn_support import LABELS, classes, load, rows, save

pytestmark = pytest.mark.slow

ensemble = Deferred("sklearn.ensemble")
trees = Deferred("sklearn.tree")
linear = Deferred("sklearn.linear_model")
svm = Deferred("sklearn.svm")
scaling = Deferred("sklearn.preprocessing")
impute = Deferred("sklearn.impute")
pipeline = Deferred("sklearn.pipeline")

TWO = {"classes": 2}
MISSING = {"missing": 0.1}

CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "tree": (lambda: trees.DecisionTreeClassifier(random_state=0), MISSING),
    "tree-regressor": (lambda: trees.DecisionTreeRegressor(random_state=0), {}),
    "extra-tree": (lambda: trees.ExtraTreeClassifier(random_state=0), {}),
    "forest": (lambda: ensemble.RandomForestClassifier(20, random_state=0), MISSING),
    "forest-two": (lambda: ensemble.RandomForestClassifier(20, random_state=0), TWO),
    "forest-regressor": (lambda: ensemble.RandomForestRegressor(20, random_state=0), {}),
    "extra-trees": (lambda: ensemble.ExtraTreesClassifier(20, random_state=0), {}),
    "extra-trees-regressor": (lambda: ensemble.ExtraTreesRegressor(20, random_state=0), {}),
    "boosting": (lambda: ensemble.GradientBoostingClassifier(n_estimators=8), {}),
    "boosting-two": (lambda: ensemble.GradientBoostingClassifier(n_estimators=8), TWO),
    "boosting-exponential": (lambda: ensemble.GradientBoostingClassifier(n_estimators=8, loss="exponential"), TWO),
    "boosting-zero": (lambda: ensemble.GradientBoostingClassifier(n_estimators=8, init="zero"), TWO),
    "boosting-regressor": (lambda: ensemble.GradientBoostingRegressor(n_estimators=8, loss="huber"), {}),
    "histogram": (lambda: ensemble.HistGradientBoostingClassifier(max_iter=8), MISSING),
    "histogram-two": (lambda: ensemble.HistGradientBoostingClassifier(max_iter=8), TWO),
    "histogram-regressor": (lambda: ensemble.HistGradientBoostingRegressor(max_iter=8), MISSING),
    "histogram-poisson": (lambda: ensemble.HistGradientBoostingRegressor(max_iter=8, loss="poisson"), {}),
    "logistic": (lambda: linear.LogisticRegression(), {}),
    "logistic-two": (lambda: linear.LogisticRegression(), TWO),
    "linear": (lambda: linear.LinearRegression(), {}),
    "ridge": (lambda: linear.Ridge(), {}),
    "lasso": (lambda: linear.Lasso(alpha=0.01), {}),
    "sgd": (lambda: linear.SGDClassifier(random_state=0), {}),
    "sgd-log": (lambda: linear.SGDClassifier(loss="log_loss", random_state=0), {}),
    "sgd-huber": (lambda: linear.SGDClassifier(loss="modified_huber", random_state=0), TWO),
    "sgd-regressor": (lambda: linear.SGDRegressor(random_state=0), {}),
    "svc": (lambda: svm.LinearSVC(), {}),
    "scaled": (lambda: pipeline.make_pipeline(scaling.StandardScaler(), linear.LogisticRegression()), {}),
    "filled": (
        lambda: pipeline.make_pipeline(
            impute.SimpleImputer(), scaling.MinMaxScaler(clip=True), ensemble.RandomForestClassifier(10, random_state=0)
        ),
        MISSING,
    ),
    "robust": (
        lambda: pipeline.make_pipeline(
            scaling.RobustScaler(), scaling.MaxAbsScaler(), ensemble.GradientBoostingClassifier(n_estimators=5)
        ),
        {},
    ),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


def fitted(make: Callable[[], Any], *, classes: int = 3, missing: float = 0.0) -> Any:
    data = rows(missing=missing)
    return make().fit(data, _classes(data, classes))


_classes = classes


@pytest.mark.parametrize("name", every(3, CASES))
def test_a_compiled_model_answers_as_scikit_learn_does(name: str, tmp_path: Path):
    make, about = CASES[name]
    live = fitted(make, **about)
    save(live, tmp_path)
    model = load(tmp_path)
    assert model.details["engine"] == "compiled", model.details["engine_reason"]
    data = rows(77, missing=about.get("missing", 0.0), seed=5)
    methods = [one for one in ("predict", "predict_proba", "decision_function") if hasattr(live, one)]
    wanted = frozenset(methods)
    if name.endswith(("regressor", "poisson")) or name in ("linear", "ridge", "lasso"):
        methods = ["predict"]
        wanted = frozenset(methods)
    assert wanted == set(model._offered)
    together = model.predict({"x": data}, Call(outputs=wanted))
    alone = [model.predict({"x": data[at : at + 1]}, Call(outputs=wanted)) for at in range(len(data))]
    for method in methods:
        expected = getattr(live, method)(data)
        for got in (together[method], np.concatenate([one[method] for one in alone])):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    if name.startswith(("forest", "extra", "tree")):  # bit for bit
        np.testing.assert_array_equal(together[methods[-1]], getattr(live, methods[-1])(data))
    model.unload()


@pytest.mark.parametrize("name", ["forest", "extra-trees", "boosting", "histogram", "logistic", "scaled"])
def test_what_scikit_learn_refuses_is_refused_and_what_it_takes_is_taken(name: str, tmp_path: Path):
    live = fitted(CASES[name][0])
    save(live, tmp_path)
    model = load(tmp_path)
    assert model.details["engine"] == "compiled"
    for value in (np.nan, np.inf, 1e300):
        data = rows(3)
        data[1, 2] = value
        try:
            with np.errstate(over="ignore"):
                expected = live.predict(data)
        except ValueError:
            with pytest.raises(InvalidInput, match="row 1, column 2"):
                model.predict({"x": data}, Call())
        else:
            np.testing.assert_array_equal(model.predict({"x": data}, Call())["predict"], expected)


def test_labels_are_texts_where_training_had_texts(tmp_path: Path):
    data = rows()
    live = ensemble.RandomForestClassifier(5, random_state=0).fit(data, LABELS[classes(data)])
    save(live, tmp_path)
    model = load(tmp_path)
    got = model.predict({"x": data[:20]}, Call())["predict"]
    assert [one.decode() for one in got] == live.predict(data[:20]).tolist()
    assert model.outputs[0].datatype == "BYTES"
    assert model.details["classes"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("method", "names"),
    [("predict", {"predict"}), ("predict_proba", {"predict_proba"}), ("both", {"predict", "predict_proba"})],
)
def test_the_setting_method_says_what_answers(method: str, names: set[str], tmp_path: Path):
    save(fitted(CASES["forest"][0]), tmp_path)
    model = load(tmp_path, method=method)
    assert set(model.predict({"x": rows(2)}, Call())) == names
    assert {spec.name for spec in model.outputs if not spec.optional} == names


def test_kserves_switch_answers_with_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(fitted(CASES["forest"][0]), tmp_path)
    monkeypatch.setenv("PREDICT_PROBA", "true")
    assert set(load(tmp_path).predict({"x": rows(2)}, Call())) == {"predict_proba"}
    assert set(load(tmp_path, method="predict").predict({"x": rows(2)}, Call())) == {"predict"}


def test_a_method_that_the_model_does_not_have_is_refused(tmp_path: Path):
    save(fitted(CASES["svc"][0]), tmp_path)
    with pytest.raises(
        ConfigError, match="asks for predict_proba, which the model does not have; it has predict, decision"
    ):
        load(tmp_path, method="predict_proba")


def test_what_is_not_compiled_is_served_by_scikit_learn_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    live = fitted(lambda: svm.SVC())
    save(live, tmp_path)
    with caplog.at_level(logging.WARNING):
        model = load(tmp_path)
    assert (model.details["engine"], model.details["engine_reason"]) == ("sklearn", "the estimator SVC")
    assert "served by scikit-learn: the estimator SVC" in caplog.text
    np.testing.assert_array_equal(model.predict({"x": rows(9)}, Call())["predict"], live.predict(rows(9)))
    with pytest.raises(InvalidInput, match="does not take a request of 0 rows; send at least one"):
        model.predict({"x": rows(9)[:0]}, Call())
    with pytest.raises(ConfigError, match="'compiled', which does not cover it: the estimator SVC"):
        load(tmp_path, engine="compiled")


def test_a_transformer_alone_answers_with_what_it_makes(tmp_path: Path):
    live = scaling.StandardScaler().fit(rows())
    save(live, tmp_path)
    np.testing.assert_array_equal(load(tmp_path).predict({"x": rows(3)}, Call())["transform"], live.transform(rows(3)))


def test_another_version_of_scikit_learn_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    live = fitted(CASES["ridge"][0])
    live._sklearn_version = "1.2.3"
    path = save(live, tmp_path)
    import zipfile

    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    import sklearn as installed

    held["schema.json"] = held["schema.json"].replace(installed.__version__.encode(), b"1.2.3")
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in held.items():
            archive.writestr(name, body)
    with caplog.at_level(logging.WARNING):
        model = load(tmp_path)
    assert f"was saved by scikit-learn 1.2.3, and {installed.__version__} is installed" in caplog.text
    assert "install scikit-learn==1.2.3, or save the model again" in caplog.text
    assert model.details["sklearn_version"] == "1.2.3"
