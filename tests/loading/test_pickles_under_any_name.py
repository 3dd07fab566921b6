"""A pickle runs what its writer put in; whatever a file is called or packed in, a server that allows none runs nothing of it, and says so in words."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from recommender_features.catalogue import CATALOGUE_FILE, Catalogue
from serinus.errors import ConfigError
from serinus.hosts import build_model
from serinus.loading.directory import settings_from_directory
from serinus.tuning.forms.samples import read_samples

pytestmark = pytest.mark.slow  # each runtime brings its framework

torch = Deferred("torch")


class Touch:
    """Leaves a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def _objects(value: Any, *, archive: bool = False) -> bytes:
    opened, array = io.BytesIO(), np.empty(1, object)
    array[0] = value
    np.savez(opened, inputs=array, x=array) if archive else np.save(opened, array, allow_pickle=True)
    return opened.getvalue()


def _torch(value: Any, *, archive: bool = True) -> bytes:
    opened = io.BytesIO()
    torch.save(value, opened, _use_new_zipfile_serialization=archive)
    return opened.getvalue()


PACKED: dict[str, Callable[[Any], bytes]] = {
    "pickle": pickle.dumps,
    "of protocol 0": lambda value: pickle.dumps(value, 0),
    "gzip": lambda value: gzip.compress(pickle.dumps(value)),
    "zlib": lambda value: zlib.compress(pickle.dumps(value)),
    "bz2": lambda value: bz2.compress(pickle.dumps(value)),
    "xz": lambda value: lzma.compress(pickle.dumps(value)),
    "lzma": lambda value: lzma.compress(pickle.dumps(value), lzma.FORMAT_ALONE),
    "npy": _objects,
    "npz": lambda value: _objects(value, archive=True),
    "torch.save": _torch,
    "torch.save before 1.6": lambda value: _torch(value, archive=False),
}
NAMES = [
    *("model.pkl", "model.joblib", "model.skops", "model.onnx", "model.ubj", "model.json", "model.txt", "model.cbm"),
    *("model.pt", "model.pth", "model.pt2", "saved_model.pb", "model.keras", "model.h5", "model.mar", "model.npz"),
    *("ensemble.yaml", "MLmodel", "model", "model-settings.json"),
]


@pytest.mark.parametrize("packed", PACKED)
def test_no_file_of_a_model_is_unpickled(packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))
    marker = tmp_path / "ran"
    content = PACKED[packed](Touch(marker))
    for name in NAMES:
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(ConfigError, match=str(folder)):
            build_model(settings_from_directory(folder)[0]).load()
        assert not marker.exists(), name


@pytest.mark.parametrize("packed", PACKED)
def test_no_arrays_beside_a_model_are_unpickled(packed: str, tmp_path: Path):
    marker = tmp_path / "ran"
    file = tmp_path / CATALOGUE_FILE
    file.write_bytes(PACKED[packed](Touch(marker)))
    with pytest.raises(ValueError, match="no catalogue of a recommender"):
        Catalogue.load(tmp_path)
    with pytest.raises(ConfigError, match=r"neither an \.npz nor a V2 request"):
        read_samples(file)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00\x46\x00{}"])
def test_damaged_arrays_are_refused_in_words(content: bytes, tmp_path: Path):
    file = tmp_path / CATALOGUE_FILE
    file.write_bytes(content)
    with pytest.raises(ValueError, match="catalogue"):
        Catalogue.load(tmp_path)
    with pytest.raises(ConfigError, match="--inputs"):
        read_samples(file)
