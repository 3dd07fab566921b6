"""Files of models: model-settings.json, skops, CatBoost's .cbm, XGBoost's JSON and UBJSON, LightGBM's text."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from reliability.fuzz.targets import in_file, target
from serinus.loading.directory import settings_from_directory

__all__: list[str] = []


def _skops(path: Path) -> object:
    from sklearn_server import skops_file

    return skops_file.read(path)


def _catboost(path: Path) -> object:
    from catboost_server import modelfile

    return modelfile.read(path)


def _xgboost(path: Path) -> object:
    from serinus.engines.not_covered import NotCovered
    from xgboost_server import forest_reader, modelfile

    file = modelfile.read(path)
    try:
        return forest_reader.compile_forest(
            file, forest_reader.choose_iterations(file, "all"), missing=float("nan"), threads=1
        )
    except NotCovered:
        return None


def _lightgbm(path: Path) -> object:
    from lightgbm_server import forest_reader, modelfile
    from serinus.engines.not_covered import NotCovered

    file = modelfile.read(path)
    try:
        return forest_reader.compile_forest(file, forest_reader.choose_iterations(file, 0, -1), threads=1)
    except NotCovered:
        return None


def _settings() -> list[bytes]:
    return [
        b'{"name": "m", "implementation": "xgboost_server", "parameters": {"uri": ".", "version": "1", "extra": {"a": 1}}}',
        b'{"implementation": "torch_server", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3], "parameters": {}}], "max_batch_size": 4}',
        b'{"name": "m", "implementation": "mlserver_sklearn.SKLearnModel", "parallel_workers": 0, "warm_workers": true}',
    ]


def _data() -> tuple[object, object]:
    import numpy as np

    data = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    return data, (data[:, 0] > 0).astype(int) + (data[:, 1] > 0)


def _file(make: Callable[[Path], None], name: str) -> Callable[[], list[bytes]]:
    """The bytes of a file that its framework has written; made once."""

    @functools.cache
    def made() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / name)
            return [(Path(folder) / name).read_bytes()]

    return made


def _make_skops(path: Path) -> None:
    import skops.io
    from sklearn.linear_model import LogisticRegression

    skops.io.dump(LogisticRegression().fit(*_data()), path)


def _make_catboost(path: Path) -> None:
    import catboost

    settings = {"iterations": 2, "depth": 2, "verbose": False, "allow_writing_files": False, "thread_count": 1}
    catboost.CatBoost({**settings, "loss_function": "MultiClass"}).fit(*_data()).save_model(str(path))


def _make_xgboost(path: Path) -> None:
    import xgboost

    data, labels = _data()
    settings = {"objective": "multi:softprob", "num_class": 3, "max_depth": 2, "nthread": 1}
    xgboost.train(settings, xgboost.DMatrix(data, label=labels), 2).save_model(path)


def _make_lightgbm(path: Path) -> None:
    import lightgbm

    data, labels = _data()
    settings = {"objective": "multiclass", "num_class": 3, "num_leaves": 3, "verbose": -1, "num_threads": 1}
    lightgbm.train({**settings, "min_data_in_leaf": 2}, lightgbm.Dataset(data, labels), 2).save_model(str(path))


target("model_settings", in_file("model-settings.json", settings_from_directory), _settings)
target("skops", in_file("model.skops", _skops), _file(_make_skops, "model.skops"))
target("cbm", in_file("model.cbm", _catboost), _file(_make_catboost, "model.cbm"))
target("xgboost_json", in_file("model.json", _xgboost), _file(_make_xgboost, "model.json"))
target("xgboost_ubjson", in_file("model.ubj", _xgboost), _file(_make_xgboost, "model.ubj"))
target("lightgbm", in_file("model.txt", _lightgbm), _file(_make_lightgbm, "model.txt"))
