"""Columns and categories by name: V2 tensors, V1 rows and pandas' form beside the matrix, against what XGBoost answers to the frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataplane_support import serving
from deferred import Deferred
from representative import every
from serinus import InferRequest, Tensor
from serinus.dataplane.plane import Plane
from serinus.errors import ConfigError, InvalidInput
from serinus.feature_columns import FeatureColumns
from serinus.model import Call
from serinus.settings import ModelSettings
from xgboost_server import XGBoostModel
from xgboost_support import load, rows, save, train

pandas = Deferred("pandas")
xgboost = Deferred("xgboost")

NAMES = ["amount", "hour", "age", "b1", "b2", "b3"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


def _settings(folder: Path, **extra: object) -> ModelSettings:
    return ModelSettings(name="m", model_dir=folder, extra=extra)


def _named(folder: Path) -> xgboost.Booster:
    booster = train()
    booster.feature_names = NAMES
    save(booster, folder)
    return booster


async def _v1(plane: Plane, document: Any) -> Any:
    return json.loads(await plane.predict_v1("m", json.dumps(document).encode()))


FORMS = ["matrix", "columns"]


@pytest.mark.parametrize("form", FORMS)
async def test_both_forms_are_taken_whichever_the_metadata_tells_and_share_batches(tmp_path: Path, form: str) -> None:
    booster = _named(tmp_path)
    data = rows(7)
    columns = [Tensor.of(name, data[:, index].copy()) for index, name in enumerate(NAMES)]
    wanted = booster.inplace_predict(data, validate_features=False)
    async with serving(XGBoostModel, _settings(tmp_path, input_form=form)) as plane:
        told = [spec.name for spec in plane.model_metadata("m").inputs]
        assert told == (["input-0"] if form == "matrix" else NAMES)
        pandas_form = {"content_type": "pd"}
        for tensors in ([Tensor.of("x", data)], columns, columns[::-1]):
            response = await plane.infer(InferRequest("m", tensors, parameters=pandas_form))
            np.testing.assert_array_equal(response.outputs[0].data, wanted)
        checks: Any = plane.registry.find("m")
        keys = {checks._checks.admit(InferRequest("m", tensors))[0] for tensors in ([Tensor.of("x", data)], columns)}
        assert len(keys) == 1


async def test_columns_of_any_number_type_and_shape_are_one_matrix(tmp_path: Path) -> None:
    booster = _named(tmp_path)
    data = np.array([[3, 1, 0, 2.5, -1, 1], [0, 2, np.nan, 1, 7, 0]], np.float32)
    tensors = [
        Tensor.of("b3", data[:, 5] > 0),
        Tensor.of("age", data[:, 2].astype(np.float64)),
        Tensor.of("amount", data[:, 0].astype(np.int64).reshape(-1, 1)),
        Tensor.of("hour", data[:, 1].astype(np.uint8)),
        Tensor.of("b2", data[:, 4].astype(np.int16)),
        Tensor.of("b1", data[:, 3]),
    ]
    async with serving(XGBoostModel, _settings(tmp_path)) as plane:
        response = await plane.infer(InferRequest("m", tensors))
    np.testing.assert_array_equal(response.outputs[0].data, booster.inplace_predict(data, validate_features=False))


async def test_rows_with_names_are_answered_in_v1(tmp_path: Path) -> None:
    booster = _named(tmp_path)
    data = np.array([[1, 2, 3, 4, 5, 6], [6, 5, np.nan, 3.5, 2, 1]], np.float32)
    wanted = booster.inplace_predict(data, validate_features=False)
    plain = [[None if np.isnan(value) else float(value) for value in row] for row in data]
    objects = [dict(zip(NAMES, row, strict=True)) for row in plain]
    shuffled = [dict(sorted(row.items())) for row in objects]
    by_column = {name: [row[name] for row in objects] for name in NAMES}
    frame = [{name: {"0": value} for name, value in row.items()} for row in objects]
    cells = [{name: [value] for name, value in row.items()} for row in objects]
    whole = [{name: dict(enumerate(values)) for name, values in by_column.items()}]
    bodies = (
        {"instances": objects},
        {"instances": shuffled},
        {"inputs": frame},
        {"instances": cells},
        {"inputs": whole},
    )
    async with serving(XGBoostModel, _settings(tmp_path)) as plane:
        for body in bodies:
            np.testing.assert_allclose((await _v1(plane, body))["predictions"], wanted, rtol=1e-6)
        answer = await _v1(plane, {"inputs": by_column})
        np.testing.assert_allclose(answer["outputs"], wanted, rtol=1e-6)


REFUSED: dict[str, tuple[list[str], str]] = {
    "missing": (NAMES[:4], "input 'b2' is missing; .*missing are b2, b3$"),
    "unknown": ([*NAMES, "colour"], "input 'colour' is no feature of the model; .*unknown are colour$"),
    "both": ([*NAMES[:5], "colour"], "input 'b3' is missing; .*missing are b3; unknown are colour$"),
    "one of many": (["age"], "input 'amount' is missing; .*missing are amount, hour, b1, b2, b3$"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refusal_names_the_columns(tmp_path: Path, case: str) -> None:
    _named(tmp_path)
    names, message = REFUSED[case]
    async with serving(XGBoostModel, _settings(tmp_path)) as plane:
        with pytest.raises(InvalidInput, match=message):
            await plane.infer(InferRequest("m", [Tensor.of(name, np.zeros(2, np.float32)) for name in names]))
        with pytest.raises(InvalidInput, match=message):
            await _v1(plane, {"instances": [dict.fromkeys(names, 1.5)]})


async def test_a_text_for_a_number_is_refused_in_words(tmp_path: Path) -> None:
    _named(tmp_path)
    async with serving(XGBoostModel, _settings(tmp_path)) as plane:
        with pytest.raises(InvalidInput, match="input 'age': the model takes numbers, not texts"):
            await _v1(plane, {"instances": [{**dict.fromkeys(NAMES, 1), "age": "old"}]})
        with pytest.raises(InvalidInput, match=r"input 'age': an array came for one row|input 'age'.*for one row"):
            await _v1(plane, {"instances": [{**dict.fromkeys(NAMES, 1), "age": [[1]]}]})
        with pytest.raises(InvalidInput, match="given twice"):
            await plane.infer(InferRequest("m", [Tensor.of("age", np.zeros(1))] * 2))


async def test_one_feature_comes_in_every_form(tmp_path: Path) -> None:
    booster = train(features=1)
    booster.feature_names = ["age"]
    save(booster, tmp_path)
    data = rows(4, 1)
    wanted = booster.inplace_predict(data, validate_features=False)
    async with serving(XGBoostModel, _settings(tmp_path, input_form="columns")) as plane:
        for tensor in (Tensor.of("x", data), Tensor.of("age", data), Tensor.of("age", data[:, 0].copy())):
            response = await plane.infer(InferRequest("m", [tensor]))
            np.testing.assert_array_equal(response.outputs[0].data, wanted)


# Categories

CITIES = ["oslo", "bergen", "tromso", "bodo"]


def _frame(count: int = 600) -> Any:
    random = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "age": random.normal(40, 10, count).astype(np.float32),
            "city": pandas.Series(random.choice(CITIES, count)).astype("category"),
            "level": pandas.Series(random.choice([30, 10, 20], count)).astype("category"),
        }
    )


def _categorical(folder: Path) -> tuple[xgboost.Booster, Any]:
    frame = _frame()
    label = 3.0 * frame.city.isin(CITIES[::2]) + 2.0 * (frame.level.astype(int) == 20) + frame.age / 40
    settings = {"objective": "reg:squarederror", "max_depth": 4, "max_cat_to_onehot": 1, "nthread": 1}
    booster = xgboost.train(settings, xgboost.DMatrix(frame, label=label, enable_categorical=True), 12)
    save(booster, folder)
    return booster, frame


def _wanted(booster: xgboost.Booster, frame: Any) -> np.ndarray:
    return booster.predict(xgboost.DMatrix(frame, enable_categorical=True, nthread=1))


def _texts(values: Any) -> np.ndarray:
    return np.array([value.encode() for value in values], object)


async def test_categories_come_by_name_by_code_and_in_rows(tmp_path: Path) -> None:
    booster, frame = _categorical(tmp_path)
    some = frame.head(40)
    wanted = _wanted(booster, some)
    assert len(set(wanted.tolist())) > 8
    age, city, level = some.age.to_numpy(), some.city, some.level.astype(int).to_numpy()
    codes = np.column_stack([age, city.cat.codes, some.level.cat.codes]).astype(np.float32)
    by_name = [Tensor.of("level", level), Tensor.of("age", age), Tensor.of("city", _texts(city))]
    by_code = [Tensor.of("city", city.cat.codes.to_numpy()), Tensor.of("age", age), Tensor.of("level", level)]
    rows_of = [{"level": int(level[row]), "city": city.iloc[row], "age": float(age[row])} for row in range(len(some))]
    arrays = [[row["age"], row["city"], row["level"]] for row in rows_of]
    async with serving(XGBoostModel, _settings(tmp_path)) as plane:
        assert plane.model_metadata("m").parameters["engine"] == "booster"
        for tensors in (by_name, by_code, [Tensor.of("x", codes)]):
            response = await plane.infer(InferRequest("m", tensors))
            np.testing.assert_allclose(response.outputs[0].data, wanted, atol=1e-6)
        for body in (rows_of, arrays):
            np.testing.assert_allclose((await _v1(plane, {"instances": body}))["predictions"], wanted, atol=1e-6)


async def test_a_missing_category_is_missing(tmp_path: Path) -> None:
    booster, frame = _categorical(tmp_path)
    some = frame.head(3).copy()
    some.loc[1, "city"] = None
    some.loc[2, "level"] = None
    body = [
        {"age": float(some.age[0]), "city": some.city[0], "level": int(some.level[0])},
        {"age": float(some.age[1]), "city": None, "level": int(some.level[1])},
        {"age": float(some.age[2]), "city": some.city[2], "level": None},
    ]
    async with serving(XGBoostModel, _settings(tmp_path)) as plane:
        answer = await _v1(plane, {"instances": body})
    np.testing.assert_allclose(answer["predictions"], _wanted(booster, some), atol=1e-6)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown text": ({"city": b"paris"}, "input 'city': 'paris' in row 0 is none of the 4 categories"),
    "empty text": ({"city": b""}, "input 'city': '' in row 0 is none of the 4 categories"),
    "code beyond": ({"city": 4}, r"input 'city': 4\.0 in row 0 is no category's code: a whole number, 0 to 3"),
    "negative code": ({"city": -1}, r"input 'city': -1\.0 in row 0 is no category's code"),
    "half a code": ({"city": 1.7}, r"input 'city': 1\.\d+ in row 0 is no category's code"),
    "endless code": ({"city": np.inf}, "input 'city': inf in row 0 is no category's code"),
    "unknown number": ({"level": 0}, r"input 'level': 0\.0 in row 0 is none of the 3 categories.*: 10, 20, 30"),
    "text for a number": ({"level": b"10"}, "input 'level': its categories are numbers, not texts"),
    "text of no category": ({"age": b"10"}, "input 'age': the model takes numbers, not texts"),
}


@pytest.mark.parametrize("case", every(3, WRONG))
async def test_what_is_no_category_is_never_another_one(tmp_path: Path, case: str) -> None:
    _categorical(tmp_path)
    changed, message = WRONG[case]
    values = {"age": 30.0, "city": b"oslo", "level": 10, **changed}
    tensors = [
        Tensor.of(name, np.array([value], object) if isinstance(value, bytes) else np.array([value]))
        for name, value in values.items()
    ]
    async with serving(XGBoostModel, _settings(tmp_path)) as plane:
        with pytest.raises(InvalidInput, match=message):
            await plane.infer(InferRequest("m", tensors))


@pytest.mark.parametrize("code", every(2, [4, -1, 1.5, np.inf]))
async def test_a_matrix_is_held_to_the_codes_too(tmp_path: Path, code: float) -> None:
    _categorical(tmp_path)
    async with serving(XGBoostModel, _settings(tmp_path)) as plane:
        good = np.array([[30, 1, 2], [30, np.nan, np.nan]], np.float32)
        await plane.infer(InferRequest("m", [Tensor.of("x", good)]))
        bad = good.copy()
        bad[1, 1] = code
        with pytest.raises(InvalidInput, match=r"input 'city'.*in row 1 is no category's code"):
            await plane.infer(InferRequest("m", [Tensor.of("x", bad)]))


def test_a_file_without_names_of_categories_takes_codes_and_says_so(tmp_path: Path) -> None:
    data = np.array([[value % 4, value % 3] for value in range(60)], np.float32)
    matrix = xgboost.DMatrix(data, label=data[:, 0] > 1, feature_types=["c", "q"], enable_categorical=True)
    save(xgboost.train({"objective": "binary:logistic", "nthread": 1, "max_cat_to_onehot": 1}, matrix, 3), tmp_path)
    model = load(tmp_path)
    model.predict({"x": data}, Call())
    with pytest.raises(
        InvalidInput, match=r"input '0': 0\.5 in row 0 is no category's code: a whole number, 0 or above"
    ):
        model.predict({"x": np.float32([[0.5, 1]])}, Call())
    named = FeatureColumns(("a", "b"), np.dtype(np.float32), categorical=frozenset([0]))
    with pytest.raises(InvalidInput, match="does not hold the names of its categories: send their codes"):
        named.join({"a": np.array([b"oslo"], object), "b": np.zeros(1)})


def _as_characters(names: list[str]) -> dict[str, list[int]]:
    """What XGBoost up to 3.3 writes of a DataFrame's categories: offsets count characters, and the last bytes are lost."""
    offsets = np.cumsum([0, *map(len, names)]).tolist()
    return {"offsets": offsets, "values": list("".join(names).encode()[: offsets[-1]])}


