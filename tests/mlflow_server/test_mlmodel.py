"""Damaged and hostile MLmodel files are refused in words, and name no code and no file outside their folder."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

import xgboost_support
from serinus.errors import ConfigError
from serinus.hosts import build_model
from serinus.loading import infer_implementation
from serinus.settings import ModelSettings

GOOD: dict[str, Any] = {
    "flavors": {
        "python_function": {"loader_module": "mlflow.xgboost", "data": "model.ubj"},
        "xgboost": {"data": "model.ubj", "model_class": "xgboost.core.Booster"},
    },
    "mlflow_version": "3.1.0",
    "signature": {
        "inputs": '[{"type": "double", "name": "a"}, {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}}]',
        "outputs": '[{"type": "double"}]',
        "params": None,
    },
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


def folder_of(tmp_path: Path, document: Any) -> Path:
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    xgboost_support.save(xgboost_support.train(), folder)
    text = document if isinstance(document, str) else yaml.safe_dump(document)
    (folder / "MLmodel").write_text(text)
    return folder


def make(folder: Path, **named: Any) -> Any:
    return build_model(ModelSettings(name="m", implementation="mlflow_server", model_dir=folder, **named))


def changed(**parts: Any) -> dict[str, Any]:
    return {**GOOD, **parts}


def test_a_folder_with_an_mlmodel_is_mlflow_servers_and_the_file_itself_is_too(tmp_path: Path):
    folder = folder_of(tmp_path, GOOD)
    assert infer_implementation(folder) == "mlflow_server"
    assert infer_implementation(folder / "MLmodel") == "mlflow_server"
    for named in (folder, folder / "MLmodel"):
        model = make(named)
        model.load()
        assert model.details["served_by"] == "xgboost_server"
        model.unload()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("", "is no mapping"),
        ("[1]", "is no mapping"),
        ("a: [", "not YAML"),
        ("a: !!python/object/apply:os.system [id]", "not YAML"),
        ("a: 2024-99-99", "not YAML"),
        ("[" * 100_000, "nested too deep"),
        ("a: &a {b: 1}\nc: {<<: *a}", "merge key"),
        (changed(flavors=None), "names no flavors"),
        (changed(flavors=[]), "names no flavors"),
        (changed(flavors={"xgboost": 1}), "is no mapping"),
        (changed(flavors={"xgboost": {"data": None}}), "a path in the folder was expected"),
        (changed(flavors={"xgboost": {"data": "absent.ubj"}}), "'absent.ubj' are not there"),
        (changed(flavors={"xgboost": {"data": "../../etc/passwd"}}), "lead out of the folder"),
        (changed(flavors={"xgboost": {"data": "/etc/passwd"}}), "lead out of the folder"),
        (changed(flavors={"sklearn": {"pickled_model": "/etc/passwd"}}), "lead out of the folder"),
        (changed(flavors={"pytorch": {"model_data": "/etc"}}), "lead out of the folder"),
        (changed(flavors={"xgboost": {"data": "a\0b"}}), r"'a\\x00b' lead out of the folder"),
        (changed(flavors={"xgboost": {"data": "a" * 5000}}), r"a{100}\.\.\. lead out of the folder"),
        (changed(flavors={"crate": {}}), "has no python_function flavour"),
        (changed(flavors={"python_function": {"loader_module": "os"}}), "--allow_implementation mlflow.pyfunc"),
        (changed(signature=1), "signature is no mapping"),
        (changed(signature={"inputs": "["}), "not JSON"),
        (changed(signature={"inputs": "3"}), "a list of at most"),
        (changed(signature={"inputs": "[3]"}), "a mapping was expected"),
        (changed(signature={"inputs": '[{"type": "complex"}]'}), "its type is 'complex'"),
        (changed(signature={"inputs": '[{"type": "double", "name": []}]'}), "a text was expected"),
        (changed(signature={"inputs": '[{"type": "double", "name": "x"}, {"type": "long", "name": "x"}]'}), "more than once"),
        (changed(signature={"inputs": '[{"type": "tensor"}]'}), "needs dtype and shape"),
        (changed(signature={"inputs": '[{"type": "tensor", "tensor-spec": {"dtype": "x", "shape": []}}]'}), "protocol carries"),
        (changed(signature={"inputs": '[{"type": "tensor", "tensor-spec": {"dtype": "int8", "shape": [-7]}}]'}), "whole numbers"),
        (changed(signature={"inputs": '[{"type": "tensor", "tensor-spec": {"dtype": "int8", "shape": [9223372036854775808]}}]'}), "whole numbers"),
        (changed(signature={"inputs": json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "f4," * 50_000, "shape": [1]}}])}), r"f4,f4\.\.\. is none"),
        (changed(signature={"inputs": '[{"type": "tensor", "tensor-spec": {"dtype": null, "shape": [1]}}]'}), "dtype None is none"),
        (changed(signature={"params": "[{}]"}), "without a name"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused_in_words(document: Any, words: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=words) as told:
        make(folder_of(tmp_path, document))
    assert len(str(told.value)) < 1000


@pytest.mark.timeout(20)  # each column was looked for among all: a minute
@pytest.mark.slow
def test_of_many_columns_one_that_is_there_twice_is_found_soon(tmp_path: Path):
    columns = [{"type": "double", "name": f"column {min(number, 59_998)}"} for number in range(60_000)]
    with pytest.raises(ConfigError, match="'column 59998' is there more than once"):
        make(folder_of(tmp_path, changed(signature={"inputs": json.dumps(columns)})))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path):
    folder = folder_of(tmp_path, GOOD)
    (folder / "MLmodel").rename(tmp_path / "elsewhere")
    (folder / "MLmodel").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of the folder"):
        make(folder)


def test_no_damage_of_the_file_ends_in_anything_but_words(tmp_path: Path):
    text = yaml.safe_dump(GOOD)
    folder = folder_of(tmp_path, text)
    chance = random.Random(4)
    for _ in range(300):
        made = bytearray(text.encode())
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(made))
            if chance.random() < 0.5:
                made[at] = chance.randrange(256)
            else:
                del made[at : at + chance.randint(1, 40)]
        (folder / "MLmodel").write_bytes(bytes(made))
        with contextlib.suppress(ConfigError):  # anything else that is raised fails the test
            make(folder)
