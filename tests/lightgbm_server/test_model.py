"""The runtime against LightGBM itself: every objective, missing value and split; inputs, outputs, settings, errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane_support import serving
from deferred import Deferred
from lightgbm_server import LightGBMModel
from lightgbm_support import OBJECTIVES, hurtful, load, rows, save, train
from representative import every
from serinus import InferRequest, RequestedOutput, Tensor
from serinus.errors import ConfigError, InvalidInput, NotSupported
from serinus.model import Call
from serinus.settings import ModelSettings

lightgbm = Deferred("lightgbm")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


def _ask(model: LightGBMModel, data: np.ndarray, *outputs: str) -> dict[str, np.ndarray]:
    return dict(model.predict({"x": data}, Call(outputs=frozenset(outputs) if outputs else None)))


def _agrees(booster: lightgbm.Booster, model: LightGBMModel, data: np.ndarray) -> None:
    """The engine serves, sums exactly as LightGBM does, and transforms within two units in the last place."""
    assert model.details["engine"] == "forest", model.details["engine_reason"]
    got = _ask(model, data, "predict", "margin")
    np.testing.assert_array_equal(got["margin"], booster.predict(data, raw_score=True))
    np.testing.assert_allclose(got["predict"], booster.predict(data), rtol=5e-16, atol=0)
    np.testing.assert_array_equal(_ask(model, data)["predict"], got["predict"])


@pytest.mark.parametrize("categorical", every(2, [True, False]), ids=["categories", "numbers"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_predictions_and_raw_scores_equal_the_boosters(objective: str, categorical: bool, tmp_path: Path) -> None:
    booster = train(objective, categorical=categorical)
    model = load(save(booster, tmp_path))
    for count in (1, 3, 8, 21, 200):
        _agrees(booster, model, rows(count, seed=count))
    _agrees(booster, model, hurtful(booster))
    assert _ask(model, rows(3))["predict"].dtype == np.float64


@pytest.mark.parametrize(
    "parameters",
    [
        {"zero_as_missing": True},
        {"use_missing": False},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6},
        {"boosting": "dart", "drop_rate": 0.5},
        {"boosting": "goss"},
        {"linear_tree": False, "extra_trees": True, "max_depth": 2},
        {"max_cat_to_onehot": 100},
    ],
    ids=lambda parameters: "-".join(f"{name}={value}" for name, value in parameters.items()),
)
@pytest.mark.parametrize("categorical", every(2, [True, False]), ids=["categories", "numbers"])
@pytest.mark.parametrize("objective", every(2, ["multiclass", "binary"]))
def test_every_way_of_training_is_walked_as_the_booster_walks_it(
    parameters: dict, categorical: bool, objective: str, tmp_path: Path
) -> None:
    booster = train(objective, categorical=categorical, **parameters)
    model = load(save(booster, tmp_path))
    _agrees(booster, model, hurtful(booster))
    _agrees(booster, model, rows(64, missing=0))


def test_a_square_root_regression_is_squared_with_its_sign(tmp_path: Path) -> None:
    booster = train("regression", reg_sqrt=True)
    assert "objective=regression sqrt" in booster.model_to_string()
    _agrees(booster, load(save(booster, tmp_path)), hurtful(booster))


def test_a_model_without_features_seen_missing_takes_nan_for_zero(tmp_path: Path) -> None:
    booster = train(data=rows(500, missing=0))
    model = load(save(booster, tmp_path))
    data = rows(200, missing=0.3)
    _agrees(booster, model, data)
    np.testing.assert_array_equal(_ask(model, data)["predict"], _ask(model, np.nan_to_num(data))["predict"])


def test_an_objective_of_the_trainers_own_answers_raw_scores(tmp_path: Path) -> None:
    def squared(predicted: np.ndarray, data: lightgbm.Dataset) -> tuple[np.ndarray, np.ndarray]:
        return predicted - data.get_label(), np.ones_like(predicted)

    data = rows(300)
    parameters = {"objective": squared, "num_threads": 1, "verbosity": -1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(data, np.nansum(data[:, :3], axis=1)), 8)
    model = load(save(booster, tmp_path))
    assert model.details["objective"] == "custom"
    _agrees(booster, model, rows(50))


@pytest.mark.slow
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    seed=st.integers(0, 10_000),
    trees=st.integers(1, 20),
    leaves=st.integers(2, 40),
    objective=st.sampled_from(["binary", "multiclass", "poisson", "regression"]),
    categorical=st.booleans(),
    zero_as_missing=st.booleans(),
    missing=st.sampled_from([0.0, 0.3]),
    count=st.integers(1, 100),
)
def test_any_small_forest_answers_as_the_booster(
    seed: int,
    trees: int,
    leaves: int,
    objective: str,
    categorical: bool,
    zero_as_missing: bool,
    missing: float,
    count: int,
    tmp_path: Path,
) -> None:
    booster = train(
        objective,
        trees=trees,
        leaves=leaves,
        seed=seed,
        categorical=categorical,
        zero_as_missing=zero_as_missing,
        data=rows(120, seed=seed, missing=missing),
    )
    model = load(save(booster, tmp_path), engine="forest")
    _agrees(booster, model, hurtful(booster, seed=seed))
    _agrees(booster, model, rows(count, seed=seed + 1, missing=missing))


@pytest.mark.slow
def test_constant_trees_and_wide_rows_are_walked(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    data = random.normal(size=(60, 900))
    data[::7] = np.nan
    parameters = {"objective": "regression", "min_data_in_leaf": 5, "num_threads": 1, "verbosity": -1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(data, data[:, 890]), 5)
    model = load(save(booster, tmp_path))
    _agrees(booster, model, data)
    parameters["min_data_in_leaf"] = 50
    booster = lightgbm.train(parameters, lightgbm.Dataset(data, np.arange(60.0)), 3)
    assert "num_leaves=1" in booster.model_to_string()
    _agrees(booster, load(save(booster, tmp_path)), data)


# The Booster's part


def test_linear_trees_are_left_to_the_booster_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    booster = train("regression", linear_tree=True)
    model = load(save(booster, tmp_path))
    assert (model.details["engine"], model.details["engine_reason"]) == ("booster", "linear trees")
    assert "served by lightgbm's Booster: linear trees" in caplog.text
    data = rows(50)
    np.testing.assert_array_equal(_ask(model, data)["predict"], booster.predict(data))
    np.testing.assert_array_equal(_ask(model, data, "margin")["margin"], booster.predict(data, raw_score=True))
    with pytest.raises(NotSupported, match="linear trees"):
        _ask(model, data, "contributions")
    with pytest.raises(ConfigError, match="does not cover it: linear trees"):
        load(tmp_path, engine="forest")


@pytest.mark.parametrize("engine", ["auto", "booster"])
@pytest.mark.parametrize("objective", ["binary", "multiclass"])
def test_outputs_on_request_are_those_of_the_readme(objective: str, engine: str, tmp_path: Path) -> None:
    booster = train(objective, categorical=True)
    model = load(save(booster, tmp_path), engine=engine)
    data = rows(30)
    got = _ask(model, data, "predict", "margin", "probability", "class", "contributions")
    scores = booster.predict(data, raw_score=True)
    np.testing.assert_array_equal(got["probability"], got["predict"])
    np.testing.assert_array_equal(got["class"], scores.argmax(axis=1) if scores.ndim == 2 else scores > 0)
    np.testing.assert_allclose(got["contributions"].sum(axis=-1), got["margin"], atol=1e-9)
    for spec in model.outputs:
        assert got[spec.name].shape == tuple(30 if size == -1 else size for size in spec.shape), spec.name
    with pytest.raises(InvalidInput, match="output 'none': the model offers"):
        _ask(model, data, "none")


def test_iterations_are_those_asked_for(tmp_path: Path) -> None:
    booster = train("multiclass", boosting="rf", bagging_freq=1, bagging_fraction=0.6)
    path = save(booster, tmp_path)
    data = rows(40)
    for start, count in ((0, 3), (2, 4), (5, -1)):
        model = load(path, start_iteration_predict=start, num_iteration_predict=count)
        assert model.details["engine"] == "forest"
        wanted = booster.predict(data, start_iteration=start, num_iteration=count)
        np.testing.assert_allclose(_ask(model, data)["predict"], wanted, rtol=5e-16)
    with pytest.raises(ConfigError, match="iterations 6 to 9 are wanted, the model has 0 to 8"):
        load(path, start_iteration_predict=6, num_iteration_predict=3)


def test_a_model_that_stopped_early_holds_its_best_iterations(tmp_path: Path) -> None:
    data = rows(300)
    parameters = {"objective": "regression", "num_threads": 1, "verbosity": -1, "learning_rate": 0.9}
    labels = np.random.default_rng(0).normal(size=300)
    booster = lightgbm.train(
        parameters,
        train_set := lightgbm.Dataset(data[:150], labels[:150]),
        50,
        valid_sets=[lightgbm.Dataset(data[150:], labels[150:], reference=train_set)],
        callbacks=[lightgbm.early_stopping(3, verbose=False)],
    )
    model = load(save(booster, tmp_path))
    assert model.details["iterations"] == f"0-{booster.best_iteration}"
    _agrees(booster, model, data)


# Starting


@pytest.mark.slow  # a process
def test_a_warm_start_imports_no_lightgbm(tmp_path: Path) -> None:
    path = save(train(categorical=True), tmp_path)
    load(path)
    program = (
        "import sys, numpy as np; from pathlib import Path; from serinus.settings import ModelSettings\n"
        "from serinus.model import Call; from lightgbm_server import LightGBMModel\n"
        f"model = LightGBMModel(ModelSettings(name='m', model_dir=Path({str(path)!r}))); model.load()\n"
        "model.predict({'x': np.zeros((1, 6))}, Call())\n"
        "print(model.details['engine'], 'lightgbm' in sys.modules, 'scipy' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["forest", "False", "False"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 3], "'end of trees' is missing"),
        (lambda text: text.replace("tree\n", "forest\n", 1), "not a LightGBM text model"),
        (lambda text: "\x80\x04" + text, "not a LightGBM text model"),
        (lambda text: text.replace("max_feature_idx=5", "max_feature_idx=0"), "leads to column"),
        (lambda text: text.replace("threshold=", "threshold=1 "), "threshold has 12 values, not 11"),
        (lambda text: text.replace("leaf_value=", "leaf_value=x"), "could not convert"),
        (lambda text: text.replace("left_child=", "gone="), "the line left_child= is missing"),
        (lambda text: text.replace("num_tree_per_iteration=1", "num_tree_per_iteration=3"), "8 trees, 3 an iteration"),
        (lambda text: text.replace("Tree=3", "Leaf=3"), "7 trees came, 8 are announced"),
    ],
    ids=["cut", "other", "pickle", "column", "threshold", "leaf", "line", "groups", "tree"],
)
def test_a_damaged_file_is_refused_by_name(change, message: str, tmp_path: Path) -> None:
    path = save(train(), tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(ConfigError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_ring_of_nodes_is_not_walked(tmp_path: Path) -> None:
    path = save(train(leaves=3), tmp_path)
    lines = ["left_child=0 0" if line.startswith("left_child=") else line for line in path.read_text().split("\n")]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"damaged: .*ring"):
        load(path, engine="forest")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"engin": "auto"}, "did you mean engine"),
        ({"engine": "gpu"}, "accepted are auto, forest, booster"),
        ({"num_iteration_predict": "3"}, "whole number"),
        ({"output_name": ""}, "may not be empty"),
    ],
    ids=["unknown", "engine", "number", "name"],
)
def test_a_wrong_setting_is_refused(extra: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(save(train(), tmp_path), **extra)


# Behind the plane


async def test_any_tensor_name_and_number_type_is_served(tmp_path: Path) -> None:
    booster = train()
    save(booster, tmp_path)
    data = rows(5, missing=0).astype(np.float32).astype(np.float64)
    async with serving(LightGBMModel, ModelSettings(name="m", model_dir=tmp_path)) as plane:
        for name, array in (("input-0", data), ("x", data.astype(np.float32))):
            response = await plane.infer(InferRequest("m", [Tensor.of(name, array)]))
            assert [(tensor.name, tensor.datatype) for tensor in response.outputs] == [("predict", "FP64")]
            np.testing.assert_allclose(response.outputs[0].data, booster.predict(data), rtol=5e-16)
        wanted = [RequestedOutput("contributions")]
        response = await plane.infer(InferRequest("m", [Tensor.of("x", data)], outputs=wanted))
        np.testing.assert_allclose(response.outputs[0].data, booster.predict(data, pred_contrib=True))
        with pytest.raises(InvalidInput, match="the model takes 6"):
            await plane.infer(InferRequest("m", [Tensor.of("x", rows(2)[:, :5])]))


async def test_columns_by_name_are_put_side_by_side(tmp_path: Path) -> None:
    booster = train(categorical=True)
    save(booster, tmp_path)
    data = rows(7)
    columns = [Tensor.of(f"f{index}", data[:, index].copy()) for index in range(6)]
    columns[4] = Tensor.of("f4", np.nan_to_num(data[:, 4]).astype(np.int64).reshape(-1, 1))
    data[:, 4] = np.nan_to_num(data[:, 4])
    settings = ModelSettings(name="m", model_dir=tmp_path, extra={"input_form": "columns"})
    async with serving(LightGBMModel, settings) as plane:
        response = await plane.infer(InferRequest("m", columns[::-1]))
        np.testing.assert_allclose(response.outputs[0].data, booster.predict(data), rtol=5e-16)
        with pytest.raises(InvalidInput, match="input 'f5' is missing"):
            await plane.infer(InferRequest("m", columns[:5]))
