"""A file that ends the process that loads it is refused in words, by a process that did; each file is tried once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serinus.engines import load_trial
from serinus.errors import ConfigError
from serinus.settings import ModelSettings
from trial_classes import Tried


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


def _model(folder: Path, does: str, *, trial: bool = True) -> Tried:
    (folder / "model").write_text(does)
    return Tried(ModelSettings(name="m", model_dir=folder, trial=trial))


def _loads(folder: Path) -> list[int]:
    noted = folder / "loads"
    return list(map(int, noted.read_text().split())) if noted.exists() else []


@pytest.mark.parametrize("does", ["abort", "abort at predict"])
def test_a_file_that_ends_the_process_is_refused_now_and_at_the_next_start(tmp_path: Path, does: str):
    with pytest.raises(ConfigError, match=r"loading it ended a process \(SIGABRT\).*--trial false") as refused:
        _model(tmp_path, does).load()
    assert ("Check failed: size >= 0" in str(refused.value)) == (does == "abort")
    assert len(_loads(tmp_path)) == 1
    assert os.getpid() not in _loads(tmp_path)
    with pytest.raises(ConfigError, match="ended a process"):
        _model(tmp_path, does).load()
    assert len(_loads(tmp_path)) == 1, "it is on record"


@pytest.mark.slow  # three processes
def test_a_good_file_is_tried_once_and_again_when_it_changes(tmp_path: Path):
    _model(tmp_path, "fine").load()
    _model(tmp_path, "fine").load()
    assert [pid == os.getpid() for pid in _loads(tmp_path)] == [False, True, True]
    _model(tmp_path, "good").load()
    assert [pid == os.getpid() for pid in _loads(tmp_path)[3:]] == [False, True]


def test_an_error_is_told_by_the_load_itself(tmp_path: Path):
    with pytest.raises(ValueError, match="of its own"):
        _model(tmp_path, "raise").load()
    assert _loads(tmp_path)[-1] == os.getpid()


def test_the_setting_turns_it_off(tmp_path: Path):
    _model(tmp_path, "fine", trial=False).load()
    assert _loads(tmp_path) == [os.getpid()]


@pytest.mark.slow
def test_a_record_of_another_version_or_of_no_sense_does_not_hold(tmp_path: Path):
    _model(tmp_path, "fine").load()
    record = tmp_path / "model.trial.verdict.json"
    ours = record.read_text()
    for body in ("{}", "[]", '{"ended_by": 5}'):
        record.write_text(body)
        _model(tmp_path, "fine").load()
        assert record.read_text() == ours
    others = ours.replace('"framework": "1"', '"framework": "2"')
    record.write_text(others)
    before = len(_loads(tmp_path))
    _model(tmp_path, "fine").load()
    assert record.read_text() == others, "it came with its model"
    assert [pid == os.getpid() for pid in _loads(tmp_path)[before:]] == [False, True]
    _model(tmp_path, "fine").load()
    assert [pid == os.getpid() for pid in _loads(tmp_path)[before + 2 :]] == [True], "ours is in the cache folder"


def test_a_process_that_cannot_be_started_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load_trial.sys, "executable", str(tmp_path / "nothing"))
    _model(tmp_path, "fine").load()
    assert _loads(tmp_path) == [os.getpid()]
    assert not (tmp_path / "model.trial.verdict.json").exists()


def test_serinus_serve_tries_unless_it_is_told_not_to(tmp_path: Path):
    from serinus.cli.serving.options import parse
    from serinus.cli.serving.startup_models import find_models

    (tmp_path / "m.txt").write_text("tree\nversion=v4\n")
    for words, wanted in (([], True), (["--trial", "false"], False)):
        (settings,) = find_models(parse([str(tmp_path), *words], {}), None).models
        assert settings.trial is wanted


@pytest.mark.slow  # waits for a process that is stopped
def test_a_trial_that_was_stopped_says_nothing_of_the_file(tmp_path: Path):
    _model(tmp_path, "stopped once").load()
    _model(tmp_path, "stopped once").load()
    assert [pid == os.getpid() for pid in _loads(tmp_path)] == [False, True, False, True], "it was tried again"
