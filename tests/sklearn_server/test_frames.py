"""Pipelines that were trained on a DataFrame: columns by name, texts, missing values, against the pipeline itself."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataplane_support import serving
from deferred import Deferred
from serinus import InferRequest, Tensor
from serinus.dataplane.plane import Plane
from serinus.errors import InvalidInput
from serinus.settings import ModelSettings
from sklearn_server import SklearnModel
from sklearn_support import save

pytestmark = pytest.mark.slow

pandas = Deferred("pandas")
compose = Deferred("sklearn.compose")
impute = Deferred("sklearn.impute")
linear = Deferred("sklearn.linear_model")
ensemble = Deferred("sklearn.ensemble")
decomposition = Deferred("sklearn.decomposition")
scaling = Deferred("sklearn.preprocessing")
pipeline = Deferred("sklearn.pipeline")
text = Deferred("sklearn.feature_extraction.text")
carried = Deferred("sklearn_server.predictor", "_carried")

CITIES = ["oslo", "bergen", "bodø"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


def _frame() -> Any:
    random, count = np.random.default_rng(0), 300
    frame = pandas.DataFrame(
        {
            "age": random.normal(40, 10, count),
            "city": random.choice(CITIES, count),
            "fare": random.gamma(2, 10, count),
            "class": random.integers(1, 4, count),
            "deck": random.choice(np.array(["a", "b", None], object), count),
        }
    )
    frame.loc[::9, "age"] = np.nan
    frame.loc[::11, "city"] = np.nan
    return frame


def _numbers() -> Any:
    return pipeline.make_pipeline(impute.SimpleImputer(strategy="median"), scaling.StandardScaler())


def _cities() -> Any:
    return pipeline.make_pipeline(
        impute.SimpleImputer(strategy="most_frequent"), scaling.OneHotEncoder(handle_unknown="ignore")
    )


def _joined(*behind: Any) -> Any:
    return pipeline.make_pipeline(
        compose.ColumnTransformer(
            [
                ("numbers", _numbers(), ["age", "fare"]),
                ("city", _cities(), ["city"]),
                ("class", scaling.OneHotEncoder(handle_unknown="ignore"), ["class"]),
            ]
        ),
        *behind,
    )


CASES: dict[str, tuple[Any, str]] = {
    "logistic": (lambda: _joined(linear.LogisticRegression()), "compiled"),
    "forest": (lambda: _joined(ensemble.RandomForestClassifier(20, random_state=0)), "compiled"),
    "codes": (
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer(
                [
                    ("numbers", "passthrough", ["age", "fare"]),
                    (
                        "codes",
                        scaling.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
                        ["city", "deck"],
                    ),
                ]
            ),
            ensemble.HistGradientBoostingClassifier(max_iter=10),
        ),
        "compiled",
    ),
    "components": (lambda: _joined(decomposition.PCA(3), linear.LogisticRegression()), "sklearn"),
}


def _rows(frame: Any) -> list[dict[str, Any]]:
    return [
        {name: None if value is None or value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _fitted(name: str, folder: Path) -> tuple[Any, Any]:
    frame = _frame()
    live = CASES[name][0]().fit(frame, (frame.fare > 20).astype(int) + (frame.city == "oslo"))
    save(live, folder)
    return live, frame


async def _v1(plane: Plane, document: Any) -> Any:
    return json.loads(await plane.predict_v1("m", json.dumps(document).encode()))


@pytest.mark.parametrize("name", CASES)
async def test_rows_with_names_are_answered_as_the_data_frame_is(name: str, tmp_path: Path):
    live, frame = _fitted(name, tmp_path)
    some = frame.head(40)
    expected = live.predict(some).tolist()
    async with serving(SklearnModel, ModelSettings(name="m", model_dir=tmp_path)) as plane:
        metadata = plane.model_metadata("m")
        assert metadata.parameters["engine"] == CASES[name][1], metadata.parameters["engine_reason"]
        assert [(spec.name, spec.datatype) for spec in metadata.inputs[:3]] == [
            ("age", "FP64"),
            ("city", "BYTES"),
            ("fare", "FP64"),
        ]
        assert (await _v1(plane, {"instances": _rows(some)}))["predictions"] == expected
        for at in range(12):  # alone, too: the first row's age, and others' city, are missing
            assert (await _v1(plane, {"instances": _rows(some)[at : at + 1]}))["predictions"] == expected[at : at + 1]
        full = some.dropna()
        tensors = [
            Tensor.of(
                column,
                np.array([one.encode() for one in full[column]], object)
                if full[column].dtype == object
                else full[column].to_numpy(),
            )
            for column in reversed(frame.columns)
        ]
        response = await plane.infer(InferRequest("m", tensors))
        assert response.outputs[0].data.tolist() == live.predict(full).tolist()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"age": "old"}, "input 'age': a text came in row 0, the model takes numbers"),
    ({"city": 3}, "input 'city': the model takes texts, not int64"),
    ({"wage": 1}, "input 'wage' is no feature of the model"),
]


@pytest.mark.parametrize("name", ["logistic", "components"])
async def test_columns_of_another_kind_are_refused_by_name(name: str, tmp_path: Path):
    _, frame = _fitted(name, tmp_path)
    async with serving(SklearnModel, ModelSettings(name="m", model_dir=tmp_path)) as plane:
        for changed, said in REFUSED:
            with pytest.raises(InvalidInput, match=said):
                await _v1(plane, {"instances": [{**_rows(frame.head(1))[0], **changed}]})


async def test_a_category_that_training_did_not_see_is_refused_where_the_encoder_refuses_it(tmp_path: Path):
    frame = _frame().dropna()
    live = pipeline.make_pipeline(
        compose.ColumnTransformer([("city", scaling.OneHotEncoder(), ["city"]), ("age", "passthrough", ["age"])]),
        linear.Ridge(),
    ).fit(frame[["age", "city"]], frame.fare)
    save(live, tmp_path)
    async with serving(SklearnModel, ModelSettings(name="m", model_dir=tmp_path)) as plane:
        assert plane.model_metadata("m").parameters["engine"] == "compiled"
        with pytest.raises(
            InvalidInput, match=r"row 0: 'paris' is none of the 3 categories .* 'bergen', 'bodø', 'oslo'"
        ):
            await _v1(plane, {"instances": [{"age": 3.0, "city": "paris"}]})
        with pytest.raises(InvalidInput, match="'paris' is none"):
            await _v1(plane, {"instances": [{"age": 3, "city": "oslo"}, {"age": 3, "city": "paris"}][::-1]})


async def test_a_pipeline_that_begins_with_a_vectorizer_takes_texts(tmp_path: Path):
    words = ["good day", "bad day", "good", "bad"] * 5
    live = pipeline.make_pipeline(text.TfidfVectorizer(), linear.LogisticRegression()).fit(words, [1, 0, 1, 0] * 5)
    save(live, tmp_path)
    async with serving(SklearnModel, ModelSettings(name="m", model_dir=tmp_path)) as plane:
        answer = await _v1(plane, {"instances": ["good thing", "bad thing"]})
    assert answer["predictions"] == [1, 0]


def test_an_answer_of_as_many_columns_as_a_vectorizer_has_is_bounded_before_it_is_made():
    tracemalloc.start()
    try:
        answer = text.HashingVectorizer().transform(["a word"] * 257)
        with pytest.raises(
            ValueError, match="would have 2155872256 bytes, at most 2147483647 are made; send fewer rows"
        ):
            carried(answer)
        assert carried(answer[:1, :1024]).shape == (1, 1024)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
