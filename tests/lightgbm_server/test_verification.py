"""The verification of the float64 walk: saved, found again, and worth nothing for another file, engine, version or setting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from absent_packages import BESIDE_BOOSTERS, without
from lightgbm_server import adapter as adapters
from lightgbm_server import modelfile, verify
from lightgbm_server.adapter import LightGBMAdapter
from lightgbm_server.booster import Booster
from lightgbm_server.forest_reader import compile_forest
from lightgbm_support import load, rows, save, train
from serinus import verification_records
from serinus.errors import ConfigError
from serinus.model import Call


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return save(train(categorical=True), folder)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for every Booster made."""
    entries: list[object] = []

    def make(*arguments: object, **named: object) -> Booster:
        entries.append(arguments)
        return Booster(*arguments, **named)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr(adapters, "Booster", make)
    return entries


def test_a_second_start_takes_the_record_of_the_first(path: Path, made: list[object]) -> None:
    first = load(path).details
    assert load(path).details == first
    assert len(made) == 1
    assert json.loads(path.with_name("model.txt.verdict.json").read_text())["agrees"] is True


@pytest.mark.parametrize(
    "changed",
    [{"engine64": 0}, {"lightgbm": "0.1"}, {"sha256": "0"}, {"iterations": [0, 1]}, {"rows": None, "x": 1}],
    ids=str,
)
def test_a_record_of_anything_else_lapses(changed: dict, path: Path, made: list[object]) -> None:
    load(path)
    kept = path.with_name("model.txt.verdict.json")
    kept.write_text(json.dumps({**json.loads(kept.read_text()), **changed}))
    load(path)
    assert len(made) == 2


@pytest.mark.parametrize("part", ["threshold", "decision", "leaf", "set_words"])
def test_an_engine_that_differs_in_one_tree_is_found_out_and_the_booster_serves(
    part: str, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spoiled(file: modelfile.ModelFile, *arguments: object, **named: object):
        number = next(
            index for index, tree in enumerate(file.trees) if len(tree.set_words) and (tree.decision & 1 == 0).any()
        )
        tree = file.trees[number]
        array = getattr(tree, part).copy()
        at = int(np.argmax(tree.decision & 1 == 0))
        if part == "threshold":
            array[at] = np.nextafter(array[at], np.inf)
        elif part == "decision":
            array[at] ^= 2
        elif part == "leaf":
            array += 0.01
        else:
            array ^= np.uint32(0xFFFFFFFF)
        trees = list(file.trees)
        trees[number] = replace(tree, **{part: array})
        return compile_forest(replace(file, trees=tuple(trees)), *arguments, **named)

    monkeypatch.setattr(adapters, "compile_forest", spoiled)
    model = load(path)
    assert model.details["engine"] == "booster"
    assert "the compiled engine differs" in caplog.text
    data = rows(30)
    np.testing.assert_array_equal(model.predict({"x": data}, Call())["predict"], train(categorical=True).predict(data))
    with pytest.raises(ConfigError, match="'forest', but the compiled engine differs"):
        load(path, engine="forest")


def test_without_lightgbm_a_record_serves_and_its_absence_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as without:
        without.setattr(LightGBMAdapter, "installed_version", lambda *_: "")
        with pytest.raises(ConfigError, match=r"never compared with lightgbm .* python -m lightgbm_server.verify"):
            load(path)
        assert "never compared" in load(path, engine="forest").details["engine_reason"]
    assert verify.main([str(path)]) == 0
    monkeypatch.setattr(LightGBMAdapter, "installed_version", lambda *_: "")
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    assert load(path).details["engine"] == "forest"
    with pytest.raises(ConfigError, match=r"pip install 'serinus\[lightgbm-server\]'"):
        load(path, engine="booster")


def test_a_record_that_can_be_saved_nowhere_is_said_in_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verification_records, "paths", lambda *_: iter([]))
    assert load(path).details["engine"] == "forest"
    assert "saved nowhere" in caplog.text


@pytest.mark.slow
def test_the_command_tells_what_agrees_and_what_is_left_to_the_booster(path: Path, tmp_path: Path) -> None:
    linear = save(train("regression", linear_tree=True), tmp_path, "linear.txt")
    command = [sys.executable, "-m", "lightgbm_server.verify", str(path.parent), str(linear), str(tmp_path / "absent")]
    environment = {**os.environ, **without(tmp_path, *BESIDE_BOOSTERS)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 1
    assert "the compiled engine agrees" in ran.stdout
    assert "served by lightgbm's Booster: linear trees" in ran.stderr
    assert "no such file or directory" in ran.stderr
