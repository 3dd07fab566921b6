"""What a file may make the server load: pickles and unknown classes are refused by name, damaged trees before anybody walks them."""

from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from serinus.content.pickles import pickled_class
from serinus.errors import ConfigError
from serinus.hosts import build_model
from serinus.loading import infer_implementation
from serinus.model import Call
from serinus.settings import ModelSettings
from sklearn_support import classes, load, rows, save

pytestmark = pytest.mark.slow

ensemble = Deferred("sklearn.ensemble")
linear = Deferred("sklearn.linear_model")
pipeline = Deferred("sklearn.pipeline")
svm = Deferred("sklearn.svm")
text = Deferred("sklearn.feature_extraction.text")
xgboost = Deferred("xgboost")
lightgbm = Deferred("lightgbm")
joblib = Deferred("joblib")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


def _forest() -> Any:
    return ensemble.RandomForestClassifier(5, random_state=0).fit(rows(), classes(rows()))


@pytest.mark.parametrize("name", ["model.joblib", "model.pkl", "model.pickle"])
def test_a_pickle_is_loaded_only_where_somebody_allows_it(name: str, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    live = _forest()
    save(live, folder, name)
    assert infer_implementation(folder) == "sklearn_server"
    with pytest.raises(ConfigError, match=r"runs whatever code its writer put in.*--allow_implementation pickle"):
        load(folder)
    with pytest.raises(ConfigError, match=r"runs whatever code"):
        load(folder, allow_implementation=("sklearn.*",))
    model = load(folder, allow_implementation=("pickle",))
    assert model.details["engine"] == "compiled"
    np.testing.assert_array_equal(model.predict({"x": rows(9)}, Call())["predict"], live.predict(rows(9)))


class _Touch:
    """Leaves a file where it is unpickled."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.place),)


def test_a_pickle_that_nobody_allowed_runs_nothing(tmp_path: Path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(_Touch(str(tmp_path / "touched"))))
    with pytest.raises(ConfigError, match="is a pickle"):
        load(tmp_path / "model.pkl")
    assert not (tmp_path / "touched").exists()


RUNTIMES = ["xgboost_server", "lightgbm_server", "sklearn_server", "catboost_server", "classic_server", "onnx_server"]


@pytest.mark.parametrize("package", [*RUNTIMES, ""])
@pytest.mark.parametrize("framework", ["xgboost", "lightgbm"])
def test_a_pickled_booster_is_refused_with_how_to_save_it_in_every_runtimes_folder(
    package: str, framework: str, tmp_path: Path
):
    if framework == "xgboost":
        live, save_it = (
            xgboost.XGBClassifier(n_estimators=2, n_jobs=1),
            r"save it with model\.save_model\('model\.ubj'\)",
        )
    else:
        live, save_it = (
            lightgbm.LGBMClassifier(n_estimators=2, n_jobs=1, verbose=-1),
            r"save it with model\.booster_\.save_model\('model\.txt'\)",
        )
    live.fit(rows(), classes(rows(), 2))
    joblib.dump(live, tmp_path / "model.joblib")
    settings = ModelSettings(name="m", implementation=package, model_dir=tmp_path, allow_implementation=("pickle",))
    with pytest.raises(ConfigError, match=f"is a pickled .*: {save_it}"):
        build_model(settings).load()


@pytest.mark.parametrize("compress", [0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)], ids=str)
def test_the_class_of_a_pickle_is_told_without_loading_it(compress: Any, tmp_path: Path):
    joblib.dump(_forest(), tmp_path / "m", compress=compress)
    assert pickled_class(tmp_path / "m") == "sklearn.ensemble._forest.RandomForestClassifier"
    for protocol in range(2, 6):
        (tmp_path / "p").write_bytes(gzip.compress(pickle.dumps(linear.Ridge(), protocol)))
        assert pickled_class(tmp_path / "p") == "sklearn.linear_model._ridge.Ridge"


def _rewrite(path: Path, change: Any) -> None:
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    change(held)
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in held.items():
            archive.writestr(name, body)


def test_a_compressed_pickle_takes_no_memory_for_what_its_head_claims():
    """A `.lzma` file says itself how large its dictionary is: 2 GiB here, which was a MemoryError where so much is not there."""
    script = (
        "import lzma, resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); from serinus.content.pickles import is_pickle; "
        "packed = lzma.compress(b'\\x80\\x04' + bytes(9999), format=lzma.FORMAT_ALONE); "
        "print(is_pickle(packed), is_pickle(packed[:1] + (1 << 31).to_bytes(4, 'little') + packed[5:]))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert told.stdout.split() == ["True", "False"], told.stderr


def test_a_class_that_nobody_trusts_is_refused_by_name(tmp_path: Path):
    path = save(svm.SVC().fit(rows(), classes(rows())), tmp_path)

    def change(held: dict[str, bytes]) -> None:
        held["schema.json"] = (
            held["schema.json"].replace(b'"sklearn.svm._classes"', b'"os.path"').replace(b'"SVC"', b'"System"')
        )

    _rewrite(path, change)
    with pytest.raises(
        ConfigError, match=r"names os\.path\.System, which is not among .*--allow_implementation 'os\.path\.System'"
    ):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["CountVectorizer", "TfidfVectorizer", "HashingVectorizer"])
def test_a_model_that_opens_the_files_that_clients_name_is_refused(kind: str, tmp_path: Path):
    step = getattr(text, kind)(input="filename")
    (tmp_path / "x").write_text("a word")
    live = pipeline.make_pipeline(step, linear.LogisticRegression()).fit([str(tmp_path / "x")] * 2, [0, 1])
    save(live, tmp_path)
    with pytest.raises(
        ConfigError, match=rf"input='filename'.*--allow_implementation sklearn\.feature_extraction\.text\.{kind}$"
    ):
        load(tmp_path)
    live.steps[0][1].input = "content"
    save(live, tmp_path)
    answer = load(tmp_path).predict({"x": np.array([[b"a word"]], object)}, Call())
    np.testing.assert_array_equal(answer["predict"], live.predict(["a word"]))


@pytest.mark.parametrize("name", ["model.skops", "model.joblib"])
def test_a_model_starts_no_more_threads_than_the_server_has(name: str, tmp_path: Path):
    live = ensemble.VotingClassifier([("a", _forest()), ("b", _forest())]).fit(rows(), classes(rows()))
    for jobs, one in zip([3000, -1], live.estimators_, strict=True):
        one.n_jobs = jobs
    live.n_jobs = 3000
    save(live, tmp_path, name)
    model = load(tmp_path, engine="sklearn", threads=2, allow_implementation=("pickle",))
    live.n_jobs = live.estimators_[0].n_jobs = None
    before = set(threading.enumerate())
    made = model.predict({"x": rows(9)}, Call())
    assert (
        len(set(threading.enumerate()) - before) <= 2 * 3
    )  # each of joblib's pools has two threads of its own besides
    np.testing.assert_array_equal(made["predict"], live.predict(rows(9)))


@pytest.mark.parametrize(
    ("field", "value"), [("left_child", 1 << 40), ("right_child", 0), ("feature", 99), ("left_child", -7)]
)
@pytest.mark.parametrize("engine", ["auto", "sklearn"])
def test_a_tree_that_leads_out_of_its_arrays_is_refused_before_anybody_walks_it(
    field: str, value: int, engine: str, tmp_path: Path
):
    import io

    path = save(_forest(), tmp_path)

    def change(held: dict[str, bytes]) -> None:
        for name, body in held.items():
            if name.endswith(".npy"):
                array = np.load(io.BytesIO(body))
                if array.dtype.names and field in array.dtype.names:
                    array = array.copy()
                    array[field][0] = value
                    made = io.BytesIO()
                    np.save(made, array)
                    held[name] = made.getvalue()

    _rewrite(path, change)
    with pytest.raises(ConfigError, match=r"the model is damaged: a (child|node)"):
        load(tmp_path, engine=engine)


def test_a_verified_file_is_served_without_scikit_learn(tmp_path: Path):
    live = _forest()
    save(live, tmp_path)
    load(tmp_path)
    assert (tmp_path / "model.skops.verdict.json").is_file()
    script = (
        "import sys\n"
        "for name in ('sklearn', 'skops', 'joblib', 'scipy', 'pandas', 'xgboost', 'lightgbm', 'catboost'):\n"
        "    sys.modules[name] = None\n"
        "import pathlib, numpy as np\n"
        "from serinus.hosts import build_model\n"
        "from serinus.model import Call\n"
        "from serinus.settings import ModelSettings\n"
        "model = build_model(ModelSettings(name='m', implementation='classic_server', model_dir=pathlib.Path(sys.argv[1])))\n"
        "model.load()\n"
        "assert model.details['engine'] == 'compiled', model.details\n"
        "print(model.predict({'x': np.ones((3, 4))}, Call())['predict'].tolist())\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(live.predict(np.ones((3, 4))).tolist())
