"""A model file is known by its bytes, whatever a volume calls it: each format, by its own framework, under names that say nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xgboost_support
from deferred import Deferred
from serinus.cli.serving import startup_models
from serinus.cli.serving.options import parse
from serinus.content.model_content import Content, content_of
from serinus.errors import ConfigError
from serinus.hosts import build_model
from serinus.loading import infer_implementation
from serinus.settings import ModelSettings

lightgbm = Deferred("lightgbm")
onnx = Deferred("onnx")
torch = Deferred("torch")

# A framework's own import warnings are no concern here.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def _xgboost(folder: Path, suffix: str) -> Path:
    xgboost_support.train().save_model(folder / f"m{suffix}")
    return folder / f"m{suffix}"


def _lightgbm(folder: Path) -> Path:
    rows = np.random.default_rng(0).normal(size=(200, 2))
    data = lightgbm.Dataset(rows, label=rows[:, 0])
    lightgbm.train({"verbose": -1, "num_threads": 1}, data, 3).save_model(folder / "m.txt")
    return folder / "m.txt"


def _onnx(folder: Path) -> Path:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, kind, ["n", 2]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "m"))
    return folder / "m"


def _script(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(3, 2).eval()).save(str(folder / "m.pt"))
    return folder / "m.pt"


def _program(folder: Path) -> Path:
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.zeros(2, 3),)), str(folder / "m.pt2"))
    return folder / "m.pt2"


FORMATS: dict[str, tuple[Callable[[Path], Path], Content]] = {
    "xgboost-json": (lambda folder: _xgboost(folder, ".json"), Content.XGBOOST_JSON),
    "xgboost-ubjson": (lambda folder: _xgboost(folder, ".ubj"), Content.XGBOOST_UBJSON),
    "xgboost-binary": (
        lambda folder: xgboost_support.legacy(*xgboost_support.legacy_cases()[0], folder)[0],
        Content.XGBOOST_BINARY,
    ),
    "lightgbm": (_lightgbm, Content.LIGHTGBM_TEXT),
    "onnx": (_onnx, Content.ONNX),
    "torchscript": (_script, Content.TORCHSCRIPT),
    "torch-export": (_program, Content.TORCH_EXPORT),
}
SLOW = {"torchscript", "torch-export"}
CASES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FORMATS]


@pytest.mark.parametrize("called", ["models", "model.onnx", "fraud.v2", "model.json"])
@pytest.mark.parametrize("name", CASES)
def test_a_file_is_served_under_any_name(tmp_path: Path, name: str, called: str):
    make, content = FORMATS[name]
    (tmp_path / "made").mkdir()
    (tmp_path / "mounted").mkdir()
    file = tmp_path / "mounted" / called
    file.write_bytes(make(tmp_path / "made").read_bytes())
    assert content_of(file) is content
    for place in (file, file.parent):
        assert infer_implementation(place) == content.package
        model = build_model(ModelSettings(name="m", implementation=content.package, model_dir=place, threads=1))
        model.load()
        if model.inputs:
            shape = [2 if size == -1 else size for size in model.inputs[0].shape]
            answer: Any = model.predict({model.inputs[0].name: np.zeros(shape, np.float32)}, _call())
            assert len(next(iter(answer.values()))) == 2
        model.unload()


def _call() -> Any:
    from serinus import Call

    return Call()


def test_a_folder_of_any_name_that_holds_a_saved_model_is_one(tmp_path: Path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    assert infer_implementation(tmp_path / "models") == "tensorflow_server"
    assert content_of(tmp_path / "models" / "saved_model.pb") is Content.SAVED_MODEL


@pytest.mark.parametrize("named", ["xgboost_server", "lightgbm_server", "onnx_server"])
def test_a_runtime_says_what_a_file_is_that_another_one_serves(tmp_path: Path, named: str):
    make, content = FORMATS["onnx" if named != "onnx_server" else "xgboost-ubjson"]
    (tmp_path / "models").write_bytes(make(tmp_path).read_bytes())
    with pytest.raises(ConfigError, match="not a.*" + content.value.replace("(", r"\(").replace(")", r"\)")) as refused:
        model = build_model(ModelSettings(name="m", implementation=named, model_dir=tmp_path / "models"))
        model.load()
    assert f"which {content.package} serves" in str(refused.value)


@pytest.mark.parametrize("named", ["xgboost_server", "lightgbm_server", "onnx_server"])
def test_a_runtime_says_what_lies_in_a_folder_that_another_one_serves(tmp_path: Path, named: str):
    make, content = FORMATS["onnx" if named != "onnx_server" else "xgboost-ubjson"]
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "weights.data").write_bytes(make(tmp_path).read_bytes())
    (folder / "about.md").write_text("a model")
    with pytest.raises(ConfigError, match=r"no model file|no XGBoost model") as refused:
        build_model(ModelSettings(name="m", implementation=named, model_dir=folder)).load()
    assert f"; weights.data is {content.value}, which {content.package} serves" in str(refused.value)


NOTHING = {
    "empty": b"",
    "a text": b"Tree by tree\n",
    "JSON": b'{"a": "learner"}',
    "zeros": bytes(512),
    "a zip that is none": b"PK\x03\x04 and no more",
    "a message of another kind": b"\x08\x01\x32\x03abc",
    "a graph that lies about its length": b"\x12\xff\xff\xff\xff\x0f",
    "endless numbers": b"\xff" * 64,
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_says_nothing_of_itself_is_recognised_as_nothing(tmp_path: Path, name: str):
    (tmp_path / "models").write_bytes(NOTHING[name])
    assert content_of(tmp_path / "models") is Content.UNKNOWN
    with pytest.raises(ConfigError, match="no model is recognised here; seen: models"):
        infer_implementation(tmp_path / "models")


def test_a_pickle_is_refused_in_words_under_any_name(tmp_path: Path):
    (tmp_path / "models").write_bytes(b"\x80\x04\x95.")
    assert content_of(tmp_path / "models") is Content.PICKLE
    with pytest.raises(ConfigError, match="Pickles are never loaded"):
        infer_implementation(tmp_path / "models")


def test_a_file_that_is_mounted_where_a_folder_is_expected_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mounted = tmp_path / "models"
    mounted.write_bytes(_xgboost(tmp_path, ".ubj").read_bytes())
    monkeypatch.setattr(startup_models, "_DEFAULT_MODEL_DIR", mounted)
    (settings,) = startup_models.find_models(parse([], {}), None).models
    assert (settings.implementation, settings.model_dir) == ("xgboost_server", mounted)
