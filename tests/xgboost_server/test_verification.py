"""The verification of the walk: made once, saved, found again, and worth nothing for another file, engine, version or setting."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from absent_packages import BESIDE_BOOSTERS, without
from serinus import verification_records
from serinus.engines import tree_verification
from serinus.errors import ConfigError
from serinus.model import Call
from serinus.settings import ModelSettings
from xgboost_server import adapter as adapters
from xgboost_server import modelfile, verify
from xgboost_server.adapter import XGBoostAdapter
from xgboost_server.booster import Booster
from xgboost_server.forest_reader import compile_forest
from xgboost_server.options import Options
from xgboost_support import load, rows, save, train

FRAUD = Path(__file__).parents[2] / "inferenceservices" / "fraud" / "model"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return save(train(), folder)


class _Boosters:
    """Counts how often a Booster is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0

        def make(*arguments: object, **named: object) -> Booster:
            self.made += 1
            return Booster(*arguments, **named)  # type: ignore[arg-type] # passed on as they came

        monkeypatch.setattr(adapters, "Booster", make)


def test_a_second_start_takes_the_record_of_the_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boosters = _Boosters(monkeypatch)
    first = load(path).details
    assert boosters.made == 1
    assert load(path).details == first
    assert boosters.made == 1
    assert path.with_name("model.ubj.verdict.json").exists()


def test_a_record_says_nothing_about_another_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(path)
    save(train(seed=9), path.parent)
    boosters = _Boosters(monkeypatch)
    load(path)
    assert boosters.made == 1


