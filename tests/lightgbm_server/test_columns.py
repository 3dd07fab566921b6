"""Columns and pandas categories by name, against what LightGBM answers to the DataFrame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataplane_support import serving
from deferred import Deferred
from lightgbm_server import LightGBMModel
from lightgbm_server.pandas_categories import read
from lightgbm_support import load
from serinus import InferRequest, Tensor
from serinus.dataplane.plane import Plane
from serinus.errors import InvalidInput
from serinus.settings import ModelSettings

lightgbm = Deferred("lightgbm")
pandas = Deferred("pandas")

CITIES = ["oslo", "bergen", "tromsø", "bodø"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


def _frame(count: int = 600) -> Any:
    random = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "age of owner": random.normal(40, 10, count),
            "city": pandas.Series(random.choice(CITIES, count)).astype("category"),
            "level": pandas.Series(random.choice([30, 10, 20], count)).astype("category"),
            "always": pandas.Series(["a"] * count).astype("category"),
            "member": pandas.Series(random.choice([True, False], count)).astype("category"),
        }
    )


def _train(folder: Path) -> tuple[lightgbm.Booster, Any]:
    frame = _frame()
    label = (
        3.0 * frame.city.isin(CITIES[::2])
        + 2.0 * (frame.level.astype(int) == 20)
        + frame.member.astype(bool)
        + frame["age of owner"] / 40
    )
    settings = {
        "objective": "regression",
        "num_threads": 1,
        "verbosity": -1,
        "min_data_per_group": 5,
        "cat_smooth": 1.0,
    }
    booster = lightgbm.train(settings, lightgbm.Dataset(frame, label=label), 12)
    booster.save_model(folder / "model.txt")
    return booster, frame


def _values(frame: Any) -> dict[str, list[Any]]:
    """The frame's columns as JSON has them."""
    return {
        "member": [bool(value) for value in frame.member],
        "city": list(frame.city),
        "age of owner": frame["age of owner"].tolist(),
        "always": list(frame.always),
        "level": [int(value) for value in frame.level],
    }


async def _v1(plane: Plane, document: Any) -> Any:
    return json.loads(await plane.predict_v1("m", json.dumps(document).encode()))


def _settings(folder: Path, **extra: object) -> ModelSettings:
    return ModelSettings(name="m", model_dir=folder, extra=extra)


@pytest.mark.parametrize("engine", ["forest", "booster"])
async def test_categories_come_by_name_by_code_and_in_rows(tmp_path: Path, engine: str) -> None:
    booster, frame = _train(tmp_path)
    some = frame.head(40)
    wanted = booster.predict(some)
    assert len(set(wanted.tolist())) > 8
    columns = _values(some)
    tensors = [
        Tensor.of(
            name, np.array([value.encode() for value in values], object) if type(values[0]) is str else np.array(values)
        )
        for name, values in columns.items()
    ]
    codes = np.column_stack(
        [some["age of owner"], *(some[name].cat.codes for name in ("city", "level", "always", "member"))]
    ).astype(np.float64)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    async with serving(LightGBMModel, _settings(tmp_path, engine=engine)) as plane:
        assert plane.model_metadata("m").parameters["trees"] == "12 of 12"
        underscored = [Tensor.of(tensor.name.replace(" ", "_"), tensor.data) for tensor in tensors]
        for sent in (tensors, tensors[::-1], underscored, [Tensor.of("x", codes)]):
            response = await plane.infer(InferRequest("m", sent, parameters={"content_type": "pd"}))
            np.testing.assert_allclose(response.outputs[0].data, wanted, rtol=5e-16)
        np.testing.assert_allclose((await _v1(plane, {"instances": rows}))["predictions"], wanted, rtol=5e-16)
        np.testing.assert_allclose((await _v1(plane, {"inputs": columns}))["outputs"], wanted, rtol=5e-16)


