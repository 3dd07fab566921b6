"""Who may write to a model's folder exchanges a file between its check and its load: what is loaded is what was checked, or nothing."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from serinus.artifacts import held, unchanged
from serinus.errors import ConfigError
from serinus.model import Call
from serinus.protocol.types import TensorSpec
from serinus.settings import ModelSettings

torch = Deferred("torch")
TorchModel = Deferred("torch_server", "TorchModel")
onnx = Deferred("onnx")
OnnxModel = Deferred("onnx_server", "OnnxModel")
tf = Deferred("tensorflow")
TensorflowModel = Deferred("tensorflow_server", "TensorflowModel")
xgboost = Deferred("xgboost")
XGBoostModel = Deferred("xgboost_server", "XGBoostModel")
catboost = Deferred("catboost")
CatBoostModel = Deferred("catboost_server", "CatBoostModel")
linear = Deferred("sklearn.linear_model")
skops = Deferred("skops.io")
joblib = Deferred("joblib")
SklearnModel = Deferred("sklearn_server", "SklearnModel")

pytestmark = [
    pytest.mark.slow,  # a framework a test
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

ROWS = np.random.default_rng(5).normal(size=(200, 3)).astype(np.float32)
LABELS = (ROWS[:, 0] > 0).astype(int)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    return made


def exchange(file: Path, content: bytes) -> None:
    """Put another file in its place, as one that is uploaded."""
    beside = file.with_name("beside")
    beside.write_bytes(content)
    beside.replace(file)


def write_over(file: Path, content: bytes) -> None:
    """Write another's bytes into it."""
    with file.open("r+b") as opened:
        opened.truncate()
        opened.write(content)


WAYS = {"another file": exchange, "the same file": write_over}


@pytest.fixture(params=WAYS)
def replace(request: pytest.FixtureRequest) -> Callable[[Path, bytes], None]:
    return WAYS[request.param]


def after(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, then: Callable[[], None], turns: int = 1) -> None:
    """Do something once, when a check has ended for so many a time, the last before the load."""
    check, left = getattr(module, name), [then, *[lambda: None] * (turns - 1)]

    def checked(*arguments: Any) -> Any:
        made = check(*arguments)
        if left:
            left.pop()()
        return made

    monkeypatch.setattr(module, name, checked)


