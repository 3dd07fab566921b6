"""One runtime, every classic format by its content; what another runtime serves is refused with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

import lightgbm_support
import sklearn_support
import xgboost_support
from deferred import Deferred
from serinus.errors import ConfigError
from serinus.hosts import build_model
from serinus.settings import ModelSettings

pytestmark = pytest.mark.slow

linear = Deferred("sklearn.linear_model")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["xgboost", "lightgbm", "sklearn"])
def test_a_file_of_any_name_is_served_by_the_runtime_of_its_content(kind: str, tmp_path: Path):
    (tmp_path / "made").mkdir()
    if kind == "sklearn":
        data = sklearn_support.rows()
        made = sklearn_support.save(linear.Ridge().fit(data, data[:, 0]), tmp_path / "made")
    elif kind == "xgboost":
        made = xgboost_support.save(xgboost_support.train(), tmp_path / "made")
    else:
        made = lightgbm_support.save(lightgbm_support.train(), tmp_path / "made")
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / "model").write_bytes(made.read_bytes())
    model = build_model(ModelSettings(name="m", implementation="classic_server", model_dir=tmp_path / "mounted"))
    model.load()
    assert type(model).__module__ == f"{kind}_server.model"
    assert model.details["engine"] in ("forest", "compiled")
    model.unload()


def test_a_format_that_is_not_classic_is_refused_with_its_runtime(tmp_path: Path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    with pytest.raises(
        ConfigError, match="is served by tensorflow_server; classic_server takes the files of xgboost_server"
    ):
        build_model(ModelSettings(name="m", implementation="classic_server", model_dir=tmp_path))
