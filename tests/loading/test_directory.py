"""Model directories and names of classes to models."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from serinus.errors import ConfigError
from serinus.hosts import build_model
from serinus.hosts.implementations import resolve
from serinus.loading import folder_name, infer_implementation, settings_from_directory
from serinus.loading.model_formats import RUNTIMES
from serinus.protocol.types import TensorSpec
from serinus.settings import ModelSettings

FILES = {
    "model.ubj": (b"{L\x00", "xgboost_server"),
    "model.json": (b'{"learner": {}}', "xgboost_server"),
    "model.xgb": (b"binf", "xgboost_server"),
    "model.bst": (b"binf", "xgboost_server"),
    "lgbm.bst": (b"tree\nversion=v4\n", "lightgbm_server"),
    "model.txt": (b"tree\nversion=v4\n", "lightgbm_server"),
    "model.onnx": (b"\x08", "onnx_server"),
    "model.pt": (b"PK", "torch_server"),
    "model.pth": (b"PK", "torch_server"),
    "model.pt2": (b"PK", "torch_server"),
    "1/saved_model.pb": (b"\x08", "tensorflow_server"),
    "saved_model.pb": (b"\x08", "tensorflow_server"),
    "ensemble.yaml": (b"schema_version: 1\n", "ensemble_server"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_runtime_is_known_by_its_files(tmp_path: Path, name: str):
    content, package = FILES[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert infer_implementation(tmp_path) == package
    (settings,) = settings_from_directory(tmp_path)
    assert (settings.name, settings.implementation, settings.model_dir) == (
        "",
        package,
        path.parent if name == "1/saved_model.pb" else tmp_path,
    )
    if path.parent == tmp_path and path.name != "saved_model.pb":
        assert infer_implementation(path) == package


def test_an_ensemble_takes_precedence_over_its_members_files(tmp_path: Path):
    (tmp_path / "ensemble.yaml").write_text("a: 1")
    (tmp_path / "a.ubj").write_bytes(b"{")
    (tmp_path / "b.onnx").write_bytes(b"{")
    assert infer_implementation(tmp_path) == "ensemble_server"


def test_what_is_not_known_says_what_was_seen_and_what_is_accepted(tmp_path: Path):
    (tmp_path / "model.pkl").write_bytes(b"\x80")
    (tmp_path / "readme.txt").write_text("tree house")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        infer_implementation(tmp_path)
    message = str(caught.value)
    assert "seen: config.json, model.pkl, readme.txt" in message
    assert "Pickles are never loaded" in message
    assert all(runtime.package in message for runtime in RUNTIMES)


def test_files_of_several_kinds_are_refused_with_their_names(tmp_path: Path):
    (tmp_path / "a.ubj").write_bytes(b"{")
    (tmp_path / "b.onnx").write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"b\.onnx \(onnx_server\); a\.ubj \(xgboost_server\)"):
        infer_implementation(tmp_path)


def write(folder: Path, **document: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model-settings.json").write_text(json.dumps(document))
    return folder


def test_model_settings_are_read_in_mlservers_form(tmp_path: Path):
    (tmp_path / "model.ubj").write_bytes(b"{")
    write(
        tmp_path,
        name="fraud",
        implementation="xgboost_server",
        platform="xgb",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        max_batch_size=64,
        max_batch_time=0.002,
        parameters={"uri": "./model.ubj", "version": "v3", "extra": {"engine": "auto"}, "missing": 0},
    )
    (settings,) = settings_from_directory(tmp_path)
    assert (settings.name, settings.version, settings.platform) == ("fraud", "v3", "xgb")
    assert settings.model_dir == tmp_path / "model.ubj"
    assert settings.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert (settings.batch.max_batch_rows, settings.batch.max_delay_s) == (64, 0.002)
    assert settings.extra == {"engine": "auto", "missing": 0}


def test_every_mistake_of_model_settings_is_reported_together(tmp_path: Path):
    write(
        tmp_path,
        nam="fraud",
        implementation=3,
        execution="fast",
        inputs=[{"name": "x", "datatype": "FLOAT", "shape": [1]}],
        batch={"max_delay": 1},
        parameters={"uri": "none.ubj"},
    )
    with pytest.raises(ConfigError) as caught:
        settings_from_directory(tmp_path)
    text = "\n".join(caught.value.problems)
    for part in (
        "'nam'; did you mean 'name'",
        "'implementation' is 3",
        "'execution'",
        "'FLOAT'",
        "'batch.max_delay'",
        "none.ubj",
    ):
        assert part in text, text


def test_json_that_is_none_says_the_line(tmp_path: Path):
    (tmp_path / "model-settings.json").write_text('{\n "name": }')
    with pytest.raises(ConfigError, match=r"model-settings\.json:2: not JSON"):
        settings_from_directory(tmp_path)


def test_what_has_no_meaning_here_is_accepted_with_a_warning(tmp_path: Path, caplog):
    write(tmp_path, name="m", implementation="xgboost_server", parallel_workers=4, cache_enabled=True)
    with caplog.at_level(logging.WARNING, "serinus.hosts"):
        settings_from_directory(tmp_path)
    assert "'parallel_workers' has no effect here: use --workers" in caplog.text
    assert "'cache_enabled'" in caplog.text


def test_mlservers_runtime_that_is_not_installed_is_ours(tmp_path: Path):
    write(tmp_path, name="m", implementation="mlserver_xgboost.XGBoostModel")
    assert settings_from_directory(tmp_path)[0].implementation == "xgboost_server"


def test_a_folder_of_model_folders_gives_one_model_each(tmp_path: Path):
    write(tmp_path / "a", name="alpha", implementation="xgboost_server")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "m.onnx").write_bytes(b"\x08")
    found = settings_from_directory(tmp_path)
    assert [(settings.name, settings.implementation) for settings in found] == [
        ("alpha", "xgboost_server"),
        ("b", "onnx_server"),
    ]


def test_settings_are_found_at_any_depth_as_by_mlserver(tmp_path: Path):
    write(tmp_path / "team" / "fraud" / "first", name="alpha", implementation="xgboost_server")
    write(tmp_path / "team" / "other", implementation="xgboost_server")
    write(tmp_path / "gamma", name="gamma", implementation="xgboost_server")
    found = settings_from_directory(tmp_path)
    assert [settings.name for settings in found] == ["gamma", "alpha", "other"]
    assert [settings.model_dir for settings in found][1] == tmp_path / "team" / "fraud" / "first"


def test_a_model_without_a_name_of_its_own_has_that_of_its_folder_as_under_mlserver(tmp_path: Path):
    write(tmp_path / "fraud", implementation="xgboost_server")
    (settings,) = settings_from_directory(tmp_path / "fraud")
    assert (settings.name, folder_name(settings)) == ("", "fraud")
    assert folder_name(ModelSettings(name="")) == ""


@pytest.mark.parametrize("uri", ["s3://bucket/model", "distilbert-base-uncased"])
def test_only_a_runtime_of_ours_needs_its_uri_to_be_a_file(tmp_path: Path, uri: str):
    write(tmp_path, name="m", implementation="my.package.Model", parameters={"uri": uri})
    (found,) = settings_from_directory(tmp_path, allow_implementation=["my.package.*"])
    assert found.implementation == "my.package.Model"
    write(tmp_path, name="m", implementation="mlserver_xgboost.XGBoostModel", parameters={"uri": uri})
    with pytest.raises(ConfigError, match="no such file or directory"):
        settings_from_directory(tmp_path)


def test_numbered_folders_are_versions_of_one_model(tmp_path: Path):
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "m.ubj").write_bytes(b"{")
    assert [(found.name, found.version) for found in settings_from_directory(tmp_path)] == [("", "1"), ("", "2")]


def test_a_class_that_was_named_takes_the_directory_as_it_is(tmp_path: Path):
    (settings,) = settings_from_directory(tmp_path, implementation="my.package:Model")
    assert (settings.implementation, settings.model_dir) == ("my.package:Model", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package", "no package 'no_such_package'"),
        ("no_such_package:Model", "no package 'no_such_package'"),
        ("kserve_classes:Nobody", "no 'Nobody'; it has .*DocumentedPredictor"),
        ("kserve_classes", "names a package without __serinus_class__.*DocumentedPredictor"),
        (
            "collections:OrderedDict",
            "the class OrderedDict, derived from dict; expected a subclass of serinus.model.Model",
        ),
        ("hosts_support:REPOSITORY", "is a PosixPath"),
        ("../code", "no name of a class"),
        ("../code.py", "no such file: ../code.py"),
        ("serinus.hosts.mlserver_host", "pip install 'serinus\\[mlserver\\]'"),
    ],
)
def test_a_name_that_is_no_model_says_what_was_found(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        build_model(ModelSettings(name="m", implementation=name))


@pytest.mark.parametrize("name", ["hosts_support:Pixels", "hosts_support.Pixels"])
def test_both_spellings_name_a_class(name: str):
    assert type(build_model(ModelSettings(name="m", implementation=name))).__name__ == "Pixels"


def test_code_beside_model_settings_is_not_imported_by_itself(tmp_path: Path):
    (tmp_path / "beside_model.py").write_text("raise SystemExit('imported')")
    write(tmp_path, name="m", implementation="beside_model.Model")
    (settings,) = settings_from_directory(tmp_path, allow_implementation=["beside_model.Model"])
    with pytest.raises(ConfigError, match=f"PYTHONPATH={tmp_path}"):
        build_model(settings)


@pytest.mark.parametrize("named", ["", "by the image"])
@pytest.mark.parametrize(
    "runtime", ["xgboost", "lightgbm", "onnx", "torch", "ensemble", pytest.param("tensorflow", marks=pytest.mark.slow)]
)
def test_the_settings_that_a_runtime_brings_name_it_here_as_under_mlserver(runtime: str, named: str, tmp_path: Path):
    shipped = Path(__file__).parents[2] / "runtimes" / f"{runtime}_server" / "model-settings.json"
    (tmp_path / "model-settings.json").write_bytes(shipped.read_bytes())
    (settings,) = settings_from_directory(tmp_path, f"{runtime}_server" if named else "")
    assert (settings.implementation, settings.extra, settings.model_dir) == (f"{runtime}_server", {}, tmp_path)
    assert resolve(settings.implementation).kind == ("kserve" if runtime == "ensemble" else "serinus")


def test_a_class_that_is_named_finds_the_versions_that_have_settings_each(tmp_path: Path):
    """MLServer's layout, which Seldon's agent fills."""
    for version in ("1", "12"):
        (tmp_path / "m_1" / version).mkdir(parents=True)
        (tmp_path / "m_1" / version / "model-settings.json").write_text('{"name": "m_1"}')
    found = settings_from_directory(tmp_path / "m_1", "xgboost_server")
    assert [(s.name, s.version, s.implementation) for s in found] == [
        ("m_1", "1", "xgboost_server"),
        ("m_1", "12", "xgboost_server"),
    ]
    assert [settings.model_dir for settings in found] == [tmp_path / "m_1" / version for version in ("1", "12")]


@pytest.mark.parametrize("beside", ["model.ubj", "notes/model-settings.json", "2/model.ubj"])
def test_a_class_that_is_named_takes_a_folder_of_anything_else_as_it_is(beside: str, tmp_path: Path):
    for file in ("1/model-settings.json", beside):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    (settings,) = settings_from_directory(tmp_path, "xgboost_server")
    assert settings.model_dir == tmp_path


def test_a_version_that_leads_out_of_its_folder_is_refused_whoever_names_the_class(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model-settings.json").write_text("{}")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of"):
        settings_from_directory(tmp_path / "m", "xgboost_server")


def test_a_file_of_code_that_model_settings_name_is_not_run(tmp_path: Path):
    (tmp_path / "code.py").write_text("raise AssertionError\n")
    (tmp_path / "model-settings.json").write_text(json.dumps({"implementation": f"{tmp_path}/code.py:Model"}))
    with pytest.raises(ConfigError, match=r"code is not loaded because a model directory says so.*--class"):
        settings_from_directory(tmp_path)
    assert settings_from_directory(tmp_path, implementation="code.py:Model")[0].implementation == "code.py:Model"