def _as_bytes(names: list[str]) -> dict[str, list[int]]:
    """What XGBoost writes from 3.4 on."""
    encoded = [name.encode() for name in names]
    return {"offsets": np.cumsum([0, *map(len, encoded)]).tolist(), "values": list(b"".join(encoded))}


NOT_ASCII = {
    "read by character where bytes make no text": (_as_characters, ["bodø", "oslo", "tromsø"], ["bodø", "oslo", None]),
    "nothing where each reading has another": (_as_bytes, ["bodø", "oslo", "tromsø"], [None, None, None]),
    "only what both readings agree on": (_as_characters, ["c", "d", "øab"], ["c", "d", None]),
    "only what both readings agree on, of bytes": (_as_bytes, ["c", "d", "øab"], ["c", "d", None]),
    "nothing behind a name that shifts the rest": (_as_characters, ["ab", "bøx", "cd"], ["ab", None, None]),
    "nothing behind it, of bytes": (_as_bytes, ["ab", "bøx", "cd"], ["ab", None, None]),
}


@pytest.mark.parametrize("case", NOT_ASCII)
def test_names_beyond_ascii_are_never_taken_for_another_category(tmp_path: Path, case: str) -> None:
    written, names, wanted = NOT_ASCII[case]
    frame = pandas.DataFrame({"a": np.arange(60.0), "city": pandas.Series(names * 20).astype("category")})
    matrix = xgboost.DMatrix(frame, label=frame.city == names[0], enable_categorical=True)
    document = json.loads(xgboost.train({"max_cat_to_onehot": 1, "nthread": 1}, matrix, 3).save_raw("json"))
    entry = document["learner"]["gradient_booster"]["model"]["cats"]["enc"][1]
    assert [value & 0xFF for value in entry["values"]] in (_as_characters(names)["values"], _as_bytes(names)["values"])
    entry |= written(names)
    (tmp_path / "model.json").write_text(json.dumps(document))
    columns = load(tmp_path).columns
    assert columns is not None
    assert list(columns.categories[1]) == wanted
    for name in names:
        column = np.array([name.encode()], object)
        if name in wanted:
            assert columns.join({"a": np.zeros(1), "city": column})[0, 1] == names.index(name)
        else:
            with pytest.raises(
                InvalidInput, match=r"the file has lost the names of the codes .*: send these as numbers"
            ):
                columns.join({"a": np.zeros(1), "city": column})


