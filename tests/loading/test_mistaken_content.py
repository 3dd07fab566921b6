"""What was taken for a model and is none is told by name, with the mend; what is a model is not."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from deferred import Deferred
from serinus.content.mistaken_content import describe_mistake
from serinus.errors import ConfigError
from serinus.loading.model_formats import infer_implementation

xgboost = Deferred("xgboost")
lightgbm = Deferred("lightgbm")
np = Deferred("numpy")


def _zip(*names: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return data.getvalue()


def _safetensors() -> bytes:
    head = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(4)


@pytest.mark.parametrize(
    ("content", "told", "mend"),
    [
        (b"", "it is empty", "fetch or save it again"),
        (b"<!DOCTYPE html><html>", "an HTML page", "fetch the file itself again"),
        (b"\n<html><body>404", "an HTML page", "fetch"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "an XML error of a bucket", "credentials"),
        (b'<?xml version="1.0"?><PMML version="4.4">', "a PMML document", "its framework's own format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file", "model.export"),
        (gzip.compress(b"x"), "a gzip archive", "unpack it"),
        (pickle.dumps({"a": 1}), "a pickle", "save the model"),
        (_safetensors(), "safetensors: weights without a network", "ONNX"),
        (b'{"a": 1}', "JSON that is no model", "save_model"),
        (b"[1, 2]", "JSON that is no model", "save_model"),
        (_zip("config.json", "model.weights.h5"), "a Keras archive", "model.export"),
        (_zip("MAR-INF/MANIFEST.json"), "a TorchServe archive", "unpack it"),
        (_zip("a", "b"), "a zip archive of a, b", ""),
        (_zip("a")[:-10], "cut off or damaged", "fetch it again"),
        (b"hello world", "it begins with b'hello world'", ""),
    ],
)
def test_a_file_is_told_by_its_content_with_the_mend(tmp_path: Path, content: bytes, told: str, mend: str) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(content)
    assert told in describe_mistake(file)
    assert mend in describe_mistake(file)
    with pytest.raises(ConfigError, match="no model is recognised here") as caught:
        infer_implementation(tmp_path)
    assert f"(model.bin: {describe_mistake(file)})" in str(caught.value)


def test_nothing_is_told_of_what_cannot_be_read(tmp_path: Path) -> None:
    assert describe_mistake(tmp_path) == describe_mistake(tmp_path / "absent") == ""


def test_dumps_and_a_configuration_of_xgboost_are_told_from_its_models(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((40, 3))
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, rows[:, 0] > 0.5), 2)
    booster.dump_model(str(tmp_path / "text"))
    booster.dump_model(str(tmp_path / "json"), dump_format="json")
    (tmp_path / "config").write_text(booster.save_config())
    for name, told in (
        ("text", "an XGBoost dump of trees (text)"),
        ("json", "an XGBoost dump of trees (JSON)"),
        ("config", "a configuration of XGBoost (save_config)"),
    ):
        assert told in describe_mistake(tmp_path / name)
        assert "save the model with Booster.save_model('model.ubj')" in describe_mistake(tmp_path / name)
    from xgboost_server.modelfile import read

    with pytest.raises(ConfigError, match=r"an XGBoost dump of trees \(JSON\).*save_model"):
        read(tmp_path / "json")
    for name in ("model.json", "model.ubj"):
        booster.save_model(tmp_path / name)
        assert describe_mistake(tmp_path / name) == "", "one that is a model, perhaps damaged, is its reader's to judge"


def test_a_dump_of_lightgbm_is_told(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((60, 3))
    data = lightgbm.Dataset(rows, (rows[:, 0] > 0.5).astype(int))
    booster = lightgbm.train({"objective": "binary", "verbose": -1}, data, 2)
    (tmp_path / "model.txt").write_text(json.dumps(booster.dump_model()))
    assert "a LightGBM dump (JSON)" in describe_mistake(tmp_path / "model.txt")
    from lightgbm_server.modelfile import read

    with pytest.raises(ConfigError, match=r"a LightGBM dump \(JSON\).*save_model"):
        read(tmp_path / "model.txt")
