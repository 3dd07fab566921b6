"""Names longer than any file's (a list whose lines run together) are told as files that are not there, wherever a document or a command names one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serinus.errors import ConfigError
from serinus.loading.directory import settings_from_directory
from serinus.local.run.storage import fetch, parse_mounts
from serinus.manifests.kustomization import kustomization_files
from serinus.manifests.reading import check, load_documents

LONG = "- a.yaml " * 60


@pytest.mark.parametrize("key", ["resources", "bases", "components", "patchesStrategicMerge", "patches"])
def test_a_kustomization_may_name_one(key: str, tmp_path: Path) -> None:
    item = f"path: {LONG!r}" if key == "patches" else repr(LONG)
    (tmp_path / "kustomization.yaml").write_text(f"{key}:\n- {item}\n")
    assert list(kustomization_files(tmp_path)) == [tmp_path.resolve() / "kustomization.yaml"]
    assert check([tmp_path]).problems


def test_so_may_who_lints_or_runs() -> None:
    (problem,) = check([Path(LONG)]).problems
    assert "no such file" in str(problem)
    with pytest.raises(ConfigError, match="no such file"):
        load_documents(Path(LONG))
    with pytest.raises(ValueError, match="no such folder"):
        parse_mounts([f"models={LONG}"])


@pytest.mark.parametrize("uri", ["file:///", "pvc://a/", ""])
def test_so_may_a_storage_uri(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        fetch(uri + LONG, base=tmp_path, cache=tmp_path / "c", mounts={"pvc://a": tmp_path}, settings={}, pull=False)


def test_so_may_settings_and_whoever_serves(tmp_path: Path) -> None:
    (tmp_path / "model-settings.json").write_text(
        json.dumps({"name": "m", "implementation": "xgboost_server", "parameters": {"uri": LONG}})
    )
    for path in (tmp_path, Path(LONG)):
        with pytest.raises(ConfigError, match=r"no such file|leads out"):
            settings_from_directory(path)