def test_categories_that_lead_out_are_refused_before_xgboost_reads_them(tmp_path: Path) -> None:
    booster, _ = _categorical(tmp_path)
    (tmp_path / "model.ubj").unlink()
    document = json.loads(booster.save_raw("json"))
    cats = document["learner"]["gradient_booster"]["model"]["cats"]
    path = tmp_path / "model.json"
    wrong: list[tuple[tuple[str, ...], Any]] = [
        (("sorted_idx",), [9] * 7),
        (("sorted_idx",), cats["sorted_idx"][:-1]),
        (("feature_segments",), [0, 0, 4, 700]),
        (("enc",), cats["enc"][:2]),
    ]
    for (key,), value in wrong:
        held = {**document}
        held["learner"]["gradient_booster"]["model"]["cats"] = {**cats, key: value}
        path.write_text(json.dumps(held))
        with pytest.raises(ConfigError, match=r"not an XGBoost model: .*cats"):
            load(path)
    encoded = [*cats["enc"]]
    encoded[1] = {**encoded[1], "offsets": [0, 6, 10, 14, 2000]}
    document["learner"]["gradient_booster"]["model"]["cats"] = {**cats, "enc": encoded}
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="offsets lead out of the categories of feature 1"):
        load(path)


# Which trees answer


def _continued(folder: Path) -> tuple[xgboost.Booster, np.ndarray]:
    booster = train(trees=60)
    booster.set_attr(best_iteration="4", best_score="0.1")
    save(booster, folder)
    return booster, rows(20)


