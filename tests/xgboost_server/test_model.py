"""The runtime against XGBoost itself: every objective, every format, every kind of row; outputs, inputs, settings, errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deferred import Deferred
from representative import every
from serinus.errors import ConfigError, InvalidInput
from serinus.model import Call
from serinus.settings import ModelSettings
from xgboost_server import XGBoostModel
from xgboost_support import OBJECTIVES, legacy, legacy_cases, load, rows, save, train

xgboost = Deferred("xgboost")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


def _ask(model: XGBoostModel, data: np.ndarray, *outputs: str) -> dict[str, np.ndarray]:
    return dict(model.predict({"x": data}, Call(outputs=frozenset(outputs) if outputs else None)))


@pytest.mark.parametrize("suffix", every(2, ["ubj", "json"]))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_predictions_and_margins_equal_the_boosters(objective: str, suffix: str, tmp_path: Path) -> None:
    booster = train(objective)
    model = load(save(booster, tmp_path, f"model.{suffix}"))
    assert model.details["engine"] == "forest", model.details["engine_reason"]
    for count in (1, 3, 8, 21, 200):
        data = rows(count, seed=count)
        wanted = booster.inplace_predict(data)
        got = _ask(model, data)["predict"]
        assert got.shape == wanted.shape
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
        margins = booster.inplace_predict(data, predict_type="margin")
        np.testing.assert_array_equal(_ask(model, data, "margin")["margin"], margins.reshape(margins.shape))


@pytest.mark.parametrize("objective", ["binary:logistic", "count:poisson", "multi:softprob"])
@pytest.mark.parametrize("base_score", [0.02, 0.5, 0.9])
def test_a_base_score_of_the_users_is_mapped_to_a_margin_as_xgboost_does(
    objective: str, base_score: float, tmp_path: Path
) -> None:
    booster = train(objective, base_score=base_score, trees=2)
    model = load(save(booster, tmp_path))
    data = rows(50)
    np.testing.assert_array_equal(
        _ask(model, data, "margin")["margin"], booster.inplace_predict(data, predict_type="margin")
    )


def test_a_random_forest_with_parallel_trees_is_covered(tmp_path: Path) -> None:
    booster = train("multi:softprob", trees=2, num_parallel_tree=5, subsample=0.7, eta=1)
    model = load(save(booster, tmp_path))
    assert model.details["engine"] == "forest"
    data = rows(40)
    np.testing.assert_allclose(_ask(model, data)["predict"], booster.inplace_predict(data), atol=1e-6)


def test_several_targets_with_one_output_per_tree_are_covered(tmp_path: Path) -> None:
    data = rows(200)
    labels = np.stack([np.nansum(data, axis=1), np.nansum(data[:, :2], axis=1)], axis=1)
    booster = xgboost.train({"max_depth": 3, "nthread": 1}, xgboost.DMatrix(data, labels), 5)
    model = load(save(booster, tmp_path))
    assert model.details["engine"] == "forest"
    np.testing.assert_allclose(_ask(model, data)["predict"], booster.inplace_predict(data), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("version", "name"), legacy_cases())
def test_an_old_binary_model_answers_as_the_xgboost_that_wrote_it(version: str, name: str, tmp_path: Path) -> None:
    path, data, predictions, margins = legacy(version, name, tmp_path)
    model = load(path)
    assert model.details["model_format"] == "binary"
    assert model.details["engine"] == ("booster" if name == "dart" else "forest"), model.details["engine_reason"]
    np.testing.assert_allclose(_ask(model, data)["predict"], predictions, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(_ask(model, data, "margin")["margin"], margins, rtol=1e-6, atol=2e-6)


def test_an_old_binary_model_explains_its_predictions(tmp_path: Path) -> None:
    path, data, _, margins = legacy("1.7.6", "logistic", tmp_path)
    contributions = _ask(load(path), data, "contributions")["contributions"]
    np.testing.assert_allclose(contributions.sum(axis=1), margins, atol=1e-5)


@pytest.mark.parametrize("missing", [-999.0, 0.0])
def test_a_missing_value_of_the_users_counts_beside_nan(missing: float, tmp_path: Path) -> None:
    booster = train()
    model = load(save(booster, tmp_path), missing=missing)
    data = rows(64)
    data[::3, 1] = missing
    np.testing.assert_array_equal(_ask(model, data)["predict"], booster.inplace_predict(data, missing=missing))
    assert np.any(_ask(model, data)["predict"] != _ask(load(tmp_path), data)["predict"])


def test_values_on_a_threshold_and_beside_it_take_the_boosters_side(tmp_path: Path) -> None:
    booster = train(trees=20)
    model = load(save(booster, tmp_path))
    splits = booster.trees_to_dataframe().query("Feature != 'Leaf'")
    data = []
    for feature, threshold in zip(splits["Feature"], splits["Split"], strict=True):
        for step in (-np.inf, 0, np.inf):
            row = np.zeros(6, np.float32)
            value = np.float32(threshold)
            row[int(feature[1:])] = value if step == 0 else np.nextafter(value, np.float32(step))
            data.append(row)
    data = np.array(data, np.float32)
    assert len(data) > 300
    np.testing.assert_array_equal(_ask(model, data)["predict"], booster.inplace_predict(data))


def test_infinite_values_take_the_boosters_side(tmp_path: Path) -> None:
    booster = train()
    model = load(save(booster, tmp_path))
    data = rows(64)
    data[::2, 0], data[1::2, 1] = np.inf, -np.inf
    np.testing.assert_array_equal(_ask(model, data)["predict"], booster.inplace_predict(data))


# Iterations


def _stopped_early(folder: Path) -> xgboost.Booster:
    booster = train(trees=8)
    booster.set_attr(best_iteration="3")
    save(booster, folder)
    return booster


@pytest.mark.parametrize(
    ("setting", "used"), [("best", (0, 4)), ("all", (0, 8)), ([2, 5], (2, 5)), ([6, 0], (6, 8))], ids=str
)
def test_iterations_are_those_asked_for(setting: object, used: tuple[int, int], tmp_path: Path) -> None:
    booster = _stopped_early(tmp_path)
    model = load(tmp_path, iteration_range=setting)
    data = rows(20)
    np.testing.assert_array_equal(_ask(model, data)["predict"], booster.inplace_predict(data, iteration_range=used))
    assert model.details["iterations"] == f"{used[0]}-{used[1]}"


def test_an_iteration_range_outside_the_model_is_refused_at_load(tmp_path: Path) -> None:
    _stopped_early(tmp_path)
    with pytest.raises(ConfigError, match=r"iteration_range \[3, 9\]: the model has iterations 0 to 8"):
        load(tmp_path, iteration_range=[3, 9])


# What the engine does not cover


def _categorical(folder: Path) -> tuple[Path, np.ndarray]:
    data = np.stack([np.arange(200) % 5, np.arange(200) % 7], axis=1).astype(np.float32)
    matrix = xgboost.DMatrix(
        data, (data[:, 0] == 2).astype(np.float32), feature_types=["c", "q"], enable_categorical=True
    )
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1, "max_depth": 3}, matrix, 3)
    return save(booster, folder), data


def _linear(folder: Path) -> tuple[Path, np.ndarray]:
    data = rows(100)
    matrix = xgboost.DMatrix(data, (np.nansum(data, axis=1) > 0).astype(np.float32))
    return save(
        xgboost.train({"objective": "binary:logistic", "booster": "gblinear", "nthread": 1}, matrix, 3), folder
    ), data


def _dart(folder: Path) -> tuple[Path, np.ndarray]:
    return save(train(booster="dart", rate_drop=0.5), folder), rows(20)


def _vector_leaf(folder: Path) -> tuple[Path, np.ndarray]:
    data = rows(200)
    labels = np.stack([np.nansum(data, axis=1), np.nansum(data[:, :2], axis=1)], axis=1)
    settings = {"multi_strategy": "multi_output_tree", "tree_method": "hist", "nthread": 1, "max_depth": 3}
    return save(xgboost.train(settings, xgboost.DMatrix(data, labels), 3), folder), data


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_categorical, "categorical"),
        (_linear, "gblinear"),
        (_dart, "booster dart|dropout"),
        (_vector_leaf, "multi_output_tree"),
    ],
    ids=["categorical", "gblinear", "dart", "vector-leaf"],
)
def test_what_the_engine_does_not_cover_is_served_by_the_booster_and_says_so(
    make, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, data = make(tmp_path)
    model = load(path)
    assert model.details["engine"] == "booster"
    assert re.search(reason, model.details["engine_reason"])
    assert any(re.search(reason, record.getMessage()) for record in caplog.records if record.levelname == "WARNING")
    booster = xgboost.Booster()
    booster.load_model(path)
    got = _ask(model, data, "predict", "margin")
    wanted = booster.predict(xgboost.DMatrix(data)) if reason == "gblinear" else booster.inplace_predict(data)
    np.testing.assert_allclose(got["predict"], wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match=reason):
        load(path, engine="forest")


# Outputs


def test_only_the_prediction_is_answered_unless_more_is_named(tmp_path: Path) -> None:
    model = load(save(train(), tmp_path))
    assert [spec.name for spec in model.outputs if not spec.optional] == ["predict"]
    assert list(_ask(model, rows(2))) == ["predict"]


@pytest.mark.parametrize("engine", ["forest", "booster"])
@pytest.mark.parametrize(
    "objective", ["binary:logistic", "binary:logitraw", "binary:hinge", "multi:softprob", "multi:softmax"]
)
def test_classifiers_answer_margins_probabilities_and_classes(objective: str, engine: str, tmp_path: Path) -> None:
    booster = train(objective)
    model = load(save(booster, tmp_path), engine=engine)
    data = rows(30)
    names = [spec.name for spec in model.outputs if spec.name != "contributions"]
    assert ("probability" in names) == (objective != "binary:hinge")
    got = _ask(model, data, *names)
    assert sorted(got) == sorted(names)
    for spec in model.outputs:
        if spec.name in got:
            assert got[spec.name].ndim == len(spec.shape)
            assert got[spec.name].dtype == {"FP32": np.float32, "INT64": np.int64}[spec.datatype]
    margins = booster.inplace_predict(data, predict_type="margin")
    if objective.startswith("multi:"):
        raised = np.exp(margins.astype(np.float64))
        np.testing.assert_allclose(got["probability"], raised / raised.sum(axis=1, keepdims=True), atol=1e-6)
        np.testing.assert_array_equal(got["class"], margins.argmax(axis=1))
    else:
        np.testing.assert_array_equal(got["class"], margins > 0)
        if objective != "binary:hinge":
            np.testing.assert_allclose(got["probability"], 1 / (1 + np.exp(-margins.astype(np.float64))), atol=1e-6)


@pytest.mark.parametrize("objective", ["binary:logistic", "multi:softprob"])
def test_contributions_add_up_to_the_margin(objective: str, tmp_path: Path) -> None:
    model = load(save(train(objective), tmp_path))
    got = _ask(model, rows(12), "contributions", "margin")
    assert list(got["contributions"].shape[1:]) == list(model.outputs[-1].shape[1:])
    np.testing.assert_allclose(got["contributions"].sum(axis=-1), got["margin"], atol=1e-5)


def test_the_prediction_bears_the_name_of_the_setting(tmp_path: Path) -> None:
    model = load(save(train(), tmp_path), output_name="output-0")
    assert list(_ask(model, rows(1))) == ["output-0"]
    with pytest.raises(InvalidInput, match="output 'predict': the model offers"):
        _ask(model, rows(1), "predict")


# Inputs


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.int8, np.uint32, np.bool_])
def test_numbers_of_every_type_are_taken(dtype: type, tmp_path: Path) -> None:
    booster = train()
    model = load(save(booster, tmp_path))
    data = (rows(9, missing=0) * 3).astype(dtype)
    np.testing.assert_array_equal(_ask(model, data)["predict"], booster.inplace_predict(data.astype(np.float32)))


def test_read_only_strided_and_fortran_arrays_are_taken(tmp_path: Path) -> None:
    booster = train()
    model = load(save(booster, tmp_path))
    data = rows(40)
    wanted = booster.inplace_predict(data)
    frozen = np.frombuffer(data.tobytes(), np.float32).reshape(data.shape)
    for form in (frozen, np.asfortranarray(data), np.repeat(data, 2, axis=0)[::2]):
        np.testing.assert_array_equal(_ask(model, form)["predict"], wanted)
    np.testing.assert_array_equal(_ask(model, frozen[:1])["predict"], wanted[:1])


def test_no_rows_give_no_predictions(tmp_path: Path) -> None:
    model = load(save(train("multi:softprob"), tmp_path))
    assert _ask(model, np.empty((0, 6), np.float32))["predict"].shape == (0, 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((2, 5), np.float32), r"input 'x': shape \[2, 5\] does not fit; the model takes \[n, 6\]"),
        (np.zeros(6, np.float32), r"shape \[6\] does not fit"),
        (np.array([[b"a"] * 6], object), "takes numbers, not object"),
    ],
    ids=["features", "rank", "bytes"],
)
def test_a_matrix_that_does_not_fit_is_the_clients_fault(data: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        _ask(load(save(train(), tmp_path)), data)


def _named(folder: Path) -> xgboost.Booster:
    booster = train()
    booster.feature_names = ["amount", "hour", "age", "b1", "b2", "b3"]
    save(booster, folder)
    return booster


def test_columns_by_feature_name_are_put_in_the_order_of_training(tmp_path: Path) -> None:
    booster = _named(tmp_path)
    model = load(tmp_path, input_form="columns")
    assert [spec.name for spec in model.inputs] == booster.feature_names
    data = rows(7)
    columns = {name: data[:, index] for index, name in enumerate(booster.feature_names)}
    shuffled = {name: columns[name].astype(np.float64).reshape(-1, 1) for name in sorted(columns)}
    wanted = booster.inplace_predict(data, validate_features=False)
    np.testing.assert_array_equal(model.predict(columns, Call())["predict"], wanted)
    np.testing.assert_array_equal(model.predict(shuffled, Call())["predict"], wanted)


def test_missing_and_unknown_columns_are_named(tmp_path: Path) -> None:
    _named(tmp_path)
    model = load(tmp_path, input_form="columns")
    columns = {name: np.zeros(2, np.float32) for name in ("amount", "hour", "age", "b1", "b2", "colour")}
    with pytest.raises(InvalidInput, match="missing are b3; unknown are colour"):
        model.predict(columns, Call())


def test_columns_of_different_length_are_refused(tmp_path: Path) -> None:
    booster = _named(tmp_path)
    columns = {name: np.zeros(2 + (name == "age"), np.float32) for name in booster.feature_names}
    with pytest.raises(InvalidInput, match="input 'age': 3 rows, while 'amount' has 2"):
        load(tmp_path).predict(columns, Call())


def test_columns_need_feature_names_in_the_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds 0 feature names for 6 features"):
        load(save(train(), tmp_path), input_form="columns")


# Settings and life


def test_all_wrong_settings_are_told_at_once(tmp_path: Path) -> None:
    extra = {"engin": "forest", "missing": "many", "iteration_range": "some", "engine": "gpu"}
    with pytest.raises(ConfigError) as caught:
        XGBoostModel(ModelSettings(name="m", model_dir=tmp_path, extra=extra))
    assert len(caught.value.problems) == 4
    assert "did you mean engine" in caught.value.problems[0]


def test_a_model_without_its_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="model_dir is not set"):
        XGBoostModel(ModelSettings(name="m")).load()


def test_an_unloaded_model_predicts_no_more(tmp_path: Path) -> None:
    model = load(save(train(), tmp_path))
    model.unload()
    with pytest.raises(ConfigError, match="not loaded"):
        _ask(model, rows(1))


def test_warm_up_rows_fit(tmp_path: Path) -> None:
    _named(tmp_path)
    for form in ("matrix", "columns"):
        model = load(tmp_path, input_form=form)
        assert model.predict(model.warmup_inputs(), Call())["predict"].shape == (1,)


@pytest.mark.slow  # a process
def test_a_warm_start_imports_neither_xgboost_nor_anything_of_scipy(tmp_path: Path) -> None:
    path = save(train(), tmp_path)
    wanted = _ask(load(path), rows(3))["predict"]
    script = (
        "import sys, numpy as np; from xgboost_server import XGBoostModel\n"
        "from serinus.settings import ModelSettings; from serinus.model import Call; from pathlib import Path\n"
        "model = XGBoostModel(ModelSettings(name='m', model_dir=Path(sys.argv[1]))); model.load()\n"
        "assert not {'xgboost', 'scipy', 'numba', 'pandas'} & set(sys.modules), sorted(sys.modules)\n"
        "data = np.frombuffer(bytes.fromhex(sys.argv[2]), np.float32).reshape(3, 6)\n"
        "print(model.predict({'x': data}, Call())['predict'].tobytes().hex())\n"
    )
    data = rows(3).tobytes().hex()
    ran = subprocess.run([sys.executable, "-c", script, str(path), data], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == wanted.tobytes().hex()