class Touch:
    """Leaves a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def load(model: Any, folder: Path, **settings: Any) -> Any:
    made = model(ModelSettings(name="m", model_dir=folder, threads=1, **settings))
    made.load()
    return made


def test_an_exported_program_is_the_one_that_was_looked_through(folder: Path, tmp_path: Path, replace, monkeypatch):
    import torch_server.archive

    file, marker = folder / "model.pt2", tmp_path / "ran"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 1).eval(), (torch.zeros(2, 3),)), file)
    buffer = io.BytesIO()
    torch.save(Touch(marker), buffer)
    evil = io.BytesIO()
    with zipfile.ZipFile(file) as good, zipfile.ZipFile(evil, "w", zipfile.ZIP_STORED) as bad:
        for name in good.namelist():
            bad.writestr(name, buffer.getvalue() if "/data/sample_inputs/" in name else good.read(name))
    with pytest.raises(ConfigError, match="a pickle in"):
        bad_folder = tmp_path / "bad"
        bad_folder.mkdir()
        (bad_folder / "model.pt2").write_bytes(evil.getvalue())
        load(TorchModel, bad_folder)
    after(monkeypatch, torch_server.archive, "check", lambda: replace(file, evil.getvalue()))
    model = load(TorchModel, folder)
    assert model.predict({"input": np.ones((2, 3), np.float32)}, Call())
    assert not marker.exists()


def test_torchscript_is_the_file_that_was_looked_through(folder: Path, replace, monkeypatch):
    import torch_server.module

    class Adds(torch.nn.Module):
        def __init__(self, number: float) -> None:
            super().__init__()
            self.number = number

        def forward(self, x):
            return x + self.number

    def script(number: float) -> bytes:
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(Adds(number)), buffer)
        return buffer.getvalue()

    file = folder / "model.pt"
    file.write_bytes(script(1.0))
    after(monkeypatch, torch_server.module, "check_storages", lambda: replace(file, script(2.0)))
    inputs = (TensorSpec("x", "FP32", (-1, 3)),)
    with pytest.raises(ConfigError, match=f"{file}: changed while it was loaded"):
        load(TorchModel, folder, inputs=inputs)
    answer = load(TorchModel, folder, inputs=inputs).predict({"x": np.zeros((1, 3), np.float32)}, Call())
    np.testing.assert_array_equal(next(iter(answer.values())), [[2, 2, 2]])


def test_a_saved_model_is_the_graph_that_was_looked_through(folder: Path, tmp_path: Path, replace, monkeypatch):
    import tensorflow_server.graph

    def save(place: Path, number: float) -> Path:
        class Module(tf.Module):
            @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
            def serve(self, x: Any) -> dict[str, Any]:
                return {"y": x + number}

        module = Module()
        tf.saved_model.save(module, str(place), signatures={"serving_default": module.serve})
        return place / "saved_model.pb"

    file, other = save(folder, 1.0), save(tmp_path / "other", 2.0)
    after(monkeypatch, tensorflow_server.graph, "check", lambda: replace(file, other.read_bytes()))
    answer = load(TensorflowModel, folder).predict({"x": np.zeros((1, 2), np.float32)}, Call())
    np.testing.assert_array_equal(answer["y"], [[1, 1]])


def test_the_variables_of_a_saved_model_are_those_of_its_graph(folder: Path, replace, monkeypatch):
    import tensorflow_server.graph

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tf.Variable([1.0, 2.0])

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
        def serve(self, x: Any) -> dict[str, Any]:
            return {"y": x * self.scale}

    module = Module()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    (file,) = (folder / "variables").glob("variables.data*")
    other = np.array([3.0, 4.0], np.float32).tobytes()
    after(monkeypatch, tensorflow_server.graph, "check", lambda: replace(file, other + file.read_bytes()[len(other) :]))
    with pytest.raises(ConfigError, match=f"{file}: changed while it was loaded"):
        load(TensorflowModel, folder)


def _adds(file: Path, number: float, *, beside: bool = False) -> None:
    value, weights = onnx.helper.make_tensor_value_info, np.full(2, number, np.float32)
    initializer = onnx.numpy_helper.from_array(weights, "w")
    if beside:
        initializer.ClearField("raw_data")
        initializer.data_location = onnx.TensorProto.EXTERNAL
        initializer.external_data.add(key="location", value="weights.bin")
        (file.parent / "weights.bin").write_bytes(weights.tobytes())
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    tensors = ([value(name, onnx.TensorProto.FLOAT, ["n", 2])] for name in "xy")
    made = onnx.helper.make_graph([node], "g", *tensors, [initializer])
    made = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(made.SerializeToString())


@pytest.mark.parametrize("which", ["the graph", "a graph with weights beside it", "weights"])
def test_an_onnx_model_is_one_graph_with_its_own_weights(
    which: str, folder: Path, tmp_path: Path, replace, monkeypatch
):
    import onnx_server.model

    file, other = folder / "model.onnx", tmp_path / "other.onnx"
    _adds(file, 1, beside=which != "the graph")
    _adds(other, 2)
    changed, content = file, other.read_bytes()
    if which == "weights":
        changed, content = folder / "weights.bin", np.full(2, 2, np.float32).tobytes()
    after(
        monkeypatch, onnx_server.model, "_session", lambda: replace(changed, content)
    )  # a second session is made then
    with pytest.raises(ConfigError, match=f"^{changed}: changed while it was loaded"):
        load(OnnxModel, folder)
    answer = load(OnnxModel, folder).predict({"x": np.zeros((1, 2), np.float32)}, Call())
    np.testing.assert_array_equal(answer["y"], [[2, 2]])


def _xgboost(file: Path, rounds: int) -> None:
    xgboost.train({"nthread": 1}, xgboost.DMatrix(ROWS, LABELS), rounds).save_model(file)


def _catboost(file: Path, rounds: int) -> None:
    catboost.CatBoostClassifier(iterations=rounds, thread_count=1, verbose=False, allow_writing_files=False).fit(
        ROWS, LABELS
    ).save_model(str(file))


def _skops(file: Path, rounds: int) -> None:
    skops.dump(linear.LogisticRegression(max_iter=100 * rounds).fit(ROWS, LABELS), file)


def _joblib(file: Path, rounds: int) -> None:
    joblib.dump(linear.LogisticRegression(max_iter=100 * rounds).fit(ROWS, LABELS), file, compress=("bz2", 3))


CHECKED: dict[str, tuple[str, Callable[[Path, int], None], Any, str, str, int, dict[str, Any]]] = {
    "ubj": ("model.ubj", _xgboost, XGBoostModel, "xgboost_server.modelfile", "read", 1, {"extra": {"engine": "booster"}}),
    "cbm": ("model.cbm", _catboost, CatBoostModel, "catboost_server.modelfile", "read", 2, {"extra": {"engine": "catboost"}}),
    "skops": ("model.skops", _skops, SklearnModel, "sklearn_server.modelfile", "find", 1, {"extra": {"engine": "sklearn"}}),
    "joblib": ("model.joblib", _joblib, SklearnModel, "sklearn_server.modelfile", "find", 1, {"allow_implementation": ("pickle",)}),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHECKED)
def test_a_file_that_a_framework_reads_again_is_the_one_that_was_read(kind: str, folder: Path, replace, monkeypatch):
    name, save, model, module, check, turns, settings = CHECKED[kind]
    file = folder / name
    save(file, 2)
    other = folder.with_name(f"other-{name}")
    save(other, 3)
    load(model, folder, **settings)
    after(monkeypatch, importlib.import_module(module), check, lambda: replace(file, other.read_bytes()), turns)
    with pytest.raises(ConfigError, match=f"{file}: changed while it was loaded"):
        load(model, folder, **settings)


def test_a_file_that_is_held_is_one_file_whatever_its_name_leads_to(tmp_path: Path):
    file = tmp_path / "model"
    file.write_bytes(b"good")
    with held(file) as own:
        assert own.read_bytes() == b"good"
    with pytest.raises(ConfigError, match=f"{file}: changed while"), held(file) as own:
        exchange(file, b"evil")
        assert own.read_bytes() == b"good"
    with pytest.raises(ConfigError, match=f"{file}: changed while"), held(file):
        write_over(file, b"else")
    with pytest.raises(ConfigError, match=f"^{file}: damaged$"), held(file) as own:
        raise ConfigError(f"{own}: damaged")
    with pytest.raises(ConfigError, match=f"{file / 'none'}: cannot be read"), held(file / "none"):
        pass


@pytest.mark.parametrize("way", [*WAYS, "gone"])
def test_a_file_that_is_read_again_is_the_same_before_and_after(way: str, tmp_path: Path):
    file = tmp_path / "model"
    file.write_bytes(b"good")
    digest = hashlib.sha256(b"good").hexdigest()
    with unchanged(file, digest):
        assert file.read_bytes() == b"good"
    with pytest.raises(ConfigError, match="changed while it was loaded"), unchanged(file, digest):
        os.unlink(file) if way == "gone" else WAYS[way](file, b"evil")
    with pytest.raises(ConfigError, match=r"changed while|cannot be read again"), unchanged(file, digest):
        pytest.fail("it was let through")