def test_what_booster_predict_answers_is_the_default_and_a_stale_best_iteration_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    booster, data = _continued(tmp_path)
    model = load(tmp_path)
    np.testing.assert_array_equal(model.predict({"x": data}, Call())["predict"], booster.predict(xgboost.DMatrix(data)))
    assert model.details["trees"] == "60 of 60"
    assert "60 of 60 trees answer: the best iteration on record is 4, and there are 60 iterations" in caplog.text
    assert "--extra iteration_range=best" in caplog.text


def test_the_best_iterations_are_a_setting_and_the_trees_left_out_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    booster, data = _continued(tmp_path)
    model = load(tmp_path, iteration_range="best")
    wanted = booster.predict(xgboost.DMatrix(data), iteration_range=(0, 5))
    np.testing.assert_array_equal(model.predict({"x": data}, Call())["predict"], wanted)
    assert model.details["trees"] == "5 of 60"
    assert "5 of 60 trees answer" in caplog.text


def test_a_best_iteration_that_is_the_last_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    booster = train(trees=5)
    booster.set_attr(best_iteration="4")
    save(booster, tmp_path)
    assert load(tmp_path).details["trees"] == "5 of 5"
    assert "best iteration" not in caplog.text


def test_a_best_iteration_that_is_no_number_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    booster = train(trees=5)
    booster.set_attr(best_iteration="many")
    save(booster, tmp_path)
    assert load(tmp_path).details["trees"] == "5 of 5"
    with pytest.raises(ConfigError, match="its best_iteration is 'many'"):
        load(tmp_path, iteration_range="best")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["nonsense"], "missing are amount, hour, age, b1, b2, b3; unknown are nonsense"),
        (["amount"], "missing are hour, age, b1, b2, b3"),
        (["amount", "nonsense"], "missing are hour, age, b1, b2, b3; unknown are nonsense"),
    ],
)
async def test_what_is_no_column_is_told_however_many_came(
    tmp_path: Path, form: str, names: list[str], says: str
) -> None:
    _named(tmp_path)
    async with serving(XGBoostModel, _settings(tmp_path, input_form=form)) as plane:
        with pytest.raises(InvalidInput, match=says):
            await plane.infer(InferRequest("m", [Tensor.of(name, np.float32([1, 2])) for name in names]))
        with pytest.raises(InvalidInput, match=says):
            await _v1(plane, {"instances": [dict.fromkeys(names, 1), dict.fromkeys(names, 2)]})
        answer = await plane.infer(InferRequest("m", [Tensor.of("whatever", rows(2))]))
        assert answer.outputs[0].shape == (2,), "one matrix is taken under any name"
