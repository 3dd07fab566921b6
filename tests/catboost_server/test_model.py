"""CatBoost's files through the compiled walk, against CatBoost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catboost_server import CatBoostModel
from catboost_server.modelfile import read
from deferred import Deferred
from serinus.errors import ConfigError, InvalidInput
from serinus.loading import infer_implementation
from serinus.model import Call
from serinus.settings import ModelSettings

pytestmark = pytest.mark.slow

catboost = Deferred("catboost")

DATA = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
HOLES = np.where(np.random.default_rng(1).random(DATA.shape) < 0.1, np.float32(np.nan), DATA)
TWO = (DATA[:, 0] > 0).astype(int)
THREE = np.array(["a", "b", "c"])[TWO + (DATA[:, 1] > 0)]

CASES: dict[str, tuple[dict[str, Any], np.ndarray, np.ndarray, str]] = {
    "two": ({"loss_function": "Logloss"}, HOLES, TWO, "Probability"),
    "missing above all": ({"loss_function": "Logloss", "nan_mode": "Max"}, HOLES, TWO, "Probability"),
    "three": ({"loss_function": "MultiClass"}, DATA, THREE, "Probability"),
    "one against the rest": ({"loss_function": "MultiClassOneVsAll"}, DATA, THREE, "Probability"),
    "number": ({"loss_function": "RMSE"}, HOLES, DATA[:, 0], "RawFormulaVal"),
    "count": ({"loss_function": "Poisson"}, DATA, TWO, "Exponent"),
    "two numbers": ({"loss_function": "MultiRMSE"}, DATA, DATA[:, :2], "RawFormulaVal"),
    "leaf by leaf": ({"loss_function": "Logloss", "grow_policy": "Lossguide"}, HOLES, TWO, "Probability"),
    "level by level": ({"loss_function": "MultiClass", "grow_policy": "Depthwise"}, DATA, THREE, "Probability"),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


def _train(parameters: dict[str, Any], data: Any, labels: Any, **more: Any) -> Any:
    settings = {"iterations": 12, "depth": 4, "verbose": False, "allow_writing_files": False, "thread_count": 1}
    return catboost.CatBoost({**settings, **parameters}).fit(data, labels, **more)


def _load(folder: Path, **extra: Any) -> CatBoostModel:
    model = CatBoostModel(ModelSettings(name="m", model_dir=folder, extra=extra))
    model.load()
    return model


@pytest.mark.parametrize("form", ["cbm", "json"])
@pytest.mark.parametrize("name", CASES)
def test_a_compiled_model_answers_as_catboost_does(name: str, form: str, tmp_path: Path):
    parameters, data, labels, kind = CASES[name]
    live = _train(parameters, data, labels)
    live.save_model(str(tmp_path / f"model.{form}"), format=form)
    assert infer_implementation(tmp_path) == "catboost_server"
    model = _load(tmp_path)
    assert model.details["engine"] == "forest", model.details["engine_reason"]
    expected = live.predict(data, prediction_type=kind)
    if kind == "Probability" and expected.shape[1] == 2:
        expected = expected[:, 1]
    np.testing.assert_allclose(model.predict({"x": data}, Call())["predict"], expected, rtol=1e-12, atol=1e-13)
    if kind == "Probability":
        named = model.predict({"x": data}, Call(outputs=frozenset({"class"})))["class"]
        wanted = live.predict(data, prediction_type="Class").reshape(-1)
        assert [str(model.details["classes"][one]) for one in named] == [str(one) for one in wanted]


def test_categories_are_catboosts_own(tmp_path: Path):
    frame = [[1.0, "a"], [2.0, "b"], [3.0, "a"], [4.0, "b"]] * 20
    pool = catboost.Pool(frame, [0, 1, 1, 0] * 20, cat_features=[1])
    live = catboost.CatBoost(
        {"iterations": 5, "depth": 3, "loss_function": "Logloss", "verbose": False, "allow_writing_files": False}
    )
    live.fit(pool)
    live.save_model(str(tmp_path / "model.cbm"))
    model = _load(tmp_path)
    assert (model.details["engine"], model.details["engine_reason"]) == ("catboost", "categorical features")
    assert [spec.datatype for spec in model.inputs] == ["FP64", "BYTES"]
    columns = {"0": np.array([1.0, 4.0]), "1": np.array([b"a", b"b"], object)}
    expected = live.predict([[1.0, "a"], [4.0, "b"]], prediction_type="Probability")[:, 1]
    np.testing.assert_allclose(model.predict(columns, Call())["predict"], expected, rtol=1e-12)
    with pytest.raises(InvalidInput, match="does not take a request of 0 rows; send at least one"):
        model.predict({name: column[:0] for name, column in columns.items()}, Call())


@pytest.mark.parametrize("form", ["cbm", "json"])
def test_no_damage_raises_anything_but_a_refusal(form: str, tmp_path: Path):
    path = tmp_path / f"model.{form}"
    _train(*CASES["three"][:3]).save_model(str(path), format=form)
    good, draw = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        body = bytearray(good[: int(draw.integers(1, len(good)))] if draw.random() < 0.3 else good)
        for _ in range(int(draw.integers(1, 5))):
            body[int(draw.integers(0, len(body)))] = int(draw.integers(0, 256))
        path.write_bytes(bytes(body))
        try:
            read(path)
        except ConfigError:
            continue