@pytest.mark.parametrize("settings", [{"missing": 0.0}, {"iteration_range": [0, 3]}], ids=["missing", "iterations"])
def test_a_record_says_nothing_about_other_settings(
    settings: dict, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(path)
    boosters = _Boosters(monkeypatch)
    load(path, **settings)
    assert boosters.made == 1


@pytest.mark.parametrize("changed", [{"engine": 0}, {"xgboost": "0.1"}, {"sha256": "0"}], ids=str)
def test_a_record_of_another_engine_version_or_file_lapses(
    changed: dict, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(path)
    kept = path.with_name("model.ubj.verdict.json")
    kept.write_text(json.dumps({**json.loads(kept.read_text()), **changed}))
    boosters = _Boosters(monkeypatch)
    load(path)
    assert boosters.made == 1


def test_the_record_that_ships_with_the_fraud_model_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by an earlier version: the form of records is what installations have on disk."""
    record = json.loads((FRAUD / "fraud.ubj.verdict.json").read_text())
    monkeypatch.setattr(XGBoostAdapter, "installed_version", lambda *_: record["xgboost"])
    boosters = _Boosters(monkeypatch)
    assert load(FRAUD / "fraud.ubj").details["engine_reason"].startswith("verified: largest difference")
    assert boosters.made == 0


def test_the_record_that_ships_with_the_fraud_model_is_left_by_another_xgboost(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fraud.ubj", "fraud.ubj.verdict.json"):
        (tmp_path / name).write_bytes((FRAUD / name).read_bytes())
    came = (FRAUD / "fraud.ubj.verdict.json").read_bytes()
    monkeypatch.setattr(XGBoostAdapter, "installed_version", lambda *_: "99.0")
    boosters = _Boosters(monkeypatch)
    for _ in range(2):
        assert load(tmp_path / "fraud.ubj").details["engine"] == "forest"
    assert boosters.made == 1
    assert (tmp_path / "fraud.ubj.verdict.json").read_bytes() == came
    assert [json.loads(path.read_text())["xgboost"] for path in (cache / "verdicts").iterdir()] == ["99.0"]
    assert verify.main([str(tmp_path / "fraud.ubj")]) == 0
    assert json.loads((tmp_path / "fraud.ubj.verdict.json").read_text())["xgboost"] == "99.0"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sha256": 1}', "null"])
def test_a_damaged_record_is_made_anew(content: str, path: Path) -> None:
    kept = path.with_name("model.ubj.verdict.json")
    kept.write_text(content)
    assert load(path).details["engine"] == "forest"
    assert json.loads(kept.read_text())["agrees"] is True


def test_a_record_in_a_folder_that_cannot_be_written_goes_to_the_cache(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = list(verification_records.paths(path, modelfile.read(path).sha256))
    assert places[0].parent == path.parent
    assert places[1].parent.parent == cache
    # Root may write everywhere, so a folder that is a file stands for one that cannot be written.
    blocked = path.parent / "blocked"
    blocked.write_text("")
    monkeypatch.setattr(verification_records, "paths", lambda *_: iter([blocked / "verdict.json", places[1]]))
    boosters = _Boosters(monkeypatch)
    load(path)
    load(path)
    assert boosters.made == 1
    assert places[1].exists()


def test_a_record_that_can_be_saved_nowhere_is_said_in_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verification_records, "paths", lambda *_: iter([]))
    assert load(path).details["engine"] == "forest"
    assert "saved nowhere" in caplog.text


def test_an_engine_that_differs_is_found_out_and_the_booster_serves(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spoiled(file: modelfile.ModelFile, *arguments: object, **named: object):
        trees = [dict(tree) for tree in file.model["trees"]]
        trees[2]["default_left"] = 1 - np.asarray(trees[2]["default_left"])
        return compile_forest(replace(file, model={**file.model, "trees": trees}), *arguments, **named)

    monkeypatch.setattr(adapters, "compile_forest", spoiled)
    model = load(path)
    assert model.details["engine"] == "booster"
    assert "differs" in model.details["engine_reason"]
    assert "differs" in caplog.text
    data = rows(30)
    np.testing.assert_array_equal(model.predict({"x": data}, Call())["predict"], train().inplace_predict(data))
    with pytest.raises(ConfigError, match="'forest', but the compiled engine differs"):
        load(path, engine="forest")


def test_a_threshold_moved_by_one_float_is_found_out(path: Path) -> None:
    file = modelfile.read(path)
    adapter = XGBoostAdapter(ModelSettings(name="m", model_dir=path), Options())
    booster = adapter.load_predictor(threads=1)
    moved = 0
    for number in range(8):
        trees = [dict(tree) for tree in file.model["trees"]]
        values = np.array(trees[number]["split_conditions"], np.float32)
        values[0] = np.nextafter(values[0], np.float32(np.inf))
        trees[number]["split_conditions"] = values
        forest = compile_forest(
            replace(file, model={**file.model, "trees": trees}), (0, 8), missing=float("nan"), threads=1
        )
        moved += not tree_verification.verify(adapter, forest, booster).agrees
    assert moved == 8


def test_without_xgboost_a_record_against_any_version_will_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(path)
    monkeypatch.setattr(XGBoostAdapter, "installed_version", lambda *_: "")
    monkeypatch.setitem(sys.modules, "xgboost", None)
    assert load(path).details["engine"] == "forest"


def test_without_xgboost_and_without_a_record_a_model_is_refused_unless_the_engine_is_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(XGBoostAdapter, "installed_version", lambda *_: "")
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(ConfigError, match=r"never compared with xgboost .* python -m xgboost_server.verify"):
        load(path)
    assert "never compared" in load(path, engine="forest").details["engine_reason"]
    assert "never compared" in caplog.text
    with pytest.raises(ConfigError, match=r"pip install 'serinus\[xgboost-server\]'"):
        load(path, engine="booster")


def test_without_xgboost_contributions_are_said_to_be_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serinus.errors import NotSupported

    model = load(path, engine="forest")
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(NotSupported, match="'contributions' is not offered here"):
        model.predict({"x": rows(1)}, Call(outputs=frozenset({"contributions"})))


def test_the_command_saves_the_record_that_a_start_then_takes(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (path.parent / "model-settings.json").write_text('{"name": "m", "parameters": {"extra": {"missing": -1}}}')
    assert verify.main([str(path.parent)]) == 0
    assert "the compiled engine agrees" in capsys.readouterr().out
    boosters = _Boosters(monkeypatch)
    load(path, missing=-1)
    assert boosters.made == 0


def test_the_command_tells_what_is_left_to_the_booster(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dart = save(train(booster="dart", rate_drop=0.5), tmp_path)
    assert verify.main([str(dart), str(path), str(tmp_path / "absent")]) == 1
    said = capsys.readouterr()
    assert re.search(r"served by xgboost's Booster: (booster dart|trees with weights \(dropout\))", said.err)
    assert "no such file or folder" in said.err
    assert "agrees" in said.out


@pytest.mark.slow
def test_the_command_runs_as_a_module(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xgboost_server.verify", str(path), "--iteration-range", "0,4"]
    environment = {**os.environ, **without(tmp_path, *BESIDE_BOOSTERS)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "agrees" in ran.stdout
    assert json.loads(path.with_name("model.ubj.verdict.json").read_text())["iterations"] == [0, 4]
