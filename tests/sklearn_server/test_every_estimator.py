"""Every classifier and regressor of scikit-learn, and pipelines as people write them: answered as in process,
compiled or by scikit-learn with the reason, or refused with the names of what nobody trusts and how to go on.
"""

from __future__ import annotations

import inspect
import json
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from absent_packages import BESIDE_SKOPS, without
from deferred import Deferred
from depth import some_of
from serinus.client import Client
from serinus.engines.not_covered import NotCovered
from serinus.errors import ConfigError
from serinus.settings import ModelSettings
from serve_support import Served, serving
from sklearn_server import modelfile, verification
from sklearn_server.columns import columns_of
from sklearn_server.predictor import Predictor
from sklearn_server.program import compile_program
from sklearn_support import save

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

discovery = Deferred("sklearn.utils.discovery")
linear = Deferred("sklearn.linear_model")
trees = Deferred("sklearn.tree")
ensemble = Deferred("sklearn.ensemble")
preprocessing = Deferred("sklearn.preprocessing")
impute = Deferred("sklearn.impute")
compose = Deferred("sklearn.compose")
pipeline = Deferred("sklearn.pipeline")
pd = Deferred("pandas")

COMPILED = {
    *("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor"),
    *("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor"),
    *("GradientBoostingClassifier", "GradientBoostingRegressor"),
    *("HistGradientBoostingClassifier", "HistGradientBoostingRegressor"),
    *("LogisticRegression", "LogisticRegressionCV", "SGDClassifier", "LinearSVC", "LinearSVR", "LinearRegression"),
    *("Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "SGDRegressor", "HuberRegressor"),
    *("BayesianRidge", "ARDRegression", "RidgeClassifier", "RidgeClassifierCV", "Perceptron", "QuantileRegressor"),
    *("PassiveAggressiveClassifier", "PassiveAggressiveRegressor", "TheilSenRegressor", "Lars", "LarsCV", "LassoLars"),
    *("LassoLarsCV", "LassoLarsIC", "OrthogonalMatchingPursuit", "OrthogonalMatchingPursuitCV", "MultiTaskLasso"),
    *("MultiTaskLassoCV", "MultiTaskElasticNet", "MultiTaskElasticNetCV", "PoissonRegressor", "GammaRegressor"),
    "TweedieRegressor",
}
"""Trees, forests, boosting, and what is rows times coefficients; no others are."""
NEIGHBOURS = {"KNeighborsClassifier", "KNeighborsRegressor", "RadiusNeighborsClassifier", "RadiusNeighborsRegressor"}
"""Those whose trees of neighbours walk a file's indices without looking; no others are refused."""
NOT_FITTED = {"CCA", "PLSCanonical", "IsotonicRegression"}
"""Those that take several targets only, or one column only."""
ONE_OF_EACH = {
    *("RandomForestClassifier", "RandomForestRegressor", "HistGradientBoostingClassifier", "GradientBoostingRegressor"),
    *("LogisticRegression", "SGDClassifier", "Ridge", "PoissonRegressor", "MultiTaskLasso", "LassoLars"),
    *(
        "KNeighborsClassifier",
        "RadiusNeighborsRegressor",
        "VotingClassifier",
        "StackingRegressor",
        "MultiOutputRegressor",
    ),
}
"""Among those that each run fits."""
OVER_THE_WIRE = (
    "RandomForestClassifier",
    "PoissonRegressor",
    "MultiTaskLasso",
    "VotingClassifier",
    "StackingRegressor",
    "KNeighborsClassifier",
)
"""One of each way: trees, a link, several outputs, scikit-learn's own with parts in it, and refused."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    folder = tmp_path_factory.mktemp("repository")
    live = linear.Ridge().fit(np.zeros((3, 4)), np.zeros(3))
    (folder / "first").mkdir()
    save(live, folder / "first")
    # Neither times nor joined rows are looked at here, nor files that end a process, and the checks of them take most of a load.
    words = ["--model_repository", str(folder), "--warmup", "false", "--batchable", "false", "--trial", "false"]
    place = tmp_path_factory.mktemp("run")
    environment = {"SERINUS_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), **without(place, *BESIDE_SKOPS)}
    with serving(place, *words, environment=environment) as running:
        yield running, folder


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positive rows, which all estimators take; three classes; a positive number."""
    random = np.random.default_rng(0)
    rows = np.abs(random.normal(size=(90, 4))) + 0.1
    return rows, (rows[:, 0] > rows[:, 1]).astype(int) + (rows[:, 2] > 1), 2 * rows[:, 0] + rows[:, 1] + 0.1


def made(name: str, kind: type) -> Any:
    """An estimator with what it cannot be without."""
    parameters = inspect.signature(kind).parameters
    small = {"random_state": 0, "n_estimators": 5, "max_iter_predict": 20}
    given: dict[str, Any] = {key: value for key, value in small.items() if key in parameters}
    inner = (
        linear.LogisticRegression() if issubclass(kind, Deferred("sklearn.base").ClassifierMixin) else linear.Ridge()
    )
    if "estimators" in parameters and parameters["estimators"].default is inspect.Parameter.empty:
        given["estimators"] = [("a", inner), ("b", type(inner)(max_iter=50))]
    elif name == "SelfTrainingClassifier" or (
        "estimator" in parameters and parameters["estimator"].default is inspect.Parameter.empty
    ):
        given["estimator"] = inner
    return kind(**given)


def fitted(name: str, kind: type, target: np.ndarray, rows: np.ndarray) -> Any:
    if name.startswith(("MultiOutput", "MultiTask")) or name.endswith("Chain"):
        target = np.stack([target > np.median(target), target > target.min()], axis=1).astype(float)
    if name.endswith(("ThresholdClassifier", "ThresholdClassifierCV")):
        target = (target > 0).astype(int)
    return made(name, kind).fit(rows, target)


def load(running: Served, name: str) -> None:
    """Load a model over the API; the first load of a class imports it, and on two busy cores the check takes its time."""
    url = f"http://127.0.0.1:{running.http_port}/v2/repository/models/{name}/load"
    urllib.request.urlopen(
        urllib.request.Request(url, b"{}", {"Content-Type": "application/json"}), timeout=120
    ).close()


def answer(folder: Path, name: str, live: Any, rows: np.ndarray) -> str:
    """Answer each method as the server does, compiled where that is possible; by what, or why it is not."""
    (folder / name).mkdir()
    save(live, folder / name)
    settings = ModelSettings(name=name, model_dir=folder / name)
    file = modelfile.find(settings)
    assert file.model is not None
    try:
        answers: Any = compile_program(file.model, threads=1)
        told = "compiled"
    except NotCovered as reason:
        told = f"sklearn: {reason}"
    try:
        predictor = Predictor(file, settings)
    except ConfigError as error:
        return f"refused: {error}"
    if told == "compiled":
        checked = verification.verify(file, answers, columns_of(file.model), predictor)
        assert checked.agrees, (name, str(checked))
    else:
        answers = predictor
    for method in answers.outputs:
        found = getattr(live, method)(rows)
        if isinstance(found, list):  # probabilities of several targets, which the server does not offer
            continue
        expected, got = np.asarray(found), answers.run(rows, frozenset([method]))[method]
        assert got.shape == expected.shape, (name, method, got.shape, expected.shape)
        np.testing.assert_allclose(
            got.astype(float), expected.astype(float), rtol=1e-9, atol=1e-9, err_msg=f"{name} {method}"
        )
    return told


def ask(running: Served, folder: Path, name: str, live: Any, inputs: dict[str, np.ndarray], given: Any) -> str:
    """Load a model over the API and ask each of its methods over the wire; what it is served by, or why it is not."""
    (folder / name).mkdir()
    save(live, folder / name)
    try:
        load(running, name)
    except urllib.error.HTTPError as error:
        return f"refused: {json.loads(error.read())['error']}"
    status, metadata = running.ask("GET", f"/v2/models/{name}")
    assert status == 200, metadata
    with Client(f"http://127.0.0.1:{running.http_port}") as client:
        for output in metadata["outputs"]:
            method = output["name"]
            expected = np.asarray(getattr(live, method)(given))
            got = client.infer(name, inputs, outputs=[method])[method]
            assert got.shape == expected.shape, (name, method, got.shape, expected.shape)
            if expected.dtype.kind in "OU":
                assert got.astype(str).tolist() == expected.astype(str).tolist(), (name, method)
            else:
                np.testing.assert_allclose(
                    got.astype(float), expected.astype(float), rtol=1e-9, atol=1e-9, err_msg=f"{name} {method}"
                )
    running.ask("POST", f"/v2/repository/models/{name}/unload", {})
    found = metadata["properties"]
    assert found["engine"] in ("compiled", "sklearn"), found
    assert found["engine_reason"], f"{name}: a reason either way"
    return f"{found['engine']}: {found['engine_reason']}"


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_every_estimator_answers_as_scikit_learn_or_is_refused_in_words(kind: str, tmp_path: Path):
    rows, classes, numbers = data()
    told: dict[str, str] = {}
    absent = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = discovery.all_estimators(kind)
        drawn = {name for name, _ in some_of(every, 20)} | ONE_OF_EACH
        for name, each in every:
            if name not in drawn:
                continue
            try:
                live = fitted(name, each, classes if kind == "classifier" else numbers, rows)
            except ValueError:
                absent.add(name)
                continue
            told[name] = answer(tmp_path, name, live, rows)
    assert absent <= NOT_FITTED
    assert {name for name, text in told.items() if text == "compiled"} == COMPILED & told.keys()
    refused = {name: text for name, text in told.items() if text.startswith("refused")}
    assert refused.keys() == NEIGHBOURS & told.keys(), refused
    for text in refused.values():
        assert "sklearn.neighbors._kd_tree.KDTree" in text, "it is named"
        assert "--allow_implementation" in text, "and how to go on"
        assert "algorithm='brute'" in text, "and how to do without"
    assert all(len(text) > len("sklearn: ") for text in told.values() if text.startswith("sklearn"))


@pytest.mark.parametrize("name", OVER_THE_WIRE)
def test_an_estimator_is_served_as_it_answers_or_refused_in_words(name: str, server: tuple[Served, Path]):
    running, folder = server
    rows, classes, numbers = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = dict(discovery.all_estimators())
        live = fitted(name, kinds[name], classes if "Class" in name else numbers, rows)
    told = ask(running, folder, name, live, {"x": rows}, rows)
    how = "refused" if name in NEIGHBOURS else "compiled" if name in COMPILED else "sklearn"
    assert told.startswith(how), told


def frame() -> Any:
    random = np.random.default_rng(1)
    made = pd.DataFrame(
        {
            "age": random.normal(40, 10, 200),
            "income": random.normal(3, 1, 200),
            "city": random.choice(np.array(["rome", "oslo", "lima"], object), 200),
        }
    )
    made.loc[::9, "age"] = np.nan
    return made


def prepared(**encoder: Any) -> Any:
    numbers = pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler())
    texts = preprocessing.OneHotEncoder(handle_unknown="ignore", **encoder)
    return compose.ColumnTransformer([("n", numbers, ["age", "income"]), ("t", texts, ["city"])])


PIPELINES: dict[str, Callable[[], Any]] = {
    "logistic": lambda: pipeline.make_pipeline(prepared(), linear.LogisticRegression()),
    "forest": lambda: pipeline.make_pipeline(prepared(), ensemble.RandomForestClassifier(10, random_state=0)),
    "boosting": lambda: pipeline.make_pipeline(prepared(), ensemble.GradientBoostingClassifier(n_estimators=5)),
    "histogram": lambda: pipeline.make_pipeline(
        prepared(sparse_output=False), ensemble.HistGradientBoostingClassifier(max_iter=5)
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_of_scaler_imputer_and_encoder_is_compiled_and_takes_columns_by_name(
    name: str, server: tuple[Served, Path]
):
    running, folder = server
    train = frame()
    target = np.where((train.city == "oslo") | (train.income > 3), "yes", "no")
    live = PIPELINES[name]().fit(train, target)
    asked = train.iloc[:40].copy()
    asked.loc[asked.index[3], "city"] = "paris"
    inputs = {column: asked[column].to_numpy() for column in asked.columns}
    told = ask(running, folder, f"pipeline-{name}", live, inputs, asked)
    assert told.startswith("compiled"), told