async def test_a_name_that_training_did_not_see_is_missing_as_to_lightgbm(tmp_path: Path) -> None:
    booster, frame = _train(tmp_path)
    some = frame.head(4).copy()
    columns = _values(some)
    columns["city"][0], columns["city"][1], columns["level"][2] = "paris", None, 25
    some["city"] = pandas.Categorical(columns["city"])
    some["level"] = pandas.Categorical(columns["level"])
    async with serving(LightGBMModel, _settings(tmp_path)) as plane:
        answer = await _v1(plane, {"inputs": columns})
    np.testing.assert_allclose(answer["outputs"], booster.predict(some), rtol=5e-16)


async def test_a_refusal_names_the_columns_and_half_a_code_is_no_category(tmp_path: Path) -> None:
    _, frame = _train(tmp_path)
    columns = _values(frame.head(1))
    async with serving(LightGBMModel, _settings(tmp_path)) as plane:
        with pytest.raises(
            InvalidInput, match=r"'age_of_owner' is missing; .*missing are age_of_owner; unknown are age$"
        ):
            await _v1(
                plane,
                {"inputs": {"age" if name.startswith("age") else name: values for name, values in columns.items()}},
            )
        with pytest.raises(InvalidInput, match=r"input 'city': 1\.5 in row 0 is no category's code"):
            await _v1(plane, {"inputs": {**columns, "city": [1.5]}})
        with pytest.raises(InvalidInput, match="input 'age_of_owner': the model takes numbers, not texts"):
            await _v1(plane, {"inputs": {**columns, "age of owner": ["old"]}})
        with pytest.raises(InvalidInput, match="is the feature 'age_of_owner', which came already"):
            await _v1(plane, {"inputs": {**columns, "age_of_owner": [1.0]}})


async def test_a_model_of_a_matrix_has_names_of_its_own(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(200, 2))
    booster = lightgbm.train({"verbosity": -1, "num_threads": 1}, lightgbm.Dataset(data, label=data[:, 0]), 3)
    booster.save_model(tmp_path / "model.txt")
    async with serving(LightGBMModel, _settings(tmp_path)) as plane:
        answer = await _v1(plane, {"instances": [{"Column_1": 0.5, "Column_0": None}, {"Column_0": 1, "Column_1": 2}]})
    np.testing.assert_allclose(answer["predictions"], booster.predict(np.array([[np.nan, 0.5], [1, 2]])), rtol=5e-16)


TAIL = "\n\npandas_categorical:"
OPEN: dict[str, tuple[list[str], str]] = {
    "no frame": (["[0:1]", "-1:1:0"], "\npandas_categorical:null\n"),
    "no line": (["[0:1]", "-1:1:0"], "\n"),
    "more lists than columns": (["[0:1]", "-1:1:0"], TAIL + '[["a", "b"], ["c"]]'),
    "a code beyond the list": (["[0:1]", "-1:1:0:2"], TAIL + '[["a", "b"]]'),
    "no JSON": (["[0:1]", "-1:1:0"], TAIL + "[["),
    "a category twice": (["[0:1]", "-1:1:0"], TAIL + '[["a", "a"]]'),
    "no list": (["[0:1]", "-1:1:0"], TAIL + '{"a": 1}'),
    "a category that is a list": (["[0:1]", "-1:1:0"], TAIL + '[["a", ["b"]]]'),
}


@pytest.mark.parametrize("name", OPEN)
def test_categories_whose_column_is_open_are_taken_by_code_only(name: str) -> None:
    infos, tail = OPEN[name]
    assert read(infos, tail) == ((1,), {})


def test_a_column_that_no_split_could_use_has_its_categories_all_the_same() -> None:
    assert read(["none", "[0:1]", "-1:1:0"], TAIL + '[["a"], [true, false]]') == ((0, 2), {0: ("a",), 2: (True, False)})


def test_a_file_without_infos_is_served_as_before(tmp_path: Path) -> None:
    booster, frame = _train(tmp_path)
    path = tmp_path / "model.txt"
    lines = [line for line in path.read_text().split("\n") if not line.startswith("feature_infos=")]
    path.write_text("\n".join(lines))
    assert load(path).details["model_file"] == "model.txt"
    assert booster.num_feature() == len(frame.columns)
